"""Traces of a model's own answers: how often right, how long, how sure, and the hidden state of each question."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from entropy_rft.difficulty.states import check_layer, fingerprint, question_states
from entropy_rft.difficulty.store import ChunkStore, begun_with, check_shard, chunk_seed
from entropy_rft.difficulty.traces import write_card
from entropy_rft.effort import checked_effort
from entropy_rft.sampling import (
    Completion,
    ThinkEndMarker,
    check_settings,
    encode_prompt,
    progress_bar,
    right_and_scored,
    score_completions,
    verdicts,
)
from entropy_rft.sampling.completion import check_prompts
from entropy_rft.sampling.identity import digest, question_id
from entropy_rft.sampling.records import CompletionRecord, record_of
from entropy_rft.tags import THINK_END
from entropy_rft.tasks import level_of, task_rows


class SamplerLike(Protocol):
    """``sample(prompts, samples=..., temperature=..., ...)``, as `TransformersSampler` and `OpenAISampler` have it."""

    def sample(self, *prompts: Any, **settings: Any) -> list[list[Completion]]: ...  # the samplers define the names


@dataclass(frozen=True)
class Collected:
    """Progress of a collection: questions that this call added, that are on the disk, and all questions."""

    added: int
    done: int
    total: int


def collect_traces(
    model: Any,
    tokenizer: Any,
    task: Any,
    output_dir: str | os.PathLike[str],
    *,
    sampler: SamplerLike,
    sampler_name: str = "transformers",
    served_model: str | None = None,
    model_name: str | None = None,
    source: Mapping[str, Any] | None = None,
    level: str | None = None,
    samples: int = 10,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 1024,
    effort: Mapping[str, Any] | None = None,
    seed: int = 0,
    layer: int = -1,
    think_end_token: str = THINK_END,
    batch_size: int = 16,
    chunk_size: int = 32,
    shard: int = 0,
    num_shards: int = 1,
    progress: bool = True,
) -> Collected:
    """Answer every question of `task` `samples` times and write the traces.

    The work is done chunk by chunk. The same call resumes a killed collection: chunks that are on the disk are not made
    again. The random numbers of a chunk depend on its number alone, so the result is the same as without the
    interruption.

    Args:
        model: scores the answers and gives the hidden states; the model that `sampler` samples from.
        tokenizer: its tokenizer.
        task: has `dataset`, `reward_funcs`, `name` and `split`.
        output_dir: the traces' directory; `datasets.load_dataset` reads it.
        sampler: samples the answers.
        sampler_name: its name in the settings: the same seed gives other answers with another sampler.
        served_model: the model's name on the server, if a server answers: traces of two models are not mixed.
        model_name: the model's name in the traces.
        source: the arguments with which `load_task` makes the task again; `probe evaluate` needs them.
        level: difficulty level of all questions; by default the task's column `difficulty` or `level`.
        samples, temperature, top_p, max_tokens, seed: of sampling.
        effort: the last four fields of a strategy, as far as they are set, by their names. They shape the answers; the
            hidden state stays that of the plain prompt, which is what a probe sees when it is asked.
        layer: of the hidden state; see `question_states`.
        think_end_token: the text that ends the thinking.
        batch_size: answers scored at once.
        chunk_size: questions in a chunk; a killed process loses at most one chunk.
        shard: this process's number, from 0.
        num_shards: number of processes.
        progress: show a bar, on a terminal.

    Raises:
        ValueError: an argument is out of range, or the directory was started with other settings; one line.
    """
    check_settings(samples, temperature, top_p, max_tokens, batch_size)
    check_shard(shard, num_shards)
    check_layer(model, layer)
    asked = checked_effort(**(effort or {}))
    rows = task_rows(task)
    check_prompts(tokenizer, (row["prompt"] for row in rows))
    marker = ThinkEndMarker(tokenizer, think_end_token)
    settings: dict[str, Any] = {
        "model": model_name or str(getattr(model, "name_or_path", "")) or type(model).__name__,
        "fingerprint": fingerprint(model, like=begun_with(output_dir)),
        "width": int(model.config.get_text_config().hidden_size),
        "layer": layer,
        "task": dict(source or {"name": task.name, "split": task.split}),
        "digest": digest(rows),
        "level": level,
        "sampler": sampler_name,
        **({} if served_model is None else {"served_model": served_model}),
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
        "think_end_token": think_end_token,
        **asked,
    }
    store = ChunkStore(output_dir, settings, len(rows), chunk_size)
    schema = trace_schema(rows, settings["width"])
    added = 0
    write_card(store.directory, store.settings, store.done())
    left = sum(len(store.span(chunk)) for chunk in store.missing(shard, num_shards))
    with progress_bar("questions", left, progress) as advance:
        for chunk in store.missing(shard, num_shards):
            chosen = [rows[index] for index in store.span(chunk)]
            advance(0, f"chunk {chunk + 1} of {store.chunks}: answering")
            groups = sampler.sample(
                [row["prompt"] for row in chosen],
                samples=samples,
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_tokens,
                **asked,
                seed=chunk_seed(seed, chunk),
                progress=False,
            )
            right = verdicts(task.reward_funcs[0], chosen, groups, marker)
            advance(0, f"chunk {chunk + 1} of {store.chunks}: scoring")
            flat = [completion for group in groups for completion in group]
            scored = iter(score_completions(model, flat, batch_size=batch_size))
            records = [[record_of(completion, next(scored), marker) for completion in group] for group in groups]
            # As the sampler encoded them, so that the state is of exactly the prompt that was answered. Variables of
            # the template are a strategy's: the probe is asked before there is one.
            prompt_ids = [group[0].prompt_ids for group in groups]
            if {"reasoning_effort", "chat_template_kwargs"} & asked.keys():
                own = getattr(sampler, "chat_template_kwargs", None)
                prompt_ids = [encode_prompt(tokenizer, row["prompt"], own) for row in chosen]
            states = question_states(model, prompt_ids, layer)
            store.write(
                chunk,
                [
                    _trace(index, row, len(ids), state.numpy(), verdict, group, level)
                    for index, row, ids, state, verdict, group in zip(
                        store.span(chunk), chosen, prompt_ids, states, right, records, strict=True
                    )
                ],
                schema,
            )
            added += len(chosen)
            write_card(store.directory, store.settings, store.done())  # so that a killed collection has one too
            advance(len(chosen), "")
    return Collected(added, store.done(), len(rows))


def _trace(
    index: int,
    row: Mapping[str, Any],
    prompt_tokens: int,
    state: Any,
    right: Sequence[bool | None],
    records: Sequence[CompletionRecord],
    level: str | None,
) -> dict[str, Any]:
    known, scored = right_and_scored(right)
    own = level_of(row) if level is None else level
    trace: dict[str, Any] = {
        "index": index,
        "id": question_id(row),
        "prompt": row["prompt"],
        "solution": None if row.get("solution") is None else str(row["solution"]),
        "level": None if own is None else str(own),
        "accuracy": known / scored if scored else None,
        "tokens": sum(record.tokens for record in records) / len(records),
        "prompt_tokens": prompt_tokens,
        "correct": list(right),
        "answer_tokens": [record.tokens for record in records],
        "truncated": [record.truncated for record in records],
        "hidden_state": state,
    }
    for name in _ENTROPIES:
        values = [record.mean_entropies[name] for record in records]
        there = [value for value in values if value is not None]
        trace[name] = sum(there) / len(there) if there else None
        trace[f"{name}_each"] = values
    return trace


_ENTROPIES = ("entropy", "entropy_thinking", "entropy_answer")


def trace_schema(rows: Sequence[Mapping[str, Any]], width: int) -> Any:
    """pyarrow's schema of the traces of `rows`; `width` is the hidden state's."""
    import pyarrow as pa  # type: ignore[import-untyped]

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    fields = [
        ("index", pa.int64()),
        ("id", pa.string()),
        ("prompt", pa.string() if isinstance(rows[0]["prompt"], str) else pa.list_(message)),
        ("solution", pa.string()),
        ("level", pa.string()),
        ("accuracy", pa.float64()),
        *((name, pa.float64()) for name in _ENTROPIES),
        ("tokens", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("correct", pa.list_(pa.bool_())),
        ("answer_tokens", pa.list_(pa.int64())),
        ("truncated", pa.list_(pa.bool_())),
        *((f"{name}_each", pa.list_(pa.float64())) for name in _ENTROPIES),
        ("hidden_state", pa.list_(pa.float32(), width)),
    ]
    return pa.schema(fields)
