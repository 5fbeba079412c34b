"""The tiny reasoner: a model of a few MB that ships with the package, and its probe. `studies/assets` makes both."""

from __future__ import annotations

from pathlib import Path

TINY_REASONER: Path = Path(__file__).parent / "tiny_reasoner"
"""A directory that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load."""

TINY_PROBE: Path = Path(__file__).parent / "tiny_probe"
"""A directory that `DifficultyProbe.from_pretrained` loads: the tiny reasoner's."""
