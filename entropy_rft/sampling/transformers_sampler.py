"""Completions from a transformers model in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from entropy_rft.effort import checked_effort, template_variables
from entropy_rft.entropy.precision import wide
from entropy_rft.errors import UserValueError
from entropy_rft.models.adapters import under_adapter
from entropy_rft.sampling.completion import Completion, Prompt, check_settings, encode_prompt
from entropy_rft.sampling.progress import progress_bar
from entropy_rft.sampling.shrinking import generate_shrinking
from entropy_rft.sampling.thinking import ThinkingBudget, ThinkingTags
from entropy_rft.tags import THINK_END


class TransformersSampler:
    """Sample with `model.generate`.

    Every completion has a random stream of its own, derived from the seed, the prompt's index and the sample's index.
    So the global random state is neither read nor changed, and a completion does not depend on the batch size, on
    which prompts share its batch or on how many samples are asked for (up to the rounding of batched matrix products).

    Args:
        model: a causal language model, or a PEFT model whose adapters act inside it (LoRA, not prompt tuning). It is
            put in evaluation mode while it samples; then its mode is restored.
        tokenizer: its tokenizer. Padding is done here: its padding side is not used.
        batch_size: completions generated at the same time.
        device: where the model is moved to; ``None`` leaves it where it is.
        chat_template_kwargs: further arguments of the chat template, as in TRL's config of the same name.
        think_end_token: the text that ends the thinking, which a limit on the thinking forces.

    Raises:
        ValueError: `batch_size` is below 1.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        think_end_token: str = THINK_END,
    ) -> None:
        check_settings(batch_size=batch_size)
        # The adapter's layers sit inside the base model, whose `generate` honours the generation config given to it.
        self.model = under_adapter(model)
        if device is not None:
            self.model.to(device)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.think_end_token = think_end_token

    @property
    def eos_token_ids(self) -> list[int]:
        """The tokens that end a completion: the model's and the tokenizer's, as in TRL."""
        ids = self.model.generation_config.eos_token_id
        ids = [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
        own = self.tokenizer.eos_token_id
        return ids if own is None or own in ids else [own, *ids]

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 1024,
        seed: int = 0,
        progress: bool = True,
        thinking_tokens: int | None = None,
        reasoning_effort: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> list[list[Completion]]:
        """Sample `samples` completions of each prompt.

        Args:
            prompts: conversations or plain texts.
            samples: completions per prompt.
            temperature: divides the logits; 0 is greedy decoding, done once per prompt and repeated.
            top_p: sample from the smallest set of tokens that holds this probability, after the temperature.
            max_tokens: limit on one completion, in tokens.
            seed: of the completions' random streams.
            progress: show a bar on stderr, if that is a terminal.
            thinking_tokens: after so many tokens of thinking its end is forced (:mod:`entropy_rft.sampling.thinking`).
            reasoning_effort, chat_template_kwargs: variables of the chat template; those given here win.
            extra_body: of these fields this sampler knows `top_p`, which wins.

        Returns:
            For each prompt, in the order given, its completions.

        Raises:
            ValueError: an argument is out of range, a prompt cannot be encoded, or `extra_body` has another field.
            FloatingPointError: the model's logits are not finite.
        """
        checked_effort(thinking_tokens, reasoning_effort, chat_template_kwargs, extra_body)
        for name, value in (extra_body or {}).items():
            if name != "top_p":
                raise UserValueError(
                    f"extra_body: sampling with transformers has no {name!r}: measure with --vllm or --url instead"
                )
            top_p = value
        check_settings(samples, temperature, top_p, max_tokens)
        tags = None if thinking_tokens is None else ThinkingTags(self.tokenizer, self.think_end_token)
        variables = {**self.chat_template_kwargs, **template_variables(reasoning_effort, chat_template_kwargs)}
        prompt_ids = [encode_prompt(self.tokenizer, prompt, variables) for prompt in prompts]
        drawn = 1 if temperature == 0 else samples
        # Rows of similar length share a batch, so that little of it is padding; the longest go first, so that a batch
        # which does not fit in memory fails at once.
        rows = [(prompt, sample) for prompt in range(len(prompt_ids)) for sample in range(drawn)]
        rows.sort(key=lambda row: -len(prompt_ids[row[0]]))
        results: dict[tuple[int, int], Completion] = {}
        with _generating(self.model), progress_bar("sampling", len(rows), progress) as advance:
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                ids = [prompt_ids[prompt] for prompt, _ in batch]
                uniforms = None
                if temperature > 0:
                    uniforms = torch.stack([_stream(seed, *row, max_tokens) for row in batch])
                picker = _TokenPicker(
                    uniforms,
                    max(map(len, ids)),
                    temperature,
                    top_p,
                    lambda token: advance(0, f"token {token} of at most {max_tokens}"),
                )
                budget = None
                if tags is not None and thinking_tokens is not None:
                    budget = ThinkingBudget(tags, ids, max(map(len, ids)), thinking_tokens)
                for row, completion in zip(batch, self._generate(ids, max_tokens, picker, budget), strict=True):
                    results[row] = completion
                advance(len(batch), "")
        return [[results[prompt, sample % drawn] for sample in range(samples)] for prompt in range(len(prompt_ids))]

    def _generate(
        self, prompt_ids: list[list[int]], max_tokens: int, picker: _TokenPicker, budget: ThinkingBudget | None
    ) -> list[Completion]:
        eos = self.eos_token_ids
        pad = next(i for i in (self.tokenizer.pad_token_id, *eos, 0) if i is not None)
        width = max(map(len, prompt_ids))
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompt_ids])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids])
        device = self.model.get_input_embeddings().weight.device
        # The model's own generation config must not add a penalty or a top-k of its own: `generate` fills whatever is
        # unset from it, so it is replaced for the call.
        config = GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, eos_token_id=eos or None, pad_token_id=pad, disable_compile=True
        )
        processors: list[_TokenPicker | ThinkingBudget] = [picker] if budget is None else [picker, budget]

        def keep(rows: Tensor) -> None:
            for processor in processors:
                processor.keep(rows)

        own, self.model.generation_config = self.model.generation_config, config
        try:
            output = generate_shrinking(
                self.model,
                input_ids=input_ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                on_shrink=keep,
                logits_processor=LogitsProcessorList(processors),
            )
        finally:
            self.model.generation_config = own
        picker.check()
        completions = []
        for ids, row in zip(prompt_ids, output[:, width:].tolist(), strict=True):
            end = next((i + 1 for i, token in enumerate(row) if token in eos), None)
            text = self.tokenizer.decode(row[:end], skip_special_tokens=True)
            completions.append(Completion(ids, row[:end], text, truncated=end is None))
        return completions


class _TokenPicker(LogitsProcessor):
    """Leaves one token per row, which greedy decoding takes: the first whose CDF exceeds the row's uniform number."""

    def __init__(
        self,
        uniforms: Tensor | None,  # (rows, max_tokens) in [0, 1); None is greedy
        prompt_width: int,
        temperature: float,
        top_p: float,
        on_step: Callable[[int], None],
    ) -> None:
        self.uniforms = uniforms
        self.prompt_width = prompt_width
        self.temperature = temperature
        self.top_p = TopPLogitsWarper(top_p) if top_p < 1 else None
        self.on_step = on_step
        self.broken: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt_width
        self.on_step(step + 1)
        # Read once per batch, in `check`: reading it here would wait for the device at every token.
        broken = scores.isnan().any() | ~scores.amax(-1).isfinite().all()
        self.broken = broken if self.broken is None else self.broken | broken
        if self.uniforms is None:
            return scores
        logits = scores.float() / self.temperature
        if self.top_p is not None:
            logits = self.top_p(input_ids, logits)
        # float64 where the device has it: rounding in float32 over 150,000 tokens would shift the tail's probabilities.
        cdf = logits.softmax(-1, dtype=wide(logits)).cumsum(-1)
        below_one = 1 - torch.finfo(cdf.dtype).eps  # a float64 just below 1 is 1 in float32
        uniforms = self.uniforms[:, step : step + 1].to(cdf.dtype).clamp(max=below_one)
        targets = uniforms.to(cdf.device) * cdf[:, -1:]
        # The first index whose CDF exceeds the target: a token of probability 0 never is.
        picked = torch.searchsorted(cdf, targets, right=True).clamp_(max=cdf.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter_(-1, picked, 0.0)

    def keep(self, rows: Tensor) -> None:
        """The batch has shrunk to these of its rows."""
        if self.uniforms is not None:
            self.uniforms = self.uniforms[rows.cpu()]

    def check(self) -> None:
        if self.broken is not None and bool(self.broken):
            raise FloatingPointError("the model's logits are NaN or infinite: check its weights and dtype")


def _stream(seed: int, prompt: int, sample: int, max_tokens: int) -> Tensor:
    """Uniform numbers in [0, 1) of one completion, (max_tokens,) float64 on the CPU."""
    digest = hashlib.blake2b(f"{seed}/{prompt}/{sample}".encode(), digest_size=8).digest()
    # manual_seed takes a signed 64-bit number
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(max_tokens, dtype=torch.float64, generator=generator)


@contextmanager
def _generating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; the model's mode is restored at the end, also after an error or Ctrl-C."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
