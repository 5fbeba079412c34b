"""The tiny reasoner: a model of a few MB that ships with the package, its probe, and how they were made.

`make.py` makes the model (`scripts/make_tiny_reasoner` runs that), `traces.py` writes what it learns from, and
`make_probe.py` makes the probe (`scripts/make_tiny_probe`).
"""

from __future__ import annotations

from pathlib import Path

TINY_REASONER: Path = Path(__file__).parent / "tiny_reasoner"
"""A directory that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load."""

TINY_PROBE: Path = Path(__file__).parent / "tiny_probe"
"""A directory that `DifficultyProbe.from_pretrained` loads: the tiny reasoner's."""


def model_source(name: str) -> str:
    """The directory of ``tiny_reasoner``; any other name as it is, ``~`` for the home directory expanded."""
    return str(TINY_REASONER) if name == "tiny_reasoner" else str(Path(name).expanduser() if name[:1] == "~" else name)
