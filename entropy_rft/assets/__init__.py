"""The tiny reasoner: a model of a few MB that ships with the package, and how it was made.

`make.py` makes it (`scripts/make_tiny_reasoner` runs that), `traces.py` writes what it learns from.
"""

from __future__ import annotations

from pathlib import Path

TINY_REASONER: Path = Path(__file__).parent / "tiny_reasoner"
"""A directory that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load."""


def model_source(name: str) -> str:
    """The directory of ``tiny_reasoner``; any other name as it is."""
    return str(TINY_REASONER) if name == "tiny_reasoner" else name
