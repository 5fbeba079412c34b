"""Names for questions, so that traces, answers and evaluations of the same question can be matched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def question_id(row: Mapping[str, Any]) -> str:
    """16 hex digits that name a question by its prompt and solution, independent of its source."""
    text = json.dumps([row["prompt"], row.get("solution")], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """16 hex digits that name a list of questions in their order."""
    return hashlib.sha256("".join(map(question_id, rows)).encode()).hexdigest()[:16]
