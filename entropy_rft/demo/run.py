"""Trains each method, measures it and the start, and reports."""

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

from entropy_rft.demo.models import MODELS
from entropy_rft.demo.verdict import verdict
from entropy_rft.errors import UserValueError
from entropy_rft.evaluation import Evaluation, evaluate_model, evaluation_table
from entropy_rft.evaluation.report import write_report
from entropy_rft.evaluation.run import load_run
from entropy_rft.models.sources import model_source
from entropy_rft.reporting.cells import number, percent
from entropy_rft.run_files import EVALUATION, REPORT
from entropy_rft.sampling import load_model_and_tokenizer, progress_bar
from entropy_rft.sampling.progress import duration
from entropy_rft.signals import Terminated
from entropy_rft.training.launch import find_recipe
from entropy_rft.training.lock import DirectoryLock
from entropy_rft.training.recipe import Recipe, RecipeParser
from entropy_rft.training.run import TrainingRun, recipe_task
from entropy_rft.training.run_directory import RunDirectory

METHODS = {"grpo": "GRPO", "target": "target", "target_pear": "target + PEAR"}
START = "start"


class Demo:
    """Train each method, evaluate it and the start, report.

    Args:
        output_dir: one run directory per method, and ``report.html``.
        model: a name in `MODELS`.
        steps: optimisation steps of each method; None: as in the recipes.
        questions: held-out questions; the levels of difficulty alternate. None: as in `MODELS`.
        samples: completions per question. None: as in `MODELS`.
        seed: of training and of sampling.

    Raises:
        ValueError: an argument is out of range, the model was not fetched, or a package is missing.
    """

    def __init__(
        self,
        output_dir: str,
        *,
        model: str,
        steps: int | None = None,
        questions: int | None = None,
        samples: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("steps", steps), ("questions", questions), ("samples", samples)):
            if value is not None and value < 1:
                raise UserValueError(f"{name} must be at least 1, got {value}")
        if importlib.util.find_spec("matplotlib") is None:
            raise UserValueError('the report needs matplotlib: pip install "entropy_rft[report]"')
        if model not in MODELS:
            raise UserValueError(f"the demo has the models {' and '.join(MODELS)}, not {model!r}")
        self.model = MODELS[model]
        self.start = model_source(model)  # raises where the model was not fetched
        self.output_dir = Path(output_dir)
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise UserValueError(f"output_dir {output_dir!r} is a file")
        self.seed = seed
        self.samples = samples or self.model.samples
        self.started = time.monotonic()
        self.console = Console()
        with _quiet_libraries():
            self.recipes = {name: self._recipe(name, title, steps) for name, title in METHODS.items()}
            first = next(iter(self.recipes.values()))
            self.task = recipe_task(first, "test", questions or self.model.questions)
        self.max_tokens: int = first.training.max_completion_length
        self.think_end_token: str = first.training.think_end_token
        self.rows: list[tuple[str, Evaluation]] = []

    def _recipe(self, name: str, title: str, steps: int | None) -> Recipe:
        flags = ["--output_dir", str(self.output_dir / name), "--seed", str(self.seed), "--run_name", title]
        flags += ["--disable_tqdm", "true", "--save_strategy", "no", "--report_to", "none"]
        if steps is not None:
            flags += ["--max_steps", str(steps)]
        return RecipeParser().parse(["--config", str(find_recipe(f"{self.model.recipes}/{name}.yaml")), *flags])

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
                    directory = self.output_dir / name
                    self._evaluate(str(directory), directory, title)
            except (KeyboardInterrupt, Terminated) as signal:
                stopped = signal
        self._report()
        if stopped is not None:
            raise stopped
        return 0

    def _evaluate_start(self) -> None:
        steps = next(iter(self.recipes.values())).training.max_steps
        size = f"steps: {steps}; held-out questions: {len(self.task.dataset)}, each {self.samples} times"
        self.console.print(f"{self.model.name}: {self.model.about}", highlight=False, soft_wrap=True)
        self.console.print(size, highlight=False, soft_wrap=True)
        self.console.print("[bold]start[/bold]: before any training")
        directory = RunDirectory(self.output_dir / START)
        directory.set_aside()
        recipe = {"model_name_or_path": self.model.name}
        directory.describe(recipe, seed=self.seed, command=sys.argv, device="cpu", name=START)
        directory.keep_until(0)
        self._evaluate(self.start, directory.path, START)

    def _train(self, name: str, title: str) -> None:
        recipe = self.recipes[name]
        self.console.print(f"[bold]{title}[/bold]: {recipe.training.max_steps} steps")
        with progress_bar("training", recipe.training.max_steps) as advance:
            run = TrainingRun(recipe, command=sys.argv, callbacks=[_Advance(advance)])
            run.trainer.remove_callback(PrinterCallback)
            run.train()

    def _evaluate(self, model_dir: str, directory: Path, title: str) -> None:
        model, tokenizer = load_model_and_tokenizer(model_dir, dtype="float32", device="cpu")
        evaluation = evaluate_model(
            model,
            tokenizer,
            self.task,
            samples=self.samples,
            temperature=1.0,
            max_tokens=self.max_tokens,
            batch_size=self.model.batch_size,
            seed=self.seed,
            think_end_token=self.think_end_token,
            model_name=title,
        )
        evaluation.save(directory / EVALUATION)
        self.rows.append((title, evaluation))
        self.console.print(f"  {_in_short(evaluation)}", highlight=False, soft_wrap=True)

    def _report(self) -> None:
        if not self.rows:
            return
        took = duration(time.monotonic() - self.started)
        complete = len(self.rows) > len(METHODS)
        note = f"total time: {took}" if complete else f"stopped after {took}"
        self.console.print(evaluation_table(self.rows, note))
        sentence = verdict(self.rows[1:])
        if sentence is not None:
            self.console.print(sentence, highlight=False, soft_wrap=True)
        finished = {title for title, _ in self.rows}
        names = [START, *(name for name, title in METHODS.items() if title in finished)]
        page = self.output_dir / REPORT
        write_report(
            [load_run(self.output_dir / name) for name in names], page, title="entropy_rft demo", lead=sentence
        )
        self.console.print(f"report: {page.resolve()}", highlight=False, soft_wrap=True)


def _in_short(evaluation: Evaluation) -> str:
    """One line: how often it is right, also on the hardest level, its entropy, and how long it thinks."""
    parts = [f"{percent(evaluation.avg_at_k)} % correct"]
    if evaluation.hardest is not None:
        level, scores = evaluation.hardest
        k = max(scores.pass_at_k, default=0)
        parts.append(f"pass@{k} at level {level} {percent(scores.pass_at_k.get(k))} %")
    parts.append(f"entropy {number(evaluation.entropy)}")
    return ", ".join([*parts, f"{number(evaluation.thinking_tokens, 0)} thinking tokens"])


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
