"""Batches of questions, with a `run` that the test holds in its hand."""

from __future__ import annotations

import asyncio

import pytest

from entropy_rft.router.batching import Abandoned, FeatureError, MicroBatcher


def always():
    return True


class Held:
    """A `run` that waits for `release` and gives back each question's first token."""

    def __init__(self, result=None):
        self.batches = []
        self.began = asyncio.Event()
        self.release = asyncio.Event()
        self.result = result

    async def __call__(self, batch):
        self.batches.append([token_ids[0] for token_ids in batch])
        self.began.set()
        await self.release.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return [token_ids[0] for token_ids in batch]


def ask(batcher, *numbers, wanted=always):
    return [asyncio.ensure_future(batcher.value([number], wanted)) for number in numbers]


def test_what_comes_while_a_batch_runs_is_the_next_batch():
    async def main():
        run = Held()
        batcher = MicroBatcher(run, batch_size=3)
        first = ask(batcher, 0)
        await run.began.wait()
        later = ask(batcher, 1, 2, 3, 4)
        await asyncio.sleep(0)
        assert run.batches == [[0]]
        run.release.set()
        assert await asyncio.gather(*first, *later) == [0, 1, 2, 3, 4]
        assert run.batches == [[0], [1, 2, 3], [4]]

    asyncio.run(main())


def test_a_question_waits_for_others_until_the_batch_is_full():
    async def main():
        run = Held()
        run.release.set()
        batcher = MicroBatcher(run, batch_size=2, wait=3600)
        alone = ask(batcher, 0)
        await asyncio.sleep(0)
        assert run.batches == []
        assert await asyncio.gather(*alone, *ask(batcher, 1)) == [0, 1]
        assert run.batches == [[0, 1]]
        batcher.wait = 0.001
        assert await asyncio.gather(*ask(batcher, 2)) == [2]  # no other one comes

    asyncio.run(main())


def test_several_batches_at_a_time():
    async def main():
        run = Held()
        batcher = MicroBatcher(run, batch_size=1, concurrency=2)
        asked = ask(batcher, 0, 1, 2)
        await run.began.wait()
        await asyncio.sleep(0)
        assert run.batches == [[0], [1]]
        run.release.set()
        assert await asyncio.gather(*asked) == [0, 1, 2]

    asyncio.run(main())


def test_the_queue_is_bounded_and_the_unwanted_give_way():
    async def main():
        run = Held()
        batcher = MicroBatcher(run, max_queue=2)
        first = ask(batcher, 0)
        await run.began.wait()
        here = {1: True, 2: True}
        waiting = [*ask(batcher, 1, wanted=lambda: here[1]), *ask(batcher, 2, wanted=lambda: here[2])]
        await asyncio.sleep(0)
        with pytest.raises(FeatureError, match="2 questions are waiting"):
            await batcher.value([3], always)
        here[1] = False
        third = ask(batcher, 3)
        run.release.set()
        assert await asyncio.gather(*first, waiting[1], *third) == [0, 2, 3]
        with pytest.raises(Abandoned):
            await waiting[0]
        assert run.batches == [[0], [2, 3]]

    asyncio.run(main())


def test_what_nobody_waits_for_is_not_begun():
    async def main():
        run = Held()
        batcher = MicroBatcher(run)
        first = ask(batcher, 0)
        await run.began.wait()
        unwanted = ask(batcher, 1, wanted=lambda: False)
        cancelled = ask(batcher, 2)
        await asyncio.sleep(0)
        cancelled[0].cancel()
        wanted = ask(batcher, 3)
        run.release.set()
        assert await asyncio.gather(*first, *wanted) == [0, 3]
        with pytest.raises(Abandoned):
            await unwanted[0]
        assert run.batches == [[0], [3]]

    asyncio.run(main())


def test_a_failure_is_that_of_its_batch_only():
    async def main():
        run = Held(MemoryError("no room\nfor this"))
        run.release.set()
        batcher = MicroBatcher(run)
        found = await asyncio.gather(*ask(batcher, 0, 1), return_exceptions=True)
        assert [repr(error) for error in found] == ["FeatureError('MemoryError: no room for this')"] * 2
        assert found[0] is not found[1]
        run.result = None
        assert await asyncio.gather(*ask(batcher, 2)) == [2]

    asyncio.run(main())


def test_a_value_that_is_an_error_is_that_of_its_question():
    async def main():
        async def run(batch):
            return [FeatureError("bad") if token_ids == [1] else 7 for token_ids in batch]

        found = await asyncio.gather(*ask(MicroBatcher(run, wait=0.001), 0, 1, 2), return_exceptions=True)
        assert (found[0], repr(found[1]), found[2]) == (7, "FeatureError('bad')", 7)

    asyncio.run(main())


def test_fewer_values_than_questions_leave_nobody_waiting():
    async def main():
        async def run(batch):
            return [7]

        found = await asyncio.gather(*ask(MicroBatcher(run, wait=0.001), 0, 1), return_exceptions=True)
        assert found[0] == 7
        assert isinstance(found[1], FeatureError)

    asyncio.run(main())


def test_a_worker_that_hangs_fails_its_questions_and_is_asked_again():
    async def main():
        run = Held()
        batcher = MicroBatcher(run, timeout=0.01)
        with pytest.raises(FeatureError, match=r"longer than 0\.01 s"):
            await batcher.value([0], always)
        assert batcher.timed_out
        run.release.set()
        assert await batcher.value([1], always) == 1
        assert not batcher.timed_out

    asyncio.run(main())


def test_closing_fails_what_waits_and_what_runs():
    async def main():
        run = Held()
        batcher = MicroBatcher(run, batch_size=1)
        asked = ask(batcher, 0, 1)
        await run.began.wait()
        await batcher.close()
        for task in asked:
            with pytest.raises(FeatureError, match="closed"):
                await asyncio.wait_for(task, 5)
        with pytest.raises(FeatureError, match="closed"):
            await batcher.value([2], always)
        await batcher.close()  # a second time does nothing

    asyncio.run(main())


@pytest.mark.parametrize("name", ["batch_size", "max_queue", "concurrency"])
def test_settings_out_of_range(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        MicroBatcher(Held, **{name: 0})
