"""Processes questions that arrive together in batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from entropy_rft.errors import UserValueError


class FeatureError(Exception):
    """A hidden state, or the probe's result for it, is not available; one line that gives the cause."""


class Abandoned(FeatureError):
    """No request waited for it any more when its batch began."""


_NOBODY = "no request waits for this question any more"


@dataclass(slots=True)
class _Item:
    token_ids: list[int]
    wanted: Callable[[], bool]
    future: asyncio.Future[Any] = field(repr=False)


class MicroBatcher:
    """Collects questions into batches, and keeps a bounded queue of those that wait.

    A batch begins when it is full, or `wait` seconds after its first question. While `concurrency` batches run, the
    next one collects questions. A question that no request waits for any more is skipped, so that a slow source does
    no unneeded work.

    Args:
        run: returns one value for each question of a batch; a value that is an exception is raised for that question.
        batch_size: questions in a batch.
        wait: seconds.
        max_queue: questions that may wait; further ones are refused.
        concurrency: batches at the same time.
        timeout: seconds for one batch; after that its questions fail.

    Attributes:
        timed_out: whether the last batch took too long.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        run: Callable[[list[list[int]]], Awaitable[Sequence[Any]]],
        *,
        batch_size: int = 32,
        wait: float = 0.0,
        max_queue: int = 1024,
        concurrency: int = 1,
        timeout: float = 30.0,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("max_queue", max_queue), ("concurrency", concurrency)):
            if value < 1:
                raise UserValueError(f"{name} must be at least 1, got {value}")
        self._run = run
        self.batch_size = batch_size
        self.wait = wait
        self.max_queue = max_queue
        self.concurrency = concurrency
        self.timeout = timeout
        self._queue: deque[_Item] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.timed_out = False

    async def value(self, token_ids: list[int], wanted: Callable[[], bool]) -> Any:
        """The value that `run` returns for a question.

        Args:
            token_ids: of the question.
            wanted: whether a request still waits for it; called when its batch begins.

        Raises:
            FeatureError: the queue is full, the batcher is closed, or `run` failed or took too long.
        """
        if self._closed:
            raise FeatureError("the feature source is closed")
        if len(self._queue) >= self.max_queue:
            self._drop_unwanted()
            if len(self._queue) >= self.max_queue:
                raise FeatureError(f"{self.max_queue} questions are waiting for their features already")
        item = _Item(token_ids, wanted, asyncio.get_running_loop().create_future())
        self._queue.append(item)
        self._schedule()
        return await item.future

    async def close(self) -> None:
        """Fail the questions that wait, and cancel the batches that run."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._fail(list(self._queue), FeatureError("the feature source is closed"))
        self._queue.clear()
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _schedule(self) -> None:
        if not self._queue or len(self._running) >= self.concurrency or self._closed:
            return
        if len(self._queue) >= self.batch_size or self.wait <= 0:
            self._begin()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.wait, self._begin)

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if len(self._running) >= self.concurrency:
            return
        batch: list[_Item] = []
        while self._queue and len(batch) < self.batch_size:
            item = self._queue.popleft()
            if not item.wanted():
                self._fail([item], Abandoned(_NOBODY))
            elif not item.future.cancelled():
                batch.append(item)
        if batch:
            task = asyncio.get_running_loop().create_task(self._batch(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._queue and not self._closed:
            self._begin()  # the waiting questions need no further delay

    async def _batch(self, batch: list[_Item]) -> None:
        try:
            values = await asyncio.wait_for(self._run([item.token_ids for item in batch]), self.timeout)
            self.timed_out = False
            for item, value in zip(batch, values, strict=True):
                if item.future.done():
                    continue
                if isinstance(value, Exception):
                    item.future.set_exception(value)
                else:
                    item.future.set_result(value)
        except asyncio.TimeoutError:
            self.timed_out = True
            self._fail(batch, FeatureError(f"the features took longer than {self.timeout:g} s"))
        except asyncio.CancelledError:
            self._fail(batch, FeatureError("the feature source is closed"))
            raise
        except FeatureError as error:
            self._fail(batch, error)
        except Exception as error:  # of the model or the network: no request may wait for ever
            self._fail(batch, FeatureError(f"{type(error).__name__}: {' '.join(str(error).split())}"))

    def _drop_unwanted(self) -> None:
        waiting = list(self._queue)
        self._queue.clear()
        self._queue.extend(item for item in waiting if item.wanted())
        self._fail([item for item in waiting if not item.wanted()], Abandoned(_NOBODY))

    @staticmethod
    def _fail(items: list[_Item], error: FeatureError) -> None:
        for item in items:
            if not item.future.done():
                item.future.set_exception(type(error)(*error.args))  # one each: a raised exception keeps its traceback
