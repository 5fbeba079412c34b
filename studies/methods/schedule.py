"""Execute the runs of a study, several at once, each in a process of its own, and show their progress."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from entropy_rft.errors import UserValueError
from entropy_rft.run_files import METRICS
from entropy_rft.sampling.progress import duration
from entropy_rft.threads import chosen_by_user
from studies.methods.plan import Plan, RunSpec
from studies.methods.results import Results, write_json
from studies.methods.search import all_runs, runs_due

SECONDS_PER_COMPLETION = 0.025  # of the embedded model on one core, until a run has been timed
_POLL = 0.5


@dataclass
class Worker:
    """A run in progress."""

    spec: RunSpec
    process: subprocess.Popen[bytes]
    directory: Path
    log: Path
    started: float
    bar: TaskID

    def steps_done(self) -> int:
        """Optimisation steps that were logged."""
        with suppress(OSError):
            return sum(1 for _ in (self.directory / METRICS).open("rb"))
        return 0


class Scheduler:
    """Executes a study.

    Args:
        plan: with its model identified.
        results: where finished runs are.
        work_dir: of checkpoints, logs and trained models.
        model: directory or name that all runs start from.
        jobs: runs at once.
        device: "cpu" (one thread a run) or "cuda".
        time_limit: seconds; no run is started that would probably end later. None: no limit.

    Attributes:
        failed: name to the last line that the run printed.
    """

    def __init__(
        self,
        plan: Plan,
        results: Results,
        work_dir: Path,
        model: str,
        *,
        jobs: int = 2,
        device: str = "cpu",
        time_limit: float | None = None,
        console: Console | None = None,
    ) -> None:
        if jobs < 1:
            raise UserValueError(f"jobs must be at least 1, got {jobs}")
        if time_limit is not None and time_limit <= 0:
            raise UserValueError(f"time_limit must be above 0 minutes, got {time_limit / 60:g}")
        self.plan, self.results, self.work_dir, self.model = plan, results, work_dir, model
        self.jobs, self.device, self.time_limit = jobs, device, time_limit
        self.console = console or Console(stderr=True)
        self.failed: dict[str, str] = {}
        self._workers: list[Worker] = []
        self._started = time.monotonic()
        self._out_of_time = False
        self._status: Status | None = None  # computed again when a run has ended

    def run(self) -> bool:
        """Run until nothing is due or the time limit is reached; returns whether the whole study is finished.

        On Ctrl-C, or any error, the runs in progress are ended; the next call resumes them from their last checkpoint.

        Raises:
            ValueError: another process works on the same directory.
        """
        with self._alone():
            return self._work()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Allow one process per study: two would train in the same directories."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.work_dir / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserValueError(
                f"work_dir {str(self.work_dir)!r} is in use by another run of the study: wait for it, or give another"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _work(self) -> bool:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"))
        bars = Progress(
            *columns, TimeElapsedColumn(), console=self.console, transient=True, disable=not self.console.is_terminal
        )
        with bars:
            whole = bars.add_task(self.plan.name, total=1, note="")
            try:
                while self._step(bars, whole):
                    time.sleep(_POLL)
            finally:
                self._end_all()
        due, _ = runs_due(self.plan, self.results)
        return not due

    def _step(self, bars: Progress, whole: TaskID) -> bool:
        for worker in list(self._workers):
            if worker.process.poll() is not None:
                self._finish(worker, bars)
        # By digest: a search that has just ended may name the run of a sweep as its method's.
        running = {worker.spec.digest for worker in self._workers}
        free = self.jobs - len(self._workers)
        if free and not self._out_of_time:
            due, _ = runs_due(self.plan, self.results)
            waiting = [spec for spec in due if spec.digest not in running and spec.name not in self.failed]
            for spec in waiting[:free]:
                if not self._fits(spec):
                    self._out_of_time = True
                    self.console.print(f"time limit reached: {spec.name} and the later runs are left for the next call")
                    break
                self._start(spec, bars)
        self._show(bars, whole)
        return bool(self._workers)

    def _fits(self, spec: RunSpec) -> bool:
        if self.time_limit is None:
            return True
        return time.monotonic() - self._started + seconds_of([spec], self.results) <= self.time_limit

    def _start(self, spec: RunSpec, bars: Progress) -> None:
        # The digest prevents a run from resuming from the checkpoints of one with other settings.
        directory = self.work_dir / "runs" / f"{spec.name}-{spec.digest[:8]}"
        # Not with_suffix: a name may hold a dot, as in target-0.5x.
        job, log = (directory.with_name(f"{directory.name}.{kind}") for kind in ("job.json", "log"))
        result = self.results.path(spec.name)
        places = {"directory": str(directory.resolve()), "result": str(result.resolve())}
        about = {"model": self.model, "device": self.device, "parent": os.getpid()}
        write_json(job, {"spec": spec.to_dict(), **about, **places})
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        if self.device == "cpu" and not chosen_by_user():
            environment["OMP_NUM_THREADS"] = "1"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "studies.methods.worker", str(job)],
                env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in order
            )  # fmt: skip
        bar = bars.add_task(spec.name, total=max(1, spec.steps), note="")
        self._workers.append(Worker(spec, process, directory, log, time.monotonic(), bar))

    def _finish(self, worker: Worker, bars: Progress) -> None:
        self._workers.remove(worker)
        self._status = None
        bars.remove_task(worker.bar)
        name, spec = worker.spec.name, worker.spec
        if worker.process.returncode == 0 and self.results.get(name, spec.digest) is not None:
            seconds = time.monotonic() - worker.started
            self.console.print(f"{name}: done in {duration(seconds)}", highlight=False)
            return
        lines = worker.log.read_text(encoding="utf-8", errors="replace").splitlines()
        self.failed[name] = next((line for line in reversed(lines) if line.strip()), "no output")
        self.console.print(f"{name}: failed: {self.failed[name]} (full log: {worker.log})", highlight=False)

    def _show(self, bars: Progress, whole: TaskID) -> None:
        if not bars.disable:
            done = 0.0
            for worker in self._workers:
                steps = worker.steps_done()
                measuring = steps >= worker.spec.steps
                bars.update(worker.bar, completed=steps, note="measuring" if measuring else f"step {steps}")
                done += steps / max(1, worker.spec.steps) * seconds_of([worker.spec], self.results)
            status = self._status = self._status or Status.of(self.plan, self.results)
            left = max(0.0, status.seconds_left - done) / self.jobs
            note = f"{status.done} of {status.total} runs, about {duration(left)} left"
            bars.update(whole, completed=status.total_seconds - status.seconds_left + done,
                        total=max(status.total_seconds, 1e-9), note=note)  # fmt: skip

    def _end_all(self) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGTERM)
        for worker in self._workers:
            try:
                worker.process.wait(30)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(worker.process.pid, signal.SIGKILL)
                worker.process.wait()
        self._workers.clear()


@dataclass(frozen=True)
class Status:
    """The progress of a study; seconds are estimates, of one run after another."""

    runs: list[tuple[RunSpec, bool]]
    seconds_left: float
    total_seconds: float

    @classmethod
    def of(cls, plan: Plan, results: Results) -> Status:
        """The choices of finished searches are known; the runs of the others are counted too."""
        due, search = runs_due(plan, results)
        runs = all_runs(plan, search)
        finished = {spec.digest for spec in runs if _is_there(spec, results)}
        left = [spec for spec in runs if spec.digest not in finished]
        known = {spec.digest for spec in left}
        left += [spec for spec in due if spec.digest not in known]
        states = [(spec, spec.digest in finished) for spec in runs]
        return cls(states, seconds_of(left, results), seconds_of(runs, results))

    @property
    def done(self) -> int:
        return sum(done for _, done in self.runs)

    @property
    def total(self) -> int:
        return len(self.runs)


def _is_there(spec: RunSpec, results: Results) -> bool:
    try:
        return results.get(spec.name, spec.digest) is not None
    except ValueError:  # the search chose otherwise than was assumed here
        return False


def seconds_of(specs: list[RunSpec], results: Results) -> float:
    """An estimate, from what the finished runs took."""
    rate = results.seconds_per_completion() or SECONDS_PER_COMPLETION
    return rate * sum(spec.completions for spec in specs)


def status_lines(plan: Plan, results: Results, jobs: int) -> list[str]:
    """What ``--list`` prints."""
    status = Status.of(plan, results)
    lines = [f"{'done' if done else 'left':4}  {spec.kind:5}  {spec.name}" for spec, done in status.runs]
    left = duration(status.seconds_left / jobs)
    lines.append(f"{status.done} of {status.total} runs are done; the rest takes about {left} with {jobs} at once")
    return lines


def prepare_model(plan: Plan, work_dir: Path, say: Callable[[str], None] = print) -> str:
    """The directory or name of the model; one that the plan says how to make is made, once.

    Raises:
        ValueError: the existing model was made with other settings.
    """
    if "make" not in plan.model:
        return str(plan.model["name"])
    from studies.methods.models import make_model

    target = work_dir / "model"
    record = target / "made.json"  # written last
    if record.is_file():
        found = json.loads(record.read_text(encoding="utf-8"))
        if found != plan.model["make"]:
            raise UserValueError(f"{target} was made with {found}, not {dict(plan.model['make'])}: delete it")
        return str(target)
    say(f"making the model in {target}")
    make_model(target, plan.model["make"])
    write_json(record, plan.model["make"])
    return str(target)
