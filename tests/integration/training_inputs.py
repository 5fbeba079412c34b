"""What trainers of the random model are given: prompts, a reward, completions that are fixed in advance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def prompts(count: int = 24) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"prompt": [f"What is {i} + {i}?" for i in range(count)]})


def some_reward(completions: list, **kwargs: Any) -> list[float]:
    """An ordinary reward that differs within every group."""
    return [float(sum(map(ord, str(completion))) % 7) for completion in completions]


def scripted_rollout(completion_ids: Callable[[int], list[int]], env_mask: Callable[[int], list[int]] | None = None):
    """A TRL rollout function with fixed completions: the n-th row of a process's batch gets ``completion_ids(n)``."""

    def rollout(prompts: list, trainer: Any) -> dict[str, Any]:
        rows = range(len(prompts))
        ids = [completion_ids(row) for row in rows]
        output: dict[str, Any] = {
            "prompt_ids": [trainer.processing_class(prompt)["input_ids"] for prompt in prompts],
            "completion_ids": ids,
            "logprobs": [[0.0] * len(row) for row in ids],
        }
        if env_mask is not None:
            output["env_mask"] = [env_mask(row) for row in rows]
        return output

    return rollout
