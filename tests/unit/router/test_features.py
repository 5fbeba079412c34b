"""The two memories and what happens between them and a source of hidden states that the test holds in its hand."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.router.batching import Abandoned
from entropy_rft.router.features import FeatureError, NoFeatures, ProbedFeatures, Question, build_features
from entropy_rft.router.settings import FeatureSettings, RouterSettings


class States:
    """Gives the question's first token as its state, once released."""

    def __init__(self, released=True):
        self.asked = []
        self.wanted = []
        self.began = asyncio.Event()
        self.release = asyncio.Event()
        self.errors = []
        if released:
            self.release.set()

    async def start(self): ...

    async def close(self): ...

    async def ready(self):
        return True

    async def state(self, token_ids, wanted):
        self.asked.append(token_ids)
        self.wanted.append(wanted)
        self.began.set()
        await self.release.wait()
        if self.errors:
            raise self.errors.pop(0)
        return np.array([token_ids[0]], dtype=np.float32)


class Probe:
    def predict_proba(self, state):
        return np.array([[state[0] / 100, 1 - state[0] / 100, 0.0]])


def tokenize(question):
    """Characters; capitals are small letters, so that two texts can have the same tokens."""
    text = question.text if question.messages is None else "".join(message["content"] for message in question.messages)
    return [ord(character) for character in text.lower()]


def make(states, size=100, tokenize=tokenize):
    return ProbedFeatures(tokenize, states, Probe(), size)


def text(value):
    return Question(text=value)


def test_a_question_is_asked_once():
    async def main():
        states = States()
        features = make(states)
        first = await features.proba(text("2"))
        assert first == pytest.approx((0.5, 0.5, 0.0))
        assert await features.proba(text("2")) == first
        assert states.asked == [[50]]
        assert (features.hits, features.misses) == (1, 1)

    asyncio.run(main())


def test_a_remembered_question_is_not_tokenized_and_costs_less_than_100_microseconds():
    async def main():
        tokenized = []

        def counted(question):
            tokenized.append(question)
            return tokenize(question)

        features = make(States(), tokenize=counted)
        question = Question(messages=[{"role": "user", "content": "What is 17 + 25? " * 50}])
        await features.proba(question)
        times = []
        for _ in range(300):
            started = time.perf_counter()
            await features.proba(question)
            times.append(time.perf_counter() - started)
        assert len(tokenized) == 1
        assert sorted(times)[len(times) // 2] < 100e-6

    asyncio.run(main())


def test_other_texts_of_the_same_tokens_share_a_state():
    async def main():
        states = States()
        features = make(states)
        assert await features.proba(text("abc")) == await features.proba(text("ABC"))
        assert len(states.asked) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    "other",
    [
        Question(messages=[{"role": "user", "content": "a"}], tools=[{"type": "function"}]),
        Question(messages=[{"role": "user", "content": "a"}], chat_template_kwargs={"enable_thinking": False}),
        Question(messages=[{"role": "system", "content": "a"}]),
        Question(text="a"),
        Question(token_ids=[97]),
    ],
)
def test_everything_that_can_change_the_tokens_is_part_of_the_name(other):
    async def main():
        tokenized = []

        def counted(question):
            tokenized.append(question)
            return [len(tokenized)]

        features = make(States(), tokenize=counted)
        await features.proba(Question(messages=[{"role": "user", "content": "a"}]))
        await features.proba(other)
        assert len(tokenized) == 2

    asyncio.run(main())


def test_equal_questions_at_the_same_time_are_one():
    async def main():
        states = States(released=False)
        features = make(states)
        asked = [asyncio.ensure_future(features.proba(text(value))) for value in "aAaA"]
        await states.began.wait()
        states.release.set()
        assert len(set(await asyncio.gather(*asked))) == 1
        assert len(states.asked) == 1

    asyncio.run(main())


def test_who_gives_up_does_not_take_it_from_the_others():
    async def main():
        states = States(released=False)
        features = make(states)
        first, second = (asyncio.ensure_future(features.proba(text("a"))) for _ in range(2))
        await states.began.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert states.wanted[0]()
        states.release.set()
        assert (await second)[0] == pytest.approx(0.97)

    asyncio.run(main())


def test_what_was_begun_is_remembered_though_all_gave_up():
    async def main():
        states = States(released=False)
        features = make(states)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(features.proba(text("a")), 0.01)
        assert not states.wanted[0]()  # had it not begun, it need not
        flight = next(iter(features._flights.values()))
        states.release.set()
        await flight.task
        await features.proba(text("a"))
        assert len(states.asked) == 1
        assert not features._flights

    asyncio.run(main())


def test_a_question_that_comes_back_after_it_was_given_up_is_asked_again():
    async def main():
        states = States()
        states.errors = [Abandoned("nobody")]
        features = make(states)
        assert (await features.proba(text("a")))[0] == pytest.approx(0.97)
        assert len(states.asked) == 2

    asyncio.run(main())


@pytest.mark.parametrize("error", [FeatureError("down"), ValueError("down"), OSError("down")])
def test_a_failure_is_a_feature_error_and_not_remembered(error):
    async def main():
        states = States()
        states.errors = [error]
        features = make(states)
        with pytest.raises(FeatureError, match="down"):
            await features.proba(text("a"))
        assert not features._flights
        assert (await features.proba(text("a")))[0] == pytest.approx(0.97)

    asyncio.run(main())


@pytest.mark.parametrize("token_ids", [[2**63], [2**64], ["x"], [1.5], [object()]])
def test_tokens_that_are_none(token_ids):
    async def main():
        with pytest.raises(FeatureError, match=r"not JSON|something other than tokens"):
            await make(States(), tokenize=lambda question: question.token_ids).proba(Question(token_ids=token_ids))

    asyncio.run(main())


def test_a_probe_that_refuses_the_state_is_a_feature_error():
    async def main():
        from entropy_rft.difficulty import DifficultyProbe

        generator = np.random.default_rng(0)
        probe = DifficultyProbe(hidden_units=2).fit(generator.normal(size=(12, 3)), ["easy", "normal", "hard"] * 4)
        features = ProbedFeatures(tokenize, States(), probe)
        with pytest.raises(FeatureError, match="width 1, but this probe reads 3"):
            await features.proba(text("a"))

    asyncio.run(main())


def test_the_memories_are_bounded():
    async def main():
        states = States()
        features = make(states, size=2)
        for value in "abc":
            await features.proba(text(value))
        await features.proba(text("c"))
        assert len(states.asked) == 3
        await features.proba(text("a"))
        assert len(states.asked) == 4
        assert (len(features._keys), len(features._probabilities), len(features._flights)) == (2, 2, 0)
        nothing = make(states, size=0)
        await nothing.proba(text("a"))
        await nothing.proba(text("a"))
        assert len(states.asked) == 6

    asyncio.run(main())


def test_a_long_question_is_tokenized_beside_the_event_loop():
    async def main():
        release, began, threads = threading.Event(), threading.Event(), {}

        def slow(question):
            threads[question.text[0]] = threading.current_thread()
            if question.text[0] == "x":
                began.set()
                assert release.wait(10)
            return tokenize(question)

        features = make(States(), tokenize=slow)
        long = asyncio.ensure_future(features.proba(text("x" * 100_000)))
        while not began.is_set():
            await asyncio.sleep(0)
        await features.proba(text("short"))  # while the long one is being tokenized
        assert not long.done()
        release.set()
        assert (await long)[0] == pytest.approx(ord("x") / 100)
        assert threads["s"] is threading.main_thread()
        assert threads["x"] is not threading.main_thread()
        await features.close()

    asyncio.run(main())


def test_long_questions_do_not_pile_up():
    async def main():
        release = threading.Event()

        def slow(question):
            assert release.wait(10)
            return tokenize(question)

        features = make(States(), tokenize=slow)
        asked = [asyncio.ensure_future(features.proba(text(f"{i}" + "x" * 10_000))) for i in range(65)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(FeatureError, match="64 long questions"):
            await done.pop()
        release.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(value, FeatureError) for value in found) == 1
        await features.close()

    asyncio.run(main())


def test_a_source_that_hangs_does_not_pile_up_questions(monkeypatch):
    monkeypatch.setattr("entropy_rft.router.features._MAX_FLIGHTS", 3)

    async def main():
        states = States(released=False)
        features = make(states)
        for value in "abc":
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(features.proba(text(value)), 0.005)
        with pytest.raises(FeatureError, match="3 questions are waiting"):
            await features.proba(text("d"))
        states.release.set()
        assert (await features.proba(text("a")))[0] == pytest.approx(0.97)
        assert (await features.proba(text("d")))[0] == pytest.approx(1.0)

    asyncio.run(main())


def test_closing_fails_those_who_wait():
    async def main():
        states = States(released=False)
        features = make(states)
        asked = asyncio.ensure_future(features.proba(text("a")))
        await states.began.wait()
        await features.close()
        with pytest.raises(FeatureError, match="closed"):
            await asyncio.wait_for(asked, 5)

    asyncio.run(main())


def settings(**features):
    return RouterSettings(probe="embedded", features=FeatureSettings(**features))


def fake_probe(**fields):
    return SimpleNamespace(**{"base_model": DEFAULT_MODEL, "layer": -1, "width": 128, "fingerprint": None} | fields)


def test_no_features():
    async def main():
        features = build_features(settings(kind="none"), None)
        assert isinstance(features, NoFeatures)
        await features.start()
        assert await features.ready()
        with pytest.raises(FeatureError, match=r"features\.kind is none"):
            await features.proba(text("a"))
        await features.close()

    asyncio.run(main())


@pytest.mark.parametrize(("deadline_ms", "expected"), [(200, 10.0), (60_000, 60.0)])
@pytest.mark.parametrize("kind", ["vllm", "vllm_pooling"])
def test_a_server_may_take_as_long_as_a_request_waits(monkeypatch, kind, deadline_ms, expected):
    """Also for a long prompt on a slow server: a fixed limit would end what the deadline allows."""
    seen = {}
    for name in ("vllm_served.VLLMServed", "vllm_pooling.VLLMPooling"):
        monkeypatch.setattr(f"entropy_rft.router.{name}", lambda *given, **options: seen.update(options))
    wanted = FeatureSettings(kind=kind, url="http://127.0.0.1:1", deadline_ms=deadline_ms)
    probe = fake_probe(digest=lambda: "0" * 64)
    build_features(RouterSettings(probe="embedded", features=wanted), probe)
    assert seen["timeout"] == expected


def test_what_does_not_fit_together():
    with pytest.raises(ValueError, match="needs a probe"):
        build_features(settings(kind="local"), None)
    with pytest.raises(ValueError, match="set model to its name"):
        build_features(settings(kind="local"), fake_probe(base_model=None))
    with pytest.raises(
        ValueError, match=r"the probe reads layer 2, but a pooling server gives only the last one \(-1\)"
    ):
        build_features(settings(kind="vllm_pooling", url="http://127.0.0.1:1"), fake_probe(layer=2))
    with pytest.raises(ValueError, match="tokenizer of '/no/such/place' cannot be loaded"):
        build_features(settings(kind="local"), fake_probe(base_model="/no/such/place"))


def test_a_pooling_server_that_is_down_does_not_stop_the_start(monkeypatch):
    monkeypatch.setenv("POOLING_KEY", "secret")

    async def main():
        wanted = settings(kind="vllm_pooling", url="http://127.0.0.1:1/v1", api_key_env="POOLING_KEY")
        features = build_features(wanted, fake_probe())
        await features.start()
        assert not await features.ready()
        with pytest.raises(FeatureError, match=r"http://127\.0\.0\.1:1 cannot be reached"):
            await features.proba(text("a"))
        await features.close()

    asyncio.run(main())
