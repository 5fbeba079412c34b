"""The drop-in trainer. The only file that touches TRL's private names; each use says which and why.

(`vllm_cpu`, for vLLM where there is no GPU, overrides those of TRL's vLLM backend.)
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import trl
import trl.trainer.grpo_trainer as trl_trainer
import trl.trainer.utils as trl_utils
from packaging.version import Version
from torch import Tensor
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from trl import GRPOTrainer
from trl.import_utils import is_vllm_available

from entropy_rft.entropy import TokenStatistics, fused_token_statistics, predicted_entropy_change
from entropy_rft.entropy.rules.whole_batch import per_token
from entropy_rft.errors import UserValueError, users
from entropy_rft.rewards.fitting import fitted
from entropy_rft.rewards.parameters import ENTROPIES, THINKING_OPENED, parameters_of
from entropy_rft.rewards.values import checked
from entropy_rft.sampling.marker import ThinkEndMarker, missing_marker
from entropy_rft.sampling.shrinking import generate_shrinking
from entropy_rft.training.audit import PHASES, AuditedBatch, EntropyAudit, RandomState
from entropy_rft.training.batch import MicroBatch, decide, phase_means, phase_metrics
from entropy_rft.training.config import EntropyGRPOConfig
from entropy_rft.training.rule_state import RuleState

TESTED_TRL = ("1.15", "1.17")  # from, up to but not including

# Keys of a micro-batch: the statistics travel with it through TRL's shuffling and splitting.
_STATISTICS = ("entropy_rft_log_prob", "entropy_rft_entropy", "entropy_rft_expected_discriminant")
_DROPPED = "entropy_rft_dropped"
_UPDATE = "entropy_rft_update"  # which update of its generation a micro-batch is prepared for, from 1


class EntropyGRPOTrainer(GRPOTrainer):
    """:class:`trl.GRPOTrainer` with entropy-discriminator clipping and phase entropies for rewards.

    The same constructor. A plain :class:`trl.GRPOConfig` is taken with the defaults of
    :class:`~entropy_rft.EntropyGRPOConfig`, which clip by Clip_B. With ``entropy_clip="none"`` and ordinary rewards a
    run is TRL's, bit for bit.

    The statistics are those of the policy that the batch was sampled from, computed from the hidden states in the
    forward pass that TRL makes for the old log-probabilities. Where TRL makes none (on-policy, aligned accumulation)
    one such pass is added, only when a rule or a reward needs it. A reward needs it when `phase_entropies` or
    `token_entropies` stands in its signature; once there, every reward function gets `phase_entropies`, a
    ``(H_think, H_answer)`` pair in nats per completion.

    Where a generation serves several updates
    (`num_iterations` above 1, or more steps per generation than accumulation steps), the rule and the prediction of
    the later ones therefore look at a policy that is some updates old, as the authors' code does; the metric
    ``entropy_clip/update_of_generation`` says which update it was (1 is the policy that sampled), and the predicted
    and the audited change are logged by it too (``…_update_2``). `entropy_clip_refresh` computes them anew instead.

    A reward that is NaN or infinite is taken for None, "cannot be scored", with a warning; ``rewards/NAME/not_finite``
    counts such values in the generations that have any, over all processes.

    TRL's own accuracy and format rewards look for `think_end_token`, in text that keeps the tags of the thinking also
    where they are special tokens; an answer whose check does not end (a tower of powers) is wrong.

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
        _warn_outside_tested_trl()
        if args is None:
            name = model if isinstance(model, str) else trl_utils.get_config_model_id(model.config)
            args = EntropyGRPOConfig(f"{name.rstrip('/').split('/')[-1]}-EntropyGRPO")
        elif not isinstance(args, EntropyGRPOConfig):
            args = EntropyGRPOConfig.from_grpo(args)
        self.entropy_clip = args.build_entropy_clip()
        if reward_funcs is not None:
            several = isinstance(reward_funcs, list)
            rewards = [fitted(r, args.think_end_token) for r in (reward_funcs if several else [reward_funcs])]
            reward_funcs = rewards if several else rewards[0]
        # TRL's, transformers' and PEFT's own checks of what they were given.
        with _vllm_for(args), users(ValueError, TypeError):
            super().__init__(model, reward_funcs, args, *positional, **keywords)

        wanted = {name for reward in self.reward_funcs for name in _parameters(reward)}
        self._rewards_need_entropies = not wanted.isdisjoint(ENTROPIES)
        self._rewards_want_token_entropies = "token_entropies" in wanted
        self._rewards_want_openings = THINKING_OPENED in wanted
        wanted_anyway = args.entropy_metrics or args.entropy_audit_steps > 0
        self._needs_statistics = self.entropy_clip is not None or self._rewards_need_entropies or wanted_anyway
        self._marker = ThinkEndMarker(self._tokenizer, args.think_end_token)
        if self._rewards_need_entropies and not self._marker:
            raise UserValueError(missing_marker(args.think_end_token, self._tokenizer))

        self._shrinks = args.shrink_generation_batch
        if self._shrinks and (reason := self._generation_cannot_shrink()):
            self._shrinks = False
            warnings.warn(f"shrink_generation_batch has no effect with {reason}", stacklevel=2)

        # State of the generation under way, and of the optimisation step under way.
        self._old_policy: TokenStatistics | None = None
        self._awaiting_old_policy_pass = False
        self._generated_lengths: list[int] = []
        self._generated_prompts: list[list[int]] = []
        self._generated_tool_mask: list[list[int]] | None = None
        self._step_batches: list[Any] = []
        self._prepared: deque[dict[str, Any]] = deque()
        self._updates_since_generation = 0
        self._refreshing = False
        self._without_gradient: Tensor | None = None
        self._audit: EntropyAudit | None = None
        self._audited: dict[str, Any] | None = None  # the micro-batch whose loss is under way
        if self.entropy_clip is not None and self.entropy_clip.state_dict():
            self.add_callback(RuleState(self.entropy_clip))
        if args.entropy_audit_steps > 0:
            self._audit = EntropyAudit(args.entropy_audit_steps, self._log_values, lambda: self._process_group)
            self.add_callback(self._audit)

    def _generation_cannot_shrink(self) -> str | None:
        # The first two generate by other means; the others name a cache, or count tokens from the end of the prompt.
        for name in ("use_vllm", "use_transformers_continuous_batching", "cache_implementation", "generation_kwargs"):
            if value := getattr(self.args, name):
                return f"{name}: {value!r}"
        if self._is_vlm:
            return "images, which belong to the rows of the whole batch"
        if self.is_fsdp_enabled or is_deepspeed_zero3_enabled():
            return "sharded weights, where all processes make the same forward passes"
        return None

    @property
    def _process_group(self) -> dist.ProcessGroup | None:
        return dist.group.WORLD if self.accelerator.num_processes > 1 else None

    def load_best_model(self) -> None:
        """What `load_best_model_at_end` asks for, where the training itself was over already."""
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()  # transformers'

    # --- generation: one pass over the old policy, before the rewards ---------------------------------------------

    def _generate(self, prompts: list) -> tuple:
        # TRL tells the rewards nothing of the tool mask, and a tool's output has no phase entropy.
        with self._generation_batch_shrinking():
            generated = super()._generate(prompts)
        self._generated_prompts = generated[0]
        self._generated_lengths = [len(ids) for ids in generated[1]]
        self._generated_tool_mask = generated[2]
        return generated

    @contextmanager
    def _generation_batch_shrinking(self) -> Iterator[None]:
        if not self._shrinks:
            yield
            return
        # TRL calls the public `generate` of the unwrapped model; the instance's own name is found before the class's.
        model = self.accelerator.unwrap_model(self.model_wrapped)
        model.generate = functools.partial(generate_shrinking, model)
        try:
            yield
        finally:
            del model.generate

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
            with self._old_policy_pass_forced():
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
        tensors = (statistics.log_prob, statistics.entropy, statistics.expected_discriminant)
        return output | dict(zip(_STATISTICS, tensors, strict=True))

    def _trl_makes_old_policy_pass(self) -> bool:
        every = self.args.steps_per_generation * self.args.num_iterations
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        return corrected or self.args.gradient_accumulation_steps % every != 0

    @contextmanager
    def _old_policy_pass_forced(self) -> Iterator[None]:
        # During generation TRL reads num_iterations only to decide whether to make this pass, with every tensor (and
        # every image) at hand. More iterations than accumulation steps always mean yes.
        iterations: int = self.args.num_iterations
        self.num_iterations = self.args.gradient_accumulation_steps + 1
        try:
            yield
        finally:
            self.num_iterations = iterations

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self._awaiting_old_policy_pass:  # TRL's first pass of a generation; one over the reference may follow
            self._awaiting_old_policy_pass = False
            kwargs["compute_entropy"] = True
            masked = attention_mask[:, -logits_to_keep:] == 0
            # Under mask_truncated_completions TRL masks whole completions. A reward that asks for their entropies gets
            # them even so; without one nothing reads them, and nothing is spent on them.
            lengths = torch.tensor(self._generated_lengths, device=masked.device).unsqueeze(1)
            generated = torch.arange(logits_to_keep, device=masked.device) < lengths
            if not self._rewards_need_entropies:
                generated &= ~masked
            attention_mask = torch.cat([attention_mask[:, :-logits_to_keep], generated.to(attention_mask.dtype)], dim=1)
            arguments = (model, input_ids, attention_mask, logits_to_keep, *args)
            self._old_policy, aux_loss = self._statistics_pass(arguments, kwargs)
            log_prob, entropy = self._old_policy.log_prob, self._old_policy.entropy
            return log_prob.masked_fill(masked.to(log_prob.device), 0.0), entropy, aux_loss
        if self._refreshing:
            arguments = (model, input_ids, attention_mask, logits_to_keep, *args)
            raise _StatisticsReady(self._statistics_pass(arguments, kwargs)[0])
        random_state = self._random_state() if self._audited is not None else None
        log_prob, entropy, aux_loss = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        if self._audited is not None and random_state is not None and entropy is not None:
            arguments = (input_ids, attention_mask, logits_to_keep, *args)
            self._audit_later(self._audited, entropy.detach(), random_state, arguments, kwargs)
        if self._without_gradient is not None:
            log_prob = torch.where(self._without_gradient, log_prob.detach(), log_prob)
        return log_prob, entropy, aux_loss

    def _statistics_pass(self, arguments: tuple, keywords: dict[str, Any]) -> tuple[TokenStatistics, Tensor | None]:
        """TRL's pass with our statistics in it, ``(B, T)``; its auxiliary loss too."""
        _, _, attention_mask, logits_to_keep, *_ = arguments
        with _statistics_head() as collected:
            log_prob, entropy, aux_loss = super()._get_per_token_logps_and_entropies(*arguments, **keywords)
        expected = torch.zeros_like(entropy)
        scored = attention_mask[:, -logits_to_keep:] != 0
        expected[scored.to(expected.device)] = torch.cat(collected).to(expected.device)
        return TokenStatistics(log_prob, entropy, expected), aux_loss

    def _refreshed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The micro-batch with the statistics of the policy as it is now; TRL's old log-probabilities stay."""
        state = self._random_state()
        self._refreshing = True
        try:
            # TRL's loss knows which tensors (images, token types) the forward takes, and is left right after it.
            with torch.no_grad(), state.again():
                super()._compute_loss(self.model, inputs)
        except _StatisticsReady as ready:
            now = ready.statistics
            return inputs | dict(zip(_STATISTICS, (now.log_prob, now.entropy, now.expected_discriminant), strict=True))
        finally:
            self._refreshing = False
        raise RuntimeError(f"trl {trl.__version__} computed a loss without a pass over the policy")

    def _random_state(self) -> RandomState:
        return RandomState({parameter.device for parameter in self.model.parameters()})

    def _audit_later(
        self,
        inputs: dict[str, Any],
        before: Tensor,
        random_state: RandomState,
        arguments: tuple,
        keywords: dict[str, Any],
    ) -> None:
        inside = super()._get_per_token_logps_and_entropies  # no such `super()` within the function below

        def entropy_now() -> Tensor:
            # In the loss's own dropout masks; then the random state is put back, and the run goes on as it would have.
            with torch.no_grad(), random_state.again():
                return inside(self.model, *arguments, **keywords)[1]

        batch = _micro_batch(inputs)
        predicted = predicted_entropy_change(batch.statistics, batch.advantages, batch.mask)
        phases = dict(zip(PHASES, self._marker.phases(inputs["completion_ids"], batch.mask), strict=True))
        assert self._audit is not None
        self._audit.add(
            AuditedBatch(predicted, before, batch.advantages, batch.mask, phases, entropy_now, inputs.get(_UPDATE))
        )

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Tensor:
        completions = [
            self._reward_text(completion, ids) for completion, ids in zip(completions, completion_ids_list, strict=True)
        ]
        columns: dict[str, list] = {}
        if self._rewards_want_openings:
            columns[THINKING_OPENED] = [self._marker.opened(ids) for ids in self._generated_prompts]
        if self._old_policy is not None:
            columns["phase_entropies"] = self._phase_entropies(completion_ids_list)
            if self._rewards_want_token_entropies:
                on_cpu = self._old_policy.entropy.cpu()
                columns["token_entropies"] = [
                    row[: len(ids)].clone() for row, ids in zip(on_cpu, completion_ids_list, strict=True)
                ]
        if columns:
            # TRL hands each key of an example to the rewards as a column.
            inputs = [
                example | {name: column[i] for name, column in columns.items()} for i, example in enumerate(inputs)
            ]
        not_finite = dict.fromkeys(self.reward_func_names, 0)
        rewards = self.reward_funcs

        def count(name: str, values: int) -> None:
            not_finite[name] += values

        self.reward_funcs = [
            checked(reward, name, functools.partial(count, name))
            for reward, name in zip(rewards, self.reward_func_names, strict=True)
        ]
        try:
            scores = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        finally:
            self.reward_funcs = rewards
        self._log_not_finite(not_finite)
        return scores

    def _log_not_finite(self, counts: dict[str, int]) -> None:
        total = torch.tensor(list(counts.values()), device=self.accelerator.device)
        if self._process_group is not None:
            dist.all_reduce(total, group=self._process_group)
        for name, values in zip(counts, total.tolist(), strict=True):
            if values:
                self._log_values({f"rewards/{name}/not_finite": float(values)})
                warnings.warn(
                    f"rewards: {name} returned NaN or an infinity, which is taken for None (cannot be scored) and "
                    f"counted in rewards/{name}/not_finite",
                    stacklevel=2,
                )

    def _reward_text(self, completion: Any, ids: list[int]) -> Any:
        """What the rewards read of a completion; a conversation with tools is TRL's to take apart."""
        if isinstance(completion, str):
            return self._marker.reward_text(completion, ids)
        if len(completion) != 1 or not isinstance(text := completion[0].get("content"), str):
            return completion
        read = self._marker.reward_text(text, ids)
        return completion if read == text else [completion[0] | {"content": read}]

    def _phase_entropies(self, completion_ids_list: list[list[int]]) -> list[tuple[float, float]]:
        assert self._old_policy is not None
        entropy = self._old_policy.entropy
        ids = torch.zeros(entropy.shape, dtype=torch.long)
        mask = torch.zeros(entropy.shape, dtype=torch.bool)
        for row, completion in enumerate(completion_ids_list):
            ids[row, : len(completion)] = torch.tensor(completion)
            own = True if self._generated_tool_mask is None else torch.tensor(self._generated_tool_mask[row]).bool()
            mask[row, : len(completion)] = own
        thinking, answer = self._marker.phases(ids.to(entropy.device), mask.to(entropy.device))
        return phase_means(entropy, thinking, answer)

    def _log_phases(self, output: Mapping[str, Any], entropy: Tensor | None) -> None:
        thinking, answer = self._marker.phases(output["completion_ids"], _loss_mask(output))
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
            decision = decide(self.entropy_clip, [_micro_batch(inputs)], self._process_group, apply=False)
            self._log_values(decision.metrics)
            return inputs
        if not self._prepared:
            batches, self._step_batches = self._step_batches or [generation_batch], []
            self._prepared.extend(self._prepare_step(batches))
        return self._prepared.popleft()

    def _prepare_step(self, batches: list[Any]) -> list[dict[str, Any]]:
        """All micro-batches of one optimisation step, clipped by what they and those of the other ranks hold."""
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
            prepared = [self._refreshed(x) if update > 1 else x for x, update in zip(prepared, updates, strict=True)]
        decision = decide(self.entropy_clip, [_micro_batch(inputs) for inputs in prepared], self._process_group)
        self._log_values(decision.metrics)
        if self.args.steps_per_generation * self.args.num_iterations > self.args.gradient_accumulation_steps:
            prepared = self._by_update(prepared, updates, decision.metrics)
        if self.entropy_clip is None:
            return prepared
        return [self._clipped(inputs, keep) for inputs, keep in zip(prepared, decision.keep, strict=True)]

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
        return [inputs | {_UPDATE: updates[0]} for inputs in prepared]

    def _clipped(self, inputs: dict[str, Any], keep: Tensor) -> dict[str, Any]:
        # A new dict: TRL keeps the original for the next iteration, whose batch may be another one.
        if self.importance_sampling_level == "sequence" or self.loss_type == "vespo":
            # The ratio (VESPO: the weight) of a sequence holds every token's log-probability and one advantage, so a
            # token leaves the gradient only there.
            return inputs | {_DROPPED: ~keep}
        return inputs | {"advantages": torch.where(keep, per_token(inputs["advantages"], keep), 0.0)}

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._without_gradient = inputs.get(_DROPPED)
        if self._audit is not None and self.model.training and self._audit.due(self.state.global_step):
            self._audited = inputs
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._without_gradient = self._audited = None


class _StatisticsReady(Exception):
    """Carries the statistics out of TRL's loss, of which only the forward was wanted."""

    def __init__(self, statistics: TokenStatistics) -> None:
        super().__init__()
        self.statistics = statistics


# What `help()` and editors show: TRL's own arguments.
EntropyGRPOTrainer.__signature__ = inspect.signature(GRPOTrainer)


@contextmanager
def _vllm_for(args: EntropyGRPOConfig) -> Iterator[None]:
    """TRL's own vLLM backend, but for a CPU, whose weights it cannot renew. (Without vLLM TRL says what is missing.)"""
    if not args.use_vllm or args.device.type != "cpu" or not is_vllm_available():
        yield
        return
    from entropy_rft.training.vllm_cpu.trainer_side import CPUVLLMGeneration

    with _exchanged(trl_trainer, "VLLMGeneration", CPUVLLMGeneration):
        yield


@contextmanager
def _statistics_head() -> Iterator[list[Tensor]]:
    """Let TRL's fused LM head compute our statistics; yields the list that collects the expected discriminants.

    TRL finds the head's weight, gathers it (ZeRO-3, FSDP2), and knows each family's soft cap and logit scale; only the
    kernel behind it is exchanged. It cannot give Σπ² log π, and ours needs no second product for it.
    """
    collected: list[Tensor] = []

    class StatisticsHead:
        @staticmethod
        def apply(hidden, weight, bias, targets, temperature, _chunk, softcap=None, scale=1.0, _outputs=()):
            product = torch.get_autocast_dtype(hidden.device.type)
            dtype = product if torch.is_autocast_enabled(hidden.device.type) else hidden.dtype
            statistics = fused_token_statistics(
                hidden,
                weight,
                targets,
                bias=bias,
                temperature=temperature,
                logit_softcap=softcap,
                logit_scale=scale,
                product_dtype=None if dtype == torch.float32 else dtype,
            )
            collected.append(statistics.expected_discriminant)
            return statistics.log_prob, statistics.entropy, None, None, None

    with (
        _exchanged(trl_utils, "_ChunkedLogProbFunction", StatisticsHead),
        # TRL scores only the labelled positions where this says so, and every position (prompts, padding) elsewhere.
        _exchanged(trl_utils, "_use_triton", lambda device: True),
    ):
        yield collected


@contextmanager
def _exchanged(module: Any, name: str, value: Any) -> Iterator[None]:
    missing = object()
    original = module.__dict__.get(name, missing)
    setattr(module, name, value)
    try:
        yield
    finally:
        if original is missing:
            delattr(module, name)
        else:
            setattr(module, name, original)


def _loss_mask(inputs: Mapping[str, Any]) -> Tensor:
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


def _micro_batch(inputs: Mapping[str, Any]) -> MicroBatch:
    statistics = TokenStatistics(*(inputs[name] for name in _STATISTICS))
    advantages, mask = inputs["advantages"], _loss_mask(inputs)
    if _DROPPED in inputs:
        advantages = torch.where(inputs[_DROPPED], 0.0, per_token(advantages, mask))
    return MicroBatch(statistics, advantages, mask)


def _parameters(reward: Any) -> set[str]:
    if isinstance(reward, torch.nn.Module):
        return set()
    return parameters_of(reward)


def _warn_outside_tested_trl() -> None:
    first, end = map(Version, TESTED_TRL)
    # By the release: a development version of the end is outside already.
    if not first.release <= Version(trl.__version__).release < end.release:
        warnings.warn(
            f"trl {trl.__version__} is outside the range that entropy_rft is tested with (>={first},<{end}); "
            "expect errors or silent differences",
            stacklevel=3,
        )
