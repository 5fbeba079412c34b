"""The models of a few MB that ship with the package, and their probes. `studies` makes them."""

from __future__ import annotations

from pathlib import Path

TINY_REASONER: Path = Path(__file__).parent / "tiny_reasoner"
"""A directory that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load: the model of the
first study, for the task `arithmetic`."""

MODULO_REASONER: Path = Path(__file__).parent / "modulo_reasoner"
"""The same for the task `modulo`: the second embedded model (docs/embedded-model.md)."""

EMBEDDED_MODELS = {path.name: path for path in (TINY_REASONER, MODULO_REASONER)}
"""By the name that stands for the directory wherever a model is named."""

TINY_PROBE: Path = Path(__file__).parent / "tiny_probe"
"""A directory that `DifficultyProbe.from_pretrained` loads: the tiny reasoner's."""

MODULO_PROBE: Path = Path(__file__).parent / "modulo_probe"
"""The same for the second embedded model."""

DEFAULT_MODEL: str = MODULO_REASONER.name
"""The model where none is named: of `entropy-rft train`, the demo, the router, and of this project's tests."""

DEFAULT_TASK: str = "modulo"
"""The task of that model."""

DEFAULT_PROBE: Path = MODULO_PROBE
"""The probe of that model."""
