#!/usr/bin/env python
"""Time of a whole optimisation step: EntropyGRPOTrainer (Clip_V with PEAR) against trl.GRPOTrainer, same recipe.

    python scripts/bench_step.py                       # the device that is there, its sizes
    python scripts/bench_step.py --device cpu --hidden 512 --layers 6 --vocabulary 65536

The two trainers take turns in one process, one generation's worth of optimisation steps each. `off-policy` makes two
steps of a generation, so TRL makes its pass over the old policy; `on-policy` makes one, TRL makes none and ours adds
it. Each is timed with completions that are given (TRL's `rollout_func`) and with `generate`. The model is a random
Qwen3 built in place.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench_statistics import RESULTS, environment, write
from transformers import PrinterCallback, TrainerCallback

# Optimisation steps of one generation, and the limit on ours/trl: none where ours has a pass to add.
MODES: dict[str, tuple[int, float | None]] = {"off-policy": (2, 1.03), "on-policy": (1, None)}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--hidden", type=int, help="default: 512; 1024 on CUDA")
    parser.add_argument("--layers", type=int, help="default: 6; 28 on CUDA")
    parser.add_argument("--vocabulary", type=int, help="default: 65,536; 151,936 on CUDA")
    parser.add_argument("--completions", type=int, help="of a generation; default: 8; 64 on CUDA")
    parser.add_argument("--tokens", type=int, help="of the longest completion; default: 96; 1,024 on CUDA")
    parser.add_argument("--repeats", type=int, default=7, help="measured generations of each trainer")
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES), default=list(MODES))
    parser.add_argument("--completions-from", nargs="+", choices=("given", "generate"), default=["given", "generate"])
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--note", default="", help="stored in the result, such as what else the machine was doing")
    parser.add_argument("--output", type=Path, help="default: scripts/results/step-DEVICE.json")
    return sized(parser.parse_args(argv))


def sized(options: argparse.Namespace) -> argparse.Namespace:
    """With the device that is there and its sizes where none were given."""
    import torch

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    sizes = {"hidden": (512, 1024), "layers": (6, 28), "vocabulary": (65_536, 151_936)}
    for name, (cpu, cuda) in (sizes | {"completions": (8, 64), "tokens": (96, 1024)}).items():
        if getattr(options, name) is None:
            setattr(options, name, cuda if options.device == "cuda" else cpu)
    return options


class Turn(TrainerCallback):
    """Lets its trainer make `steps` optimisation steps, then waits while the other one makes its own."""

    def __init__(self, mine: threading.Semaphore, other: threading.Semaphore, steps: int, on_cuda: bool):
        self.mine, self.other, self.steps, self.on_cuda = mine, other, steps, on_cuda
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.pass_seconds: list[float] = []  # of the pass over the old policy in each turn
        self.in_pass = 0.0

    def now(self) -> tuple[float, float]:
        if self.on_cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:
            self.mine.acquire()
            self.in_pass = 0.0
            self.start = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.steps == 0:  # counts the step that has just ended
            wall, cpu = self.now()
            self.wall.append(wall - self.start[0])
            self.cpu.append(cpu - self.start[1])
            self.pass_seconds.append(self.in_pass)
            self.other.release()

    def time_old_policy_pass(self, trainer: Any) -> None:
        import torch

        scored = trainer._get_per_token_logps_and_entropies

        def timed(*positional: Any, **keywords: Any) -> Any:
            if torch.is_grad_enabled():  # a loss
                return scored(*positional, **keywords)
            start = self.now()[0]
            result = scored(*positional, **keywords)
            self.in_pass += self.now()[0] - start
            return result

        trainer._get_per_token_logps_and_entropies = timed


def recipe(options: argparse.Namespace, steps: int, directory: str) -> dict[str, Any]:
    return {
        "output_dir": directory,
        "per_device_train_batch_size": options.completions // steps,
        "steps_per_generation": steps,
        "gradient_accumulation_steps": 1,
        "num_generations": 4,
        "max_completion_length": options.tokens,
        "max_steps": steps * (options.repeats + 1),
        "learning_rate": 1e-6,
        "beta": 0.0,
        "use_cpu": options.device == "cpu",
        "bf16": options.device == "cuda",
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 10**6,
        "disable_tqdm": True,
    }


def even_length(completions: list, **columns: Any) -> list[float]:
    """An arbitrary reward that differs within a group."""
    return [float(len(str(completion)) % 2) for completion in completions]


def given_completions(tokenizer: Any, longest: int, vocabulary: int) -> Callable[[list, Any], dict[str, Any]]:
    """A TRL rollout function: random completions of half to full length, `</think>` after three quarters."""
    import torch

    marker = tokenizer.convert_tokens_to_ids("</think>")

    def rollout(prompts: list, trainer: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(len(prompts))
        ids = []
        for row in range(len(prompts)):
            length = longest - (row % 4) * longest // 8
            completion = torch.randint(10, vocabulary, (length,), generator=generator)
            completion[3 * length // 4] = marker
            ids.append(completion.tolist())
        prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[0.0] * len(row) for row in ids]}

    return rollout


def build(options: argparse.Namespace, ours: bool, steps: int, given: bool, directory: str) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    import entropy_rft
    from entropy_rft import EntropyGRPOConfig, EntropyGRPOTrainer, PEARReward

    tokenizer = AutoTokenizer.from_pretrained(
        Path(entropy_rft.__file__).parent / "assets" / "tiny_reasoner", padding_side="left"
    )
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=max(1, options.hidden // 128),
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    common = recipe(options, steps, directory)
    args = EntropyGRPOConfig(**common, entropy_clip="clip_v") if ours else GRPOConfig(**common)
    rollout = given_completions(tokenizer, options.tokens, options.vocabulary)
    with torch.device(options.device):  # half a billion random numbers take a CPU seconds
        model = Qwen3ForCausalLM(config)
    return (EntropyGRPOTrainer if ours else GRPOTrainer)(
        model=model,
        reward_funcs=PEARReward(even_length) if ours else even_length,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [f"What is {i} + {i + 1}?" for i in range(64)]}),
        processing_class=tokenizer,
        **({"rollout_func": rollout} if given else {}),
    )


def alternate(options: argparse.Namespace, steps: int, given: bool, directory: str) -> dict[str, Turn]:
    """Train both, turn by turn; the first turn of each, with its allocations, is left out."""
    first, second = threading.Semaphore(1), threading.Semaphore(0)
    on_cuda = options.device == "cuda"
    turns = {"trl": Turn(first, second, steps, on_cuda), "ours": Turn(second, first, steps, on_cuda)}
    trainers = {name: build(options, name == "ours", steps, given, directory) for name in turns}
    errors: list[BaseException] = []

    def train(name: str) -> None:
        try:
            trainers[name].train()
        except BaseException as error:
            errors.append(error)
        finally:  # a trainer that has ended, even with an error, must not block the other one
            turns[name].other.release(options.repeats + 2)

    for name, turn in turns.items():
        trainers[name].remove_callback(PrinterCallback)
        trainers[name].add_callback(turn)
        turn.time_old_policy_pass(trainers[name])
    threads = [threading.Thread(target=train, args=(name,)) for name in turns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    for turn in turns.values():
        for times in (turn.wall, turn.cpu, turn.pass_seconds):
            del times[0]
    return turns


def row_of(turns: dict[str, Turn], mode: str, source: str) -> dict[str, Any]:
    ours, trl = turns["ours"], turns["trl"]
    limit = MODES[mode][1]
    ratio = statistics.median(ours.wall) / statistics.median(trl.wall)
    return {
        "mode": mode,
        "completions": source,
        "seconds": {name: turn.wall for name, turn in turns.items()},
        "cpu_seconds": {name: turn.cpu for name, turn in turns.items()},
        "old_policy_pass_seconds": {name: turn.pass_seconds for name, turn in turns.items()},
        "ratio": ratio,
        # Each turn of ours against the turn of TRL's just before it: this reduces the effect of other load on the
        # machine.
        "paired_ratio": statistics.median(o / t for o, t in zip(ours.wall, trl.wall, strict=True)),
        "cpu_ratio": statistics.median(ours.cpu) / statistics.median(trl.cpu),
        "pass_share_of_ours": statistics.median(p / w for p, w in zip(ours.pass_seconds, ours.wall, strict=True)),
        "target": None if limit is None else {"at_most": limit, "met": ratio <= limit},
    }


def show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("mode", "completions", "TRL s (range)", "ours s (range)", "ratio", "paired", "CPU", "pass", "target")
    for row in rows:
        cells = [f"{statistics.median(t):.3f} ({min(t):.3f} to {max(t):.3f})" for t in row["seconds"].values()]
        numbers = [f"{row[name]:.3f}" for name in ("ratio", "paired_ratio", "cpu_ratio", "pass_share_of_ours")]
        target = row["target"]
        verdict = "-" if target is None else f"<= {target['at_most']}: {'met' if target['met'] else 'missed'}"
        table.add_row(row["mode"], row["completions"], *cells, *numbers, verdict)
    Console(width=150).print(table)


def main() -> int:
    options = arguments()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    names = ("hidden", "layers", "vocabulary", "completions", "tokens", "repeats")
    result: dict[str, Any] = {
        "benchmark": "step",
        **environment(options.device, options.note),
        "sizes": {name: getattr(options, name) for name in names},
        "rows": [],
    }
    output = options.output or RESULTS / f"step-{options.device}.json"
    for mode in options.modes:
        for source in options.completions_from:
            with TemporaryDirectory() as directory:
                turns = alternate(options, MODES[mode][0], source == "given", directory)
            result["rows"].append(row_of(turns, mode, source))
            write(output, result)
    show(result["rows"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
