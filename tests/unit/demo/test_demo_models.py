"""What the demo can train, and what it refuses before anything is begun."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.cli.main import main
from entropy_rft.demo.models import MODELS
from entropy_rft.demo.run import METHODS, _in_short
from entropy_rft.evaluation import Evaluation

RECIPES = Path(__file__).parents[3] / "recipes"
every_model = pytest.mark.parametrize("name", MODELS)


def test_the_default_is_the_embedded_model() -> None:
    assert next(iter(MODELS)) == DEFAULT_MODEL


@every_model
def test_the_methods_differ_in_rule_and_reward_only(name: str) -> None:
    recipes = [yaml.safe_load((RECIPES / MODELS[name].recipes / f"{method}.yaml").read_text()) for method in METHODS]
    own = (
        "rewards",
        "entropy_clip",
        "entropy_metrics",
        "entropy_clip_target",
        "pear_alpha",
        "pear_floor",
        "output_dir",
    )
    shared = [{field: value for field, value in recipe.items() if field not in own} for recipe in recipes]
    assert shared[0]["model_name_or_path"] == name
    assert shared == [shared[0]] * len(METHODS)
    assert [recipe["entropy_clip"] for recipe in recipes] == ["none", "target", "target"]
    assert [recipe["rewards"] for recipe in recipes] == [["task"], ["task"], ["pear"]]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "qwen"], ("invalid choice: 'qwen'", *MODELS)),
        (["--model", "smollm2"], ("model 'smollm2' is not in ", "entropy-rft fetch smollm2")),
        (["--steps", "0"], ("steps must be at least 1, got 0",)),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_begun(
    flags: list[str],
    said: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ENTROPY_RFT_CACHE", str(tmp_path / "empty"))
    output = tmp_path / "demo"
    assert main(["demo", "--output_dir", str(output), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(text in line for text in said)
    assert not output.exists()


def test_a_result_in_short() -> None:
    scores = {
        "questions": 4, "unscorable": 0, "avg_at_k": 0.5, "avg_interval": None, "pass_at_k": {1: 0.5, 2: 0.75},
        "tokens": 70.0, "thinking_tokens": 60.4, "answer_tokens": 9.0, "truncated": 0.0, "marker_missing": 0.0,
        "entropy": 0.1214, "entropy_thinking": 0.14, "entropy_answer": 0.0,
    }  # fmt: skip
    of = {"model": "m", "task": "t", "split": "test", "samples": 2, "settings": {}, "seconds": 1.0, "schema": 1}
    levels = {"1": {**scores, "pass_at_k": {1: 1.0, 2: 1.0}}, "10": {**scores, "pass_at_k": {1: 0.1, 2: 0.25}}}
    several, one = (
        Evaluation.from_dict(json.loads(json.dumps({**scores, **of, "by_difficulty": found})))
        for found in (levels, {"1": levels["1"]})
    )
    assert _in_short(several) == "50.0 % correct, pass@2 at level 10 25.0 %, entropy 0.121, 60 thinking tokens"
    assert _in_short(one) == "50.0 % correct, entropy 0.121, 60 thinking tokens"
