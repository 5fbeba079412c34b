"""The process in which reasoning-gym's verifiers run; see :mod:`entropy_rft.tasks.verifier`. It imports no torch."""

from __future__ import annotations

import json
import warnings
from functools import lru_cache
from typing import Any

from entropy_rft.rewards import timed_worker
from entropy_rft.tasks import generators


def score(entry: str, answer: str) -> float:
    """What the verifier of the question `entry` (JSON, as the task's column has it) says of `answer`."""
    question = generators.from_text(entry)
    source = json.dumps([question.pop(name) for name in ("generator", "settings", "level")])
    return float(_verifier(source).score_answer(answer, question))


@lru_cache(maxsize=64)
def _verifier(source: str) -> Any:
    generator, settings, level = json.loads(source)
    return generators.make(generator, settings, level, seed=0, size=1)


def serve() -> None:
    """Answer the requests on standard input until it ends."""
    warnings.simplefilter("ignore")  # of a model's text, read as Python
    timed_worker.serve(lambda **request: {"value": score(**request)}, generators.check_installed)
