"""The state of a rule that learns from batch to batch, in the trainer's checkpoints."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from entropy_rft.entropy import Rule


def rule_state(rule: Rule) -> TrainerCallback:
    """A callback that writes the rule's state into ``trainer_state.json`` and reads it when a run resumes.

    Its class takes no argument: with `restore_callback_states_from_checkpoint` transformers makes another object of it.

    Args:
        rule: of the trainer.
    """

    class RuleState(TrainerCallback, ExportableState):
        def state(self) -> dict[str, Any]:
            """What transformers stores under this class's name."""
            return {"args": {}, "attributes": rule.state_dict()}

        def on_train_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            # A checkpoint of another rule, or of none, has no entry; transformers writes only into one that is there.
            stored = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
            if state.global_step > 0 and stored["attributes"]:
                rule.load_state_dict(stored["attributes"])

    return RuleState()
