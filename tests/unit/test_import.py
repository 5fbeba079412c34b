"""`import entropy_rft` and the command line's help must not pay for torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "trl", "datasets", "numpy", "matplotlib")


@pytest.mark.parametrize(
    "code",
    [
        "import entropy_rft",
        "import entropy_rft; dir(entropy_rft)",
        "import entropy_rft.cli.main; entropy_rft.cli.main.build_parser()",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    check = f"{code}; import sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_entropy_room_imports_torch_only() -> None:
    check = "import entropy_rft.entropy, sys; print([n for n in ('transformers', 'trl') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_names_load_on_first_use() -> None:
    import entropy_rft

    assert set(entropy_rft.__all__) <= set(dir(entropy_rft))
    for name in entropy_rft.__all__:
        assert getattr(entropy_rft, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        entropy_rft.nonsense  # noqa: B018


def test_the_readme_lists_every_extra() -> None:
    import re
    from importlib.metadata import metadata
    from pathlib import Path

    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    sentence = re.search(r"the extras are (.*?)\.\n", readme, re.DOTALL)
    assert sentence is not None
    listed = re.findall(r"`([a-z0-9-]+)`", sentence[1])
    assert sorted(listed) == sorted(metadata("entropy_rft").get_all("Provides-Extra") or [])
