"""The identity of a question without the wording of its task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entropy_rft.sampling.identity import question_id
from entropy_rft.tasks.math_task import BOXED
from entropy_rft.tasks.verifier import TAGGED


def wordless_id(row: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The `question_id` of a question without what a task says around it, so that it is the same in every wording.

    Left out are the `instruction` (a system message of its own) and the `answer_format` (the end of the last message)
    that a task was loaded with; see `load_task`. A prompt with neither keeps its `question_id`.

    Args:
        row: with `prompt` and `solution`.
        options: of the task that made it.
    """
    prompt = row["prompt"]
    endings = (options["answer_format"],) if "answer_format" in options else (BOXED, TAGGED)
    if isinstance(prompt, str):
        return question_id({**row, "prompt": _without_end(prompt, endings)})
    messages = [dict(message) for message in prompt]
    if options.get("instruction") and messages[:1] == [{"role": "system", "content": options["instruction"]}]:
        del messages[0]
    if messages:
        messages[-1]["content"] = _without_end(messages[-1].get("content"), endings)
    return question_id({**row, "prompt": messages})


def _without_end(text: Any, endings: tuple[Any, ...]) -> Any:
    for ending in endings:
        if isinstance(text, str) and ending:
            text = text.removesuffix(f"\n\n{ending}")
    return text
