"""Records from which tokens the predicted entropy change of an update comes, as lines of a run's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer

from entropy_rft.entropy.lens import COLUMNS, bucket_sums, by_partition, lens_batch
from entropy_rft.entropy.phases import PHASES
from entropy_rft.entropy.rules.whole_batch import WholeBatch
from entropy_rft.errors import UserTypeError, UserValueError
from entropy_rft.sampling.marker import ThinkEndMarker
from entropy_rft.tags import THINK_END
from entropy_rft.training.batch import MicroBatch, one_row
from entropy_rft.training.config import EntropyGRPOConfig
from entropy_rft.training.lens_tokens import extreme_tokens
from entropy_rft.training.micro_batch import UPDATE, micro_batch, with_statistics
from entropy_rft.training.run_directory import RunDirectory
from entropy_rft.training.trl_hooks import policy_statistics

MEASURED = "measured"
"""The column after those of :data:`~entropy_rft.entropy.lens.COLUMNS`: the measured change, where it was audited."""


class LensRecorder(TrainerCallback):
    """Writes one line for every `steps`-th update: sums of the predicted change by bucket of tokens.

    The buckets are those of :data:`~entropy_rft.entropy.lens.PARTITIONS`, over the whole batch of the update: all
    processes and micro-batches. When a run resumes, the lines after its checkpoint are discarded.

    Args:
        steps: at least 1.
        tokens: how many of the most negative and of the most positive tokens to store as text; 0 stores none.
        directory: of the run.
        marker: finds the end of the thinking.
        tokenizer: decodes the stored tokens.
        group: returns the group of the processes that hold the other parts of the batch; called when it is needed.
    """

    def __init__(
        self,
        steps: int,
        tokens: int,
        directory: str | os.PathLike[str],
        marker: ThinkEndMarker,
        tokenizer: Any,
        group: Callable[[], dist.ProcessGroup | None],
    ) -> None:
        self.steps = steps
        self.tokens = tokens
        self.directory = RunDirectory(directory)
        self._marker = marker
        self._tokenizer = tokenizer
        self._group = group
        self._forget()

    def _forget(self) -> None:
        self._index: Tensor | None = None
        self._edges: Tensor | None = None
        self._table: Tensor | None = None
        self._measured: Tensor | None = None
        self._extremes: list[dict[str, Any]] | None = None
        self._update: int | None = None

    def due(self, finished_steps: int) -> bool:
        """Whether the update after `finished_steps` is recorded."""
        return (finished_steps + 1) % self.steps == 0

    @torch.no_grad()
    def record(self, inputs: Sequence[Mapping[str, Any]], keep: Sequence[Tensor] | None = None) -> None:
        """Compute the sums of the current update; every process must call.

        Args:
            inputs: its micro-batches with their statistics, before the rule changes them.
            keep: the rule's masks ``(B, T)``, False for a dropped token; None where there is no rule.
        """
        batches = [micro_batch(each) for each in inputs]
        group = self._group()
        statistics, advantages = one_row(batches)
        whole = WholeBatch(statistics, advantages, torch.ones_like(advantages), group)
        phases = torch.cat([self._phases(each, batch) for each, batch in zip(inputs, batches, strict=True)])
        dropped = torch.zeros_like(phases, dtype=torch.bool)
        if keep is not None:
            dropped = torch.cat([~kept[batch.valid] for kept, batch in zip(keep, batches, strict=True)])
        found = lens_batch(whole, phases, dropped)
        self._table = bucket_sums(found.index, found.sums, group)
        # Kept while the loss is computed, for the audit: three bytes a token.
        self._index, self._edges = found.index.to(torch.uint8), found.edges
        self._update = inputs[0].get(UPDATE)
        if self.tokens:
            arguments = (phases, dropped, inputs, self.tokens, self._tokenizer, group)
            self._extremes = extreme_tokens(whole, found.change, *arguments)

    def _phases(self, inputs: Mapping[str, Any], batch: MicroBatch) -> Tensor:
        """The phase of each valid token, ``(N,)``."""
        thinking, answer = self._marker.phases(inputs["completion_ids"], batch.mask)
        phase = torch.where(thinking, 0, torch.where(answer, 1, len(PHASES)))
        return phase[batch.valid]

    @torch.no_grad()
    def measured(self, changes: Tensor) -> None:
        """Add the measured changes ``(N,)``, nats, of the current update's tokens, if it is recorded."""
        if self._index is not None and self._table is not None:
            self._measured = bucket_sums(self._index, changes.to(self._table).unsqueeze(1), self._group())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.directory.make()
            self.directory.keep_lens_until(state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._forget()  # what an interrupted step left

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._table is not None and self._edges is not None and state.is_world_process_zero:
            columns = [self._table] if self._measured is None else [self._table, self._measured]
            sums = {
                "step": state.global_step,
                **({} if self._update is None else {"update": self._update}),
                "columns": [*COLUMNS, *([] if self._measured is None else [MEASURED])],
                **by_partition(torch.cat(columns, dim=1).tolist()),
                "edges": self._edges.tolist(),
            }
            tokens = None if self._extremes is None else {"step": state.global_step, "tokens": self._extremes}
            self.directory.append_lens(sums, tokens)
        self._forget()


# Of a micro-batch; the images of one need not be kept until the end of the step.
_NEEDED = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "advantages")


class EntropyLens(LensRecorder):
    """Records a run of TRL's own :class:`trl.GRPOTrainer`, or of a subclass, for ``entropy-rft inspect``.

    It adds itself to the trainer. The lines go to ``lens.jsonl`` in the trainer's `output_dir`. On a recorded update it
    makes one more forward pass without a gradient over each micro-batch, before its loss: about a quarter of the cost
    of the loss and its gradient. The updates stay what they would be without it. The statistics are those of the policy
    that the update starts from. What TRL's ratio clipping takes out of the gradient is not counted as dropped.

    :class:`~entropy_rft.EntropyGRPOTrainer` has its own: set `entropy_lens_steps`.

    Args:
        trainer: ready to train.
        steps: every how many updates to record, at least 1.
        tokens: on those updates, also store as text so many of the tokens with the most negative and with the most
            positive predicted change, with 20 tokens before and after each. ``lens_tokens.jsonl`` then holds parts of
            prompts and completions. 0 stores none.
        think_end_token: the text that ends the thinking.

    Raises:
        ValueError, TypeError: naming the argument and its value.

    Example:

    ```python
    trainer = GRPOTrainer(...)
    EntropyLens(trainer, steps=10)
    trainer.train()
    ```
    """

    def __init__(
        self, trainer: GRPOTrainer, steps: int = 10, tokens: int = 0, think_end_token: str = THINK_END
    ) -> None:
        if not isinstance(trainer, GRPOTrainer):
            raise UserTypeError(f"trainer must be a trl.GRPOTrainer, got {type(trainer).__name__}")
        if isinstance(trainer.args, EntropyGRPOConfig):
            raise UserTypeError(
                f"trainer is an {type(trainer).__name__}, which records by itself: set entropy_lens_steps to {steps!r}"
            )
        for name, value, least in (("steps", steps, 1), ("tokens", tokens, 0)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserTypeError(f"{name} must be a whole number, got {value!r}")
            if value < least:
                raise UserValueError(f"{name} must be at least {least}, got {value}")
        tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
        marker = ThinkEndMarker(tokenizer, think_end_token)
        several = trainer.accelerator.num_processes > 1
        group = (lambda: dist.group.WORLD) if several else (lambda: None)
        super().__init__(steps, tokens, trainer.args.output_dir, marker, tokenizer, group)
        self._trainer = trainer
        self._inputs: list[dict[str, Any]] = []
        self._compute_loss = trainer.compute_loss
        # The public method that every version of transformers calls with the micro-batch as the loss sees it. A
        # callback is not given the batch.
        trainer.compute_loss = self._observed_loss
        trainer.add_callback(self)

    def _observed_loss(self, model: Any, inputs: Mapping[str, Any], *arguments: Any, **keywords: Any) -> Any:
        if self._trainer.model.training and self.due(self._trainer.state.global_step):
            needed = {name: value for name, value in inputs.items() if name in _NEEDED}
            self._inputs.append(with_statistics(needed, policy_statistics(self._trainer, inputs)))
        return self._compute_loss(model, inputs, *arguments, **keywords)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_step_begin(args, state, control, **kwargs)
        self._inputs.clear()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._inputs:
            inputs, self._inputs = self._inputs, []
            self.record(inputs)
        super().on_step_end(args, state, control, **kwargs)
