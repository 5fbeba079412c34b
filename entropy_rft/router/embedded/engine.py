"""The worker thread that generates completions, and the pieces that it delivers."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from entropy_rft.router.embedded.batch import DecodingBatch, Row, TokenLogprobs
from entropy_rft.router.embedded.text import TextStream

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate: `n` completions of each prompt, with the same settings.

    Completion `i` is number `i % n` of prompt `i // n`. Everything is checked already (`requests.py`).
    """

    prompts: list[list[int]]
    max_tokens: list[int]  # of each prompt
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of completion `index`; `finish_reason` ("stop" or "length") marks its last one."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine could not finish a generation."""

    message: str


Deliver = Callable[[list["Piece | Failed"]], None]


class Overloaded(Exception):
    """Too many completions wait."""


@dataclass(slots=True, eq=False)
class _Writing:
    """One completion in progress; its tokens are held until their text can be shown."""

    job: Job
    index: int
    row: Row
    text: TextStream
    max_tokens: int
    eos: frozenset[int]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class Job:
    """A submitted generation. `cancel` may be called from any thread, and more than once."""

    def __init__(self, deliver: Deliver) -> None:
        self.deliver = deliver
        self.cancelled = False

    def cancel(self) -> None:
        """End its completions with the next step, because no client reads them."""
        self.cancelled = True


class Engine:
    """Generates completions in one thread, up to `max_rows` at the same time; the others wait in order of arrival.

    Args:
        model: a causal language model with full attention.
        tokenizer: its tokenizer.
        eos_token_ids: tokens that end a completion.
        max_rows: completions at the same time.
        max_waiting: completions that may wait.

    Attributes:
        running: completions that are being generated.
        steps: steps so far; each generates one token of every running completion.
    """

    def __init__(
        self, model: Any, tokenizer: Any, eos_token_ids: list[int], *, max_rows: int = 32, max_waiting: int = 1024
    ) -> None:
        self.tokenizer = tokenizer
        self.max_rows = max_rows
        self.max_waiting = max_waiting
        self.running = 0
        self.steps = 0
        self._eos = frozenset(eos_token_ids)
        self._batch = DecodingBatch(model)
        self._writing: list[_Writing] = []
        self._waiting: deque[_Writing] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="embedded-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    def submit(self, generation: Generation, deliver: Deliver) -> Job:
        """Submit a generation.

        Args:
            generation: checked.
            deliver: called in the engine's thread with the new pieces of a step; after a `Failed` it is not called
                again. If it raises a RuntimeError, the generation is cancelled.

        Raises:
            Overloaded: too many completions wait already.
            RuntimeError: the engine is closed.
        """
        job = Job(deliver)
        n = generation.n
        rows = []
        for index in range(n * len(generation.prompts)):
            seed = None if generation.seed is None else f"{generation.seed}/{index}"
            row = Row(
                prompt_ids=generation.prompts[index // n],
                random=random.Random(seed),
                temperature=generation.temperature,
                top_p=generation.top_p,
                top_k=generation.top_k,
                top_logprobs=generation.top_logprobs,
            )
            text = TextStream(self.tokenizer, generation.stop)
            eos = frozenset() if generation.ignore_eos else self._eos
            rows.append(_Writing(job, index, row, text, generation.max_tokens[index // n], eos))
        with self._changed:
            if not self.alive:
                raise RuntimeError("the engine is closed")
            if len(self._waiting) + len(rows) > self.max_waiting:
                raise Overloaded(f"{len(self._waiting)} completions are waiting already")
            self._waiting.extend(rows)
            self._changed.notify()
        return job

    def close(self) -> None:
        """End the thread; unfinished completions fail."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(10)

    def _work(self) -> None:
        try:
            while True:
                with self._changed:
                    while not (self._waiting or self._writing or self._closed):
                        self._changed.wait()
                    if self._closed:
                        return
                    joining = self._joining()
                try:
                    self._step(joining)
                except Exception as error:
                    logger.exception("a step of the embedded engine failed")
                    self._fail([*self._writing, *joining], f"{type(error).__name__}: {error}")
                    self._writing = []
                    self._batch.keep([])
                    self.running = 0
        finally:
            with self._changed:
                self._closed = True
                left = [*self._writing, *self._waiting]
                self._waiting.clear()
            self._fail(left, "the engine is closed")

    def _joining(self) -> list[_Writing]:
        """The waiting completions that can start now, in their order."""
        room = self.max_rows - len(self._writing)
        joining: list[_Writing] = []
        while self._waiting and len(joining) < room:
            writing = self._waiting.popleft()
            if not writing.job.cancelled:
                joining.append(writing)
        return joining

    def _step(self, joining: list[_Writing]) -> None:
        current = [writing for writing in self._writing if not writing.job.cancelled]
        if len(current) < len(self._writing):
            self._batch.keep([writing.row for writing in current])
        logprobs = self._batch.step() if current else []
        if joining:
            logprobs = [*logprobs, *self._batch.add([writing.row for writing in joining])]
        self._writing = current + joining
        self.running = len(self._writing)
        if not self._writing:
            return
        self.steps += 1
        pieces: dict[Job, list[Piece | Failed]] = {}
        going = []
        for writing, found in zip(self._writing, logprobs, strict=True):
            piece = self._piece(writing, found)
            if piece is not None:
                pieces.setdefault(writing.job, []).append(piece)
            if piece is None or piece.finish_reason is None:
                going.append(writing)
        self._batch.keep([writing.row for writing in going])
        self._writing = going
        self.running = len(going)
        for job, new in pieces.items():
            _deliver(job, new)

    def _piece(self, writing: _Writing, logprobs: TokenLogprobs | None) -> Piece | None:
        """The piece that the row's new token adds; ``None`` while its text cannot be shown."""
        token = writing.row.token_ids[-1]
        writing.token_ids.append(token)
        if logprobs is not None:
            writing.logprobs.append(logprobs)
        ended = token in writing.eos
        text = "" if ended else writing.text.add(token)
        reason = None
        if ended or writing.text.stopped:
            reason = "stop"
        elif len(writing.row.token_ids) >= writing.max_tokens:
            reason = "length"
        if reason is not None:
            text += writing.text.finish()
            if writing.text.stopped:
                reason = "stop"
        if not text and reason is None:
            return None
        piece = Piece(writing.index, text, writing.token_ids, writing.logprobs, reason)
        writing.token_ids, writing.logprobs = [], []
        return piece

    @staticmethod
    def _fail(writings: list[_Writing], message: str) -> None:
        for job in dict.fromkeys(writing.job for writing in writings):
            _deliver(job, [Failed(message)])


def _deliver(job: Job, pieces: list[Piece | Failed]) -> None:
    if job.cancelled:
        return
    try:
        job.deliver(pieces)
    except RuntimeError:  # the event loop that waited for it is closed
        job.cancel()
