"""The drop-in trainer. Only this file and `trl_hooks` use TRL's private names; each use says which and why.

(`vllm_cpu`, for vLLM where there is no GPU, overrides those of TRL's vLLM backend.)
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import trl
import trl.trainer.utils as trl_utils
from torch import Tensor
from trl import GRPOTrainer

from entropy_rft.entropy import TokenStatistics, predicted_entropy_change
from entropy_rft.entropy.phases import PHASES
from entropy_rft.entropy.rules.whole_batch import per_token
from entropy_rft.errors import UserValueError, users
from entropy_rft.rewards.fitting import fitted
from entropy_rft.sampling.marker import ThinkEndMarker, missing_marker
from entropy_rft.sampling.shrinking import shrinking_generation
from entropy_rft.training.audit import AuditedBatch, EntropyAudit, RandomState
from entropy_rft.training.batch import decide, phase_metrics
from entropy_rft.training.config import EntropyGRPOConfig
from entropy_rft.training.lens import LensRecorder
from entropy_rft.training.micro_batch import DROPPED, PENALTY, UPDATE, loss_mask, micro_batch, with_statistics
from entropy_rft.training.penalty import PenaltyTerms, does_nothing, with_penalties
from entropy_rft.training.reward_inputs import RewardInputs, counted, not_finite_metrics
from entropy_rft.training.rule_state import rule_state
from entropy_rft.training.trl_hooks import (
    generation_cannot_shrink,
    loss_weights,
    old_policy_pass_forced,
    policy_statistics,
    statistics_pass,
    vllm_for,
    warn_outside_tested_trl,
)

logger = logging.getLogger(__name__)


class EntropyGRPOTrainer(GRPOTrainer):
    """:class:`trl.GRPOTrainer` with entropy-discriminator clipping and phase entropies for rewards.

    The constructor is the same. A plain :class:`trl.GRPOConfig` gets the defaults of
    :class:`~entropy_rft.EntropyGRPOConfig`, which use no rule. Without a rule (``entropy_clip="none"``) and with
    ordinary rewards a run is TRL's, bit for bit.

    The statistics are those of the policy that the batch was sampled from, computed from the hidden states in the
    forward pass that TRL makes for the old log-probabilities. Where TRL makes none (on-policy, aligned accumulation)
    one such pass is added, only when a rule or a reward needs it. A reward needs it when `phase_entropies` or
    `token_entropies` is in its signature. Then every reward function gets `phase_entropies`, a
    ``(H_think, H_answer)`` pair in nats per completion.

    If a generation is used for several updates (`num_iterations` above 1, or more steps per generation than
    accumulation steps), the rule and the prediction of the later ones therefore use a policy that is some updates old,
    as the authors' code does. The metric ``entropy_clip/update_of_generation`` says which update it was (1 is the
    policy that sampled). The predicted and the audited change are also logged for each update (``…_update_2``).
    `entropy_clip_refresh` computes the statistics again instead.

    A reward that is NaN or infinite is treated as None, "cannot be scored", with a warning. The metric
    ``rewards/NAME/not_finite`` counts such values in the generations that have any, over all processes.

    TRL's own accuracy and format rewards look for `think_end_token`, in text that keeps the tags of the thinking also
    where they are special tokens. An answer whose check does not end (a tower of powers) counts as wrong.

    The rule looks at the whole optimisation batch: the trainer therefore prepares (generates and scores) all
    micro-batches of a step before the first loss. In evaluation nothing is clipped; the ``entropy_clip/*`` metrics say
    what the rule would drop.

    Raises:
        ValueError: when a reward needs phase entropies and the tokenizer cannot express `think_end_token`.
    """

    _tag_names = ["trl", "grpo", "entropy-rft"]  # noqa: RUF012 - TRL's attribute
    _step: int  # TRL's count of micro-batches
    reward_funcs: list[Any]

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, *positional: Any, **keywords: Any):
        warn_outside_tested_trl()
        if args is None:
            name = model if isinstance(model, str) else trl_utils.get_config_model_id(model.config)
            args = EntropyGRPOConfig(f"{name.rstrip('/').split('/')[-1]}-EntropyGRPO")
        plain = not isinstance(args, EntropyGRPOConfig)
        if plain:
            args = EntropyGRPOConfig.from_grpo(args)
        rule = args.build_entropy_clip()
        self.entropy_clip = None if rule is None or rule.idle else rule
        if reward_funcs is not None:
            several = isinstance(reward_funcs, list)
            rewards = [fitted(r, args.think_end_token) for r in (reward_funcs if several else [reward_funcs])]
            reward_funcs = rewards if several else rewards[0]
        # TRL's, transformers' and PEFT's own checks of what they were given.
        with vllm_for(args), users(ValueError, TypeError):
            super().__init__(model, reward_funcs, args, *positional, **keywords)

        if plain and self.accelerator.is_main_process:
            logger.warning(args.switched_on())
        self._marker = ThinkEndMarker(self._tokenizer, args.think_end_token)
        self._reward_inputs = RewardInputs(self.reward_funcs, self._marker)
        wanted_anyway = args.entropy_metrics or args.entropy_audit_steps > 0 or args.entropy_lens_steps > 0
        self._needs_statistics = self.entropy_clip is not None or self._reward_inputs.need_entropies or wanted_anyway
        if self._reward_inputs.need_entropies and not self._marker:
            raise UserValueError(missing_marker(args.think_end_token, self._tokenizer))

        self._shrinks = args.shrink_generation_batch
        if self._shrinks and (reason := generation_cannot_shrink(self)):
            self._shrinks = False
            warnings.warn(f"shrink_generation_batch has no effect with {reason}", stacklevel=2)

        acting = self.entropy_clip
        if acting and acting.later_updates_only and self._on_policy and self.accelerator.is_main_process:
            warnings.warn(does_nothing(acting, args), stacklevel=2)

        # State of the current generation, and of the current optimisation step.
        self._old_policy: TokenStatistics | None = None
        self._awaiting_old_policy_pass = False
        self._generated_lengths: list[int] = []
        self._generated_prompts: list[list[int]] = []
        self._generated_tool_mask: list[list[int]] | None = None
        self._step_batches: list[Any] = []
        self._prepared: deque[dict[str, Any]] = deque()
        self._updates_since_generation = 0
        self._without_gradient: Tensor | None = None
        self._lens: LensRecorder | None = None
        self._penalties = PenaltyTerms()
        self._loss_log_prob: list[Tensor] | None = None  # of the loss that is being computed, where a penalty needs it
        self._audit: EntropyAudit | None = None
        self._audited: dict[str, Any] | None = None  # the micro-batch whose loss is being computed
        if self.entropy_clip is not None and self.entropy_clip.state_dict():
            self.add_callback(rule_state(self.entropy_clip))
        if args.entropy_lens_steps > 0:
            self._lens = LensRecorder(
                args.entropy_lens_steps,
                args.entropy_lens_tokens,
                args.output_dir,
                self._marker,
                self._tokenizer,
                lambda: self._process_group,
            )
        if args.entropy_audit_steps > 0:
            observer = None if self._lens is None else self._lens.measured
            self._audit = EntropyAudit(
                args.entropy_audit_steps, self._log_values, lambda: self._process_group, observer
            )
            self.add_callback(self._audit)
        if self._lens is not None:
            self.add_callback(self._lens)  # after the audit: it writes what the audit measured

    @property
    def _process_group(self) -> dist.ProcessGroup | None:
        return dist.group.WORLD if self.accelerator.num_processes > 1 else None

    def load_best_model(self) -> None:
        """Load the best model if `load_best_model_at_end` is set, for a run that has no steps left."""
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()  # transformers'

    # --- generation: one pass over the old policy, before the rewards ---------------------------------------------

    def _generate(self, prompts: list) -> tuple:
        # TRL does not give the rewards the tool mask, and a tool's output has no phase entropy.
        with self._generation():
            generated = super()._generate(prompts)
        self._generated_prompts = generated[0]
        self._generated_lengths = [len(ids) for ids in generated[1]]
        self._generated_tool_mask = generated[2]
        return generated

    def _log_completion_extra(self, column: str, values: list) -> None:
        # Two rewards of one family log the same columns (PEAR around a reward, and that reward beside it). TRL would
        # append the second's values to the first's, and its table needs columns of one length.
        if column not in self._pending_extra_logs:
            super()._log_completion_extra(column, values)

    def _generation(self) -> AbstractContextManager[None]:
        if not self._shrinks:
            return nullcontext()
        # TRL calls the public `generate` of the unwrapped model.
        return shrinking_generation(self.accelerator.unwrap_model(self.model_wrapped))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self._needs_statistics:
            output = super()._generate_and_score_completions(inputs)
            self._log_phases(output, None)
            return output
        if self.model.training:
            self._updates_since_generation = 0
        made_by_trl = self._trl_makes_old_policy_pass()
        self._old_policy, self._awaiting_old_policy_pass = None, True
        try:
            with old_policy_pass_forced(self):
                output = super()._generate_and_score_completions(inputs)
            statistics = self._old_policy
        finally:
            self._old_policy, self._awaiting_old_policy_pass = None, False
        if statistics is None:
            raise RuntimeError(f"trl {trl.__version__} made no pass over the old policy where one was expected")
        if not made_by_trl:
            # On-policy TRL takes the loss's own log-probabilities as the old ones; the ratio stays exactly 1.
            del output["old_per_token_logps"]
        self._log_phases(output, statistics.entropy)
        return with_statistics(output, statistics)

    @property
    def _on_policy(self) -> bool:
        """Whether each generation serves a single update."""
        every: int = self.args.steps_per_generation * self.args.num_iterations
        return self.args.gradient_accumulation_steps % every == 0

    def _trl_makes_old_policy_pass(self) -> bool:
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        return corrected or not self._on_policy

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        inside = super()._get_per_token_logps_and_entropies
        if self._awaiting_old_policy_pass:  # TRL's first pass of a generation; one over the reference may follow
            self._awaiting_old_policy_pass = False
            kwargs["compute_entropy"] = True
            masked = attention_mask[:, -logits_to_keep:] == 0
            # Under mask_truncated_completions TRL masks whole completions. A reward that names their entropies still
            # gets them. Without such a reward they are not computed.
            lengths = torch.tensor(self._generated_lengths, device=masked.device).unsqueeze(1)
            generated = torch.arange(logits_to_keep, device=masked.device) < lengths
            if not self._entropies_of_all:
                generated &= ~masked
            attention_mask = torch.cat([attention_mask[:, :-logits_to_keep], generated.to(attention_mask.dtype)], dim=1)
            arguments = (model, input_ids, attention_mask, logits_to_keep, *args)
            self._old_policy, aux_loss = statistics_pass(inside, arguments, kwargs)
            log_prob, entropy = self._old_policy.log_prob, self._old_policy.entropy
            return log_prob.masked_fill(masked.to(log_prob.device), 0.0), entropy, aux_loss
        random_state = RandomState.of(self.model) if self._audited is not None else None
        log_prob, entropy, aux_loss = inside(model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        if self._audited is not None and random_state is not None and entropy is not None:
            arguments = (input_ids, attention_mask, logits_to_keep, *args)
            self._audit_later(self._audited, entropy.detach(), random_state, arguments, kwargs)
        if self._loss_log_prob is not None:
            self._loss_log_prob.append(log_prob)
        if self._without_gradient is not None:
            log_prob = torch.where(self._without_gradient, log_prob.detach(), log_prob)
        return log_prob, entropy, aux_loss

    def _audit_later(
        self,
        inputs: dict[str, Any],
        before: Tensor,
        random_state: RandomState,
        arguments: tuple,
        keywords: dict[str, Any],
    ) -> None:
        inside = super()._get_per_token_logps_and_entropies  # `super()` cannot be called in the function below

        def entropy_now() -> Tensor:
            # With the loss's own dropout masks. Then the random state is restored, so that the run is unchanged.
            with torch.no_grad(), random_state.again():
                return inside(self.model, *arguments, **keywords)[1]

        batch = micro_batch(inputs)
        predicted = predicted_entropy_change(batch.statistics, batch.advantages, batch.mask)
        phases = dict(zip(PHASES, self._marker.phases(inputs["completion_ids"], batch.mask), strict=True))
        assert self._audit is not None
        self._audit.add(
            AuditedBatch(predicted, before, batch.advantages, batch.mask, phases, entropy_now, inputs.get(UPDATE))
        )

    @property
    def _entropies_of_all(self) -> bool:
        """Whether truncated completions have entropies too, so that the rewards can get them."""
        return self._reward_inputs.need_entropies or not self.mask_truncated_completions

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Tensor:
        completions = self._reward_inputs.texts(completions, completion_ids_list)
        columns = self._reward_inputs.columns(
            self._generated_prompts,
            completion_ids_list,
            self._old_policy.entropy if self._old_policy is not None and self._entropies_of_all else None,
            self._generated_tool_mask,
        )
        if columns:
            # TRL passes each key of an example to the rewards as a column.
            inputs = [
                example | {name: column[i] for name, column in columns.items()} for i, example in enumerate(inputs)
            ]
        rewards = self.reward_funcs
        self.reward_funcs, not_finite = counted(rewards, self.reward_func_names)
        try:
            scores = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = rewards
        self._log_values(not_finite_metrics(not_finite, self.accelerator.device, self._process_group))
        return scores

    def _log_phases(self, output: Mapping[str, Any], entropy: Tensor | None) -> None:
        thinking, answer = self._marker.phases(output["completion_ids"], loss_mask(output))
        self._log_values(phase_metrics(entropy, thinking, answer, self._process_group))

    def _log_values(self, metrics: Mapping[str, float]) -> None:
        mode = "train" if self.model.training else "eval"
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)

    # --- optimisation: the rule over the whole batch of a step, then TRL's loss -----------------------------------

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._step_batches = list(batches)
        self._prepared.clear()
        return batches, num_items

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        if not self._needs_statistics:
            return super()._prepare_inputs(generation_batch)
        if not self.model.training:
            inputs = super()._prepare_inputs(generation_batch)
            decision = decide(self.entropy_clip, [micro_batch(inputs)], self._process_group, apply=False)
            self._log_values(decision.metrics)
            return inputs
        if not self._prepared:
            batches, self._step_batches = self._step_batches or [generation_batch], []
            self._prepared.extend(self._prepare_step(batches))
        return self._prepared.popleft()

    def _prepare_step(self, batches: list[Any]) -> list[dict[str, Any]]:
        """All micro-batches of one optimisation step, clipped by the tokens of all of them on all ranks."""
        step = self._step  # TRL reads it to know when to generate and which slice of the generation is next
        prepared = []
        updates = []
        try:
            for offset, batch in enumerate(batches):
                self._step = step + offset
                prepared.append(super()._prepare_inputs(batch))
                updates.append(self._updates_since_generation + 1)
        finally:
            self._step = step
        self._updates_since_generation += 1
        if self.args.entropy_clip_refresh:
            # TRL's old log-probabilities stay.
            prepared = [
                with_statistics(inputs, policy_statistics(self, inputs)) if update > 1 else inputs
                for inputs, update in zip(prepared, updates, strict=True)
            ]
        joined = [micro_batch(inputs) for inputs in prepared]
        decision = decide(self.entropy_clip, joined, self._process_group, updates=updates)
        self._log_values(decision.metrics)
        if self.args.steps_per_generation * self.args.num_iterations > self.args.gradient_accumulation_steps:
            prepared = self._by_update(prepared, updates, decision.metrics)
        if self._lens is not None and self._lens.due(self.state.global_step):
            self._lens.record(prepared, decision.keep)
        if self.entropy_clip is None:
            return prepared
        prepared = [self._clipped(inputs, keep) for inputs, keep in zip(prepared, decision.keep, strict=True)]
        return with_penalties(prepared, decision.penalty, updates)

    def _by_update(
        self, prepared: list[dict[str, Any]], updates: list[int], metrics: Mapping[str, float]
    ) -> list[dict[str, Any]]:
        """Label the step by its number among those of its generation (a mean where a step spans two generations)."""
        self._log_values({"entropy_clip/update_of_generation": sum(updates) / len(updates)})
        if len(set(updates)) > 1:
            return prepared
        change = metrics.get("entropy/predicted_change")
        if change is not None:
            self._log_values({f"entropy/predicted_change_update_{updates[0]}": change})
        return [inputs | {UPDATE: updates[0]} for inputs in prepared]

    def _clipped(self, inputs: dict[str, Any], keep: Tensor) -> dict[str, Any]:
        # A new dict: TRL keeps the original for the next iteration, whose batch may be another one.
        if self.importance_sampling_level == "sequence" or self.loss_type == "vespo":
            # The ratio (VESPO: the weight) of a sequence contains every token's log-probability, and the sequence has
            # one advantage. So a token can leave the gradient only through its log-probability.
            return inputs | {DROPPED: ~keep}
        return inputs | {"advantages": torch.where(keep, per_token(inputs["advantages"], keep), 0.0)}

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._without_gradient = inputs.get(DROPPED)
        self._loss_log_prob = [] if PENALTY in inputs else None
        if self._audit is not None and self.model.training and self._audit.due(self.state.global_step):
            self._audited = inputs
        try:
            loss = super()._compute_loss(model, inputs)
            return loss if self._loss_log_prob is None else loss + self._penalty(inputs, *self._loss_log_prob)
        finally:
            self._without_gradient = self._audited = self._loss_log_prob = None

    def _penalty(self, inputs: dict[str, Any], log_prob: Tensor) -> Tensor:
        added = self._penalties.add(inputs, log_prob, loss_weights(self, inputs))
        if not self._prepared:  # the step's last micro-batch
            self._log_values({"entropy_clip/penalty": self._penalties.mean(self._process_group)})
        return added


# What `help()` and editors show: TRL's own arguments.
EntropyGRPOTrainer.__signature__ = inspect.signature(GRPOTrainer)
