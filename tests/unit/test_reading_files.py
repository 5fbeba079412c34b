from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from entropy_rft.files import json_text, read_yaml

TWICE = "a: 1\nb:\n  c: 2\n  d: 3\n  c: 4\n"


def test_a_key_that_stands_twice_is_named_with_both_lines() -> None:
    with pytest.raises(yaml.YAMLError, match=r"^the key 'c' occurs twice, in lines 3 and 5$"):
        read_yaml(TWICE)
    with pytest.raises(yaml.YAMLError, match="'a' occurs twice, in lines 1 and 2"):
        read_yaml("a: 1\n'a': 2\n")


def test_everything_else_is_read_as_before() -> None:
    # Of a merge (<<) the mapping's own keys may repeat those merged in, also where it is itself merged again.
    text = "x: &x {a: 1, b: 2}\ny: &y\n  <<: *x\n  a: 3\nz:\n  <<: [*x, *y]\n  b: 5\nw: [{a: 1}, {a: 2}]\n1: one\n"
    assert read_yaml(text) == yaml.safe_load(text)
    with pytest.raises(yaml.YAMLError):
        read_yaml("a: !!python/object:os.system {}")


def readers() -> dict:
    from entropy_rft.difficulty.strategies import load_strategies
    from entropy_rft.router.settings import load_settings
    from entropy_rft.training.recipe import RecipeParser
    from studies.methods.plan import load_plan

    def recipe(path: str) -> None:
        RecipeParser().parse(["--config", path])

    return {"recipe": recipe, "router": load_settings, "strategies": load_strategies, "plan": load_plan}


@pytest.mark.parametrize("kind", ["recipe", "router", "strategies", "plan"])
def test_each_reader_says_it_in_one_line(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text(TWICE)
    with pytest.raises(ValueError, match=r"twice\.yaml'.*'c' occurs twice, in lines 3 and 5") as error:
        readers()[kind](str(file))
    assert "\n" not in str(error.value)


def test_what_is_not_finite_becomes_null() -> None:
    value = {"a": float("nan"), "b": [float("inf"), 1.5, -float("inf")], "c": {"d": (0.1, None, "Infinity", True)}}
    text = json_text(value)
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        "a": None,
        "b": [None, 1.5, None],
        "c": {"d": [0.1, None, "Infinity", True]},
    }
