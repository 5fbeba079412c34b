"""Completions from a vLLM engine in this process."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from entropy_rft.effort import checked_effort, template_variables
from entropy_rft.errors import UserValueError, users
from entropy_rft.models.sources import model_source
from entropy_rft.sampling.completion import Completion, Prompt, check_settings, encode_prompt
from entropy_rft.sampling.openai_sampler import request_seed
from entropy_rft.tags import opening_tag


class VLLMSampler:
    """Sample with ``vllm.LLM``, with the interface of `TransformersSampler`.

    The engine loads the weights a second time, in addition to those that score the answers. The prompt is tokenized
    here. The same seed gives the same completions as far as vLLM guarantees it.

    Args:
        model: a directory, a name on the hub, ``modulo_reasoner`` or ``smollm2``; no LoRA adapter.
        tokenizer: of that model.
        dtype: of the weights.
        memory: fraction of the GPU's memory that the engine may take; memory already in use counts.
        device: such as ``cuda:1``, one of the GPUs that this process sees; without a number it is the first.
        chat_template_kwargs: further arguments of the chat template.
        think_end_token: the text that ends the thinking. The engine needs it to limit the thinking; without it
            `thinking_tokens` is refused.
        engine: a ``vllm.LLM`` to use instead of a new one.

    Raises:
        ValueError: vLLM is not installed or cannot be put on the device, the model is an adapter, `memory` is out of
            range, or `think_end_token` has no opening tag.
    """

    def __init__(
        self,
        model: str,
        tokenizer: Any,
        *,
        dtype: str = "auto",
        memory: float = 0.7,
        device: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        think_end_token: str | None = None,
        engine: Any = None,
    ) -> None:
        if not 0 < memory <= 1:
            raise UserValueError(f"memory must be above 0 and at most 1, got {memory}")
        source = model_source(model)
        if (Path(source).expanduser() / "adapter_config.json").is_file():
            raise UserValueError(
                f"model {model!r} is a LoRA adapter: merge it into its base model, or sample without vLLM"
            )
        if engine is None:
            try:
                from vllm import LLM
            except ImportError as error:
                raise UserValueError('a vLLM engine needs vllm: pip install "entropy_rft[vllm]"') from error
            path = Path(source).expanduser()
            name = str(path) if path.is_dir() else source
            kind, _, number = (device or "").partition(":")
            # The engine is a separate process and takes the first GPU by default.
            place: dict[str, Any] = {"device_ids": [int(number)]} if kind == "cuda" and number else {}
            thinking = {} if think_end_token is None else {"reasoning_config": _reasoning_config(think_end_token)}
            try:
                engine = LLM(name, dtype=dtype, gpu_memory_utilization=memory, seed=0, **place, **thinking)
            except TypeError as error:
                if "device_ids" not in str(error):
                    raise
                raise UserValueError(
                    f"this vllm cannot be put on the device {device!r}: install vllm 0.31, or let each process see one "
                    "GPU alone with CUDA_VISIBLE_DEVICES"
                ) from error
        self.engine = engine
        self.tokenizer = tokenizer
        self.chat_template_kwargs = dict(chat_template_kwargs or {})

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
        """Sample `samples` completions of each prompt; arguments and result as in `TransformersSampler.sample`.

        `extra_body` may have every field of vLLM's `SamplingParams`.

        Raises:
            ValueError: an argument is out of range, or a prompt cannot be encoded or is too long for the engine.
            TypeError: `extra_body` has a field that vLLM does not know.
        """
        from vllm import SamplingParams

        check_settings(samples, temperature, top_p, max_tokens)
        checked_effort(thinking_tokens, reasoning_effort, chat_template_kwargs, extra_body)
        variables = {**self.chat_template_kwargs, **template_variables(reasoning_effort, chat_template_kwargs)}
        prompt_ids = [encode_prompt(self.tokenizer, prompt, variables) for prompt in prompts]
        drawn = 1 if temperature == 0 else samples
        common: dict[str, Any] = {"n": drawn, "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
        if thinking_tokens is not None:
            common["thinking_token_budget"] = thinking_tokens
        common |= extra_body or {}
        with users(TypeError, ValueError, prefix="extra_body: ") if extra_body else nullcontext():
            settings = [SamplingParams(**common, seed=request_seed(seed, index)) for index in range(len(prompt_ids))]
        asked = [{"prompt_token_ids": ids} for ids in prompt_ids]
        answers = self.engine.generate(asked, settings, use_tqdm=progress and sys.stderr.isatty()) if asked else []
        groups = [
            [self._completion(ids, output) for output in sorted(answer.outputs, key=lambda output: output.index)]
            for ids, answer in zip(prompt_ids, answers, strict=True)
        ]
        return [[group[sample % drawn] for sample in range(samples)] for group in groups]

    def _completion(self, prompt_ids: list[int], output: Any) -> Completion:
        ids = list(output.token_ids)
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(prompt_ids, ids, text, truncated=output.finish_reason != "stop")


def _reasoning_config(think_end_token: str) -> Any:
    """What vLLM needs to know to limit the thinking."""
    from vllm.config.reasoning import ReasoningConfig

    opening = opening_tag(think_end_token)
    if opening is None:
        raise UserValueError(
            f"vLLM limits a thinking between two tags, and {think_end_token!r} has no opening one: measure "
            "thinking_tokens without --vllm"
        )
    return ReasoningConfig(reasoning_start_str=opening, reasoning_end_str=think_end_token)
