"""The tiny reasoner: a model of a few MB that ships with the package, its probe, and how they were made.

`make.py` makes the model (`scripts/make_tiny_reasoner` runs that), `traces.py` writes what it learns from, and
`make_probe.py` makes the probe (`scripts/make_tiny_probe`).
"""

from __future__ import annotations

from pathlib import Path

TINY_REASONER: Path = Path(__file__).parent / "tiny_reasoner"
"""A directory that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load."""

MODULO_REASONER: Path = Path(__file__).parent / "modulo_reasoner"
"""The same for the task `modulo`: the second embedded model (docs/embedded-model.md)."""

_MODELS = {path.name: path for path in (TINY_REASONER, MODULO_REASONER)}

TINY_PROBE: Path = Path(__file__).parent / "tiny_probe"
"""A directory that `DifficultyProbe.from_pretrained` loads: the tiny reasoner's."""


def model_source(name: str) -> str:
    """The directory of an embedded model; any other name as it is, ``~`` for the home directory expanded."""
    return str(_MODELS[name] if name in _MODELS else Path(name).expanduser() if name[:1] == "~" else name)
