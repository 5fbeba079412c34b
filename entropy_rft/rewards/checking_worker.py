"""The process for answers whose check may not end; see :mod:`entropy_rft.rewards.checking`.

It imports what a check needs and no more: no torch.
"""

from __future__ import annotations

from typing import Any

from entropy_rft.rewards import timed_worker


def check(reward: str, content: str, solution: str | None, delimiters: list[str] | None) -> tuple[float | None, dict]:
    """TRL's `reward` of one completion, and the columns that it logs for it."""
    from trl import rewards

    columns: dict[str, Any] = {}
    keywords = {} if delimiters is None else {"reasoning_delimiters": delimiters}
    (value,) = getattr(rewards, reward)(
        completions=[[{"role": "assistant", "content": content}]],
        solution=[solution],
        log_extra=lambda name, values: columns.update({name: values[0]}),
        **keywords,
    )
    return value, columns


def serve() -> None:
    """Answer the requests on standard input until it ends."""
    # The parser's tables are made once.
    timed_worker.serve(_answer, lambda: check("accuracy_reward", r"\boxed{\frac{1}{2}}", r"$\frac{1}{2}$", None))


def _answer(**request: Any) -> dict[str, Any]:
    value, columns = check(**request)
    return {"value": value, "columns": columns}
