"""The demo: three methods from one checkpoint, measured on the same held-out questions, in one report."""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from datasets.utils.logging import disable_progress_bar
from rich.console import Console
from transformers import PrinterCallback, TrainerCallback

from entropy_rft.assets import TINY_REASONER
from entropy_rft.errors import UserValueError
from entropy_rft.evaluation import Evaluation, evaluate_model, evaluation_table
from entropy_rft.evaluation.report import write_report
from entropy_rft.evaluation.run import load_run
from entropy_rft.reporting.cells import number, percent
from entropy_rft.run_files import EVALUATION, REPORT
from entropy_rft.sampling import load_model_and_tokenizer, progress_bar
from entropy_rft.sampling.progress import duration
from entropy_rft.signals import Terminated
from entropy_rft.tasks import load_task
from entropy_rft.training.launch import find_recipe
from entropy_rft.training.lock import DirectoryLock
from entropy_rft.training.recipe import RecipeParser
from entropy_rft.training.run import TrainingRun
from entropy_rft.training.run_directory import RunDirectory

MAX_TOKENS = 256  # of a completion; the longest of the tiny reasoner's take about 200
METHODS = {"grpo": "GRPO", "clip_b": "Clip_B", "clip_b_pear": "Clip_B + PEAR"}
START = "start"


class Demo:
    """Train each method, evaluate it and the start, report.

    Args:
        output_dir: one run directory per method, and ``report.html``.
        steps: optimisation steps of each method; None: as in the recipes.
        questions: held-out questions; the levels of difficulty alternate.
        samples: completions per question.
        seed: of training and of sampling.

    Raises:
        ValueError: an argument is out of range, or matplotlib is missing.
    """

    def __init__(self, output_dir: str, steps: int | None, questions: int, samples: int, seed: int) -> None:
        for name, value in (("steps", steps), ("questions", questions), ("samples", samples)):
            if value is not None and value < 1:
                raise UserValueError(f"{name} must be at least 1, got {value}")
        if importlib.util.find_spec("matplotlib") is None:
            raise UserValueError('the report needs matplotlib: pip install "entropy_rft[report]"')
        self.output_dir = Path(output_dir)
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise UserValueError(f"output_dir {output_dir!r} is a file")
        self.steps = steps
        self.seed = seed
        self.samples = samples
        self.started = time.monotonic()
        self.console = Console()
        self.task = load_task("arithmetic", split="test", limit=questions)
        self.rows: list[tuple[str, Evaluation]] = []

    def run(self) -> int:
        """Run the demo. On Ctrl-C and SIGTERM the finished methods are still reported."""
        lock = DirectoryLock(self.output_dir)  # for all run directories, also between two trainings
        lock.acquire()
        try:
            return self._run()
        finally:
            lock.release()

    def _run(self) -> int:
        stopped: BaseException | None = None
        with _quiet_libraries():
            try:
                self._evaluate_start()
                for name, title in METHODS.items():
                    self._train(name, title)
            except (KeyboardInterrupt, Terminated) as signal:
                stopped = signal
        self._report()
        if stopped is not None:
            raise stopped
        return 0

    def _evaluate_start(self) -> None:
        self.console.print("[bold]start[/bold]: the embedded tiny reasoner, before any training")
        directory = RunDirectory(self.output_dir / START)
        directory.set_aside()
        recipe = {"model_name_or_path": "tiny_reasoner"}
        directory.describe(recipe, seed=self.seed, command=sys.argv, device="cpu", name=START)
        directory.keep_until(0)
        self._evaluate(str(TINY_REASONER), directory.path, START)

    def _train(self, name: str, title: str) -> None:
        flags = ["--output_dir", str(self.output_dir / name), "--seed", str(self.seed), "--run_name", title]
        flags += ["--disable_tqdm", "true", "--save_strategy", "no", "--report_to", "none"]
        if self.steps is not None:
            flags += ["--max_steps", str(self.steps)]
        recipe = RecipeParser().parse(["--config", str(find_recipe(f"tiny/{name}.yaml")), *flags])
        self.console.print(f"[bold]{title}[/bold]: {recipe.training.max_steps} steps")
        with progress_bar("training", recipe.training.max_steps) as advance:
            run = TrainingRun(recipe, command=sys.argv, callbacks=[_Advance(advance)])
            run.trainer.remove_callback(PrinterCallback)
            run.train()
        self._evaluate(recipe.training.output_dir, run.directory.path, title)

    def _evaluate(self, model_dir: str, directory: Path, title: str) -> None:
        model, tokenizer = load_model_and_tokenizer(model_dir, device="cpu")
        evaluation = evaluate_model(
            model,
            tokenizer,
            self.task,
            samples=self.samples,
            temperature=1.0,
            max_tokens=MAX_TOKENS,
            batch_size=256,
            seed=self.seed,
            model_name=title,
        )
        evaluation.save(directory / EVALUATION)
        self.rows.append((title, evaluation))
        accuracy, thinking = percent(evaluation.avg_at_k), number(evaluation.thinking_tokens, 0)
        self.console.print(f"  {accuracy} % correct, {thinking} thinking tokens", highlight=False)

    def _report(self) -> None:
        if not self.rows:
            return
        took = duration(time.monotonic() - self.started)
        complete = len(self.rows) > len(METHODS)
        note = f"total time: {took}" if complete else f"stopped after {took}"
        self.console.print(evaluation_table(self.rows, note))
        finished = {title for title, _ in self.rows}
        names = [START, *(name for name, title in METHODS.items() if title in finished)]
        page = self.output_dir / REPORT
        write_report([load_run(self.output_dir / name) for name in names], page, title="entropy_rft demo")
        self.console.print(f"report: {page.resolve()}", highlight=False, soft_wrap=True)


class _Advance(TrainerCallback):
    """Advances a progress bar with the training, and shows the reward and the entropy behind it."""

    def __init__(self, advance: Callable[[int, str], None]) -> None:
        self.advance = advance
        self.note = ""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(1, self.note)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "reward" in logs:
            self.note = f"reward {logs['reward']:.2f}, entropy {logs['entropy']:.2f}"
            self.advance(0, self.note)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Hide the progress bars and warnings of libraries, so that only the demo's own lines are printed."""
    disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("trl").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
        transformers.utils.logging.enable_progress_bar()
