"""The state of a rule that learns from batch to batch, in the trainer's checkpoints."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from entropy_rft.entropy import Rule


class RuleState(TrainerCallback, ExportableState):
    """Writes the rule's state into ``trainer_state.json`` and reads it when a run resumes.

    Args:
        rule: of the trainer.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule

    def state(self) -> dict[str, Any]:
        """What transformers stores under this class's name."""
        return {"args": {}, "attributes": self._rule.state_dict()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        stored = (state.stateful_callbacks or {}).get(type(self).__name__)
        if state.global_step > 0 and stored and stored["attributes"]:
            self._rule.load_state_dict(stored["attributes"])
