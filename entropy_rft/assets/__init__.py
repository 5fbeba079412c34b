"""The tiny reasoner: a model of a few MB that ships with the package, and its probe. `studies/assets` makes both."""

from __future__ import annotations

from pathlib import Path

TINY_REASONER: Path = Path(__file__).parent / "tiny_reasoner"
"""A directory that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load."""

MODULO_REASONER: Path = Path(__file__).parent / "modulo_reasoner"
"""The same for the task `modulo`: the second embedded model (docs/embedded-model.md)."""

EMBEDDED_MODELS = {path.name: path for path in (TINY_REASONER, MODULO_REASONER)}
"""By the name that stands for the directory wherever a model is named."""

TINY_PROBE: Path = Path(__file__).parent / "tiny_probe"
"""A directory that `DifficultyProbe.from_pretrained` loads: the tiny reasoner's."""
