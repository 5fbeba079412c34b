"""The sampler against a server that is a function."""

from __future__ import annotations

import json
import threading
import time

import pytest

httpx = pytest.importorskip("httpx")

from entropy_rft.sampling import openai_sampler  # noqa: E402
from entropy_rft.sampling.openai_sampler import OpenAISampler  # noqa: E402


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(openai_sampler, "_PAUSES", (0.0, 0.0))


@pytest.fixture
def serve(random_tokenizer):
    """``serve(answer)``: a sampler whose server gives ``answer(body)`` to each completion request; and its requests."""

    def make(answer, **options):
        seen = []

        def handle(request):
            body = json.loads(request.content) if request.content else {}
            seen.append((request.url.path, body, request.headers))
            if request.url.path == "/v1/models":
                return httpx.Response(200, json={"data": [{"id": "served"}]})
            result = answer(body)
            return result if isinstance(result, httpx.Response) else httpx.Response(200, json={"choices": result})

        return OpenAISampler(
            "http://here:8000/v1/", random_tokenizer, transport=httpx.MockTransport(handle), **options
        ), seen

    return make


def test_token_ids_from_the_server(serve, random_tokenizer):
    eos = random_tokenizer.eos_token_id

    def answer(body):
        assert body["return_token_ids"]
        ids = random_tokenizer("ab")["input_ids"]
        # out of order on purpose
        return [
            {"index": 1, "token_ids": ids, "text": "ab", "finish_reason": "length"},
            {"index": 0, "token_ids": [*ids, eos], "text": "ab", "finish_reason": "stop"},
        ]

    sampler, seen = serve(answer, api_key="k")
    groups = sampler.sample(["one", [{"role": "user", "content": "two"}]], samples=2, seed=5, progress=False)
    assert [[c.truncated for c in group] for group in groups] == [[False, True]] * 2
    assert groups[0][0].token_ids[-1] == eos
    assert [c.text for c in groups[1]] == ["ab", "ab"]
    bodies = sorted((body for path, body, _ in seen if path == "/v1/completions"), key=lambda b: len(b["prompt"]))
    assert bodies[0]["prompt"] == random_tokenizer("one")["input_ids"] == groups[0][0].prompt_ids
    assert bodies[1]["prompt"][-1] == random_tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert {body["model"] for body in bodies} == {"served"}
    assert bodies[0]["seed"] != bodies[1]["seed"]
    assert all(headers["authorization"] == "Bearer k" for _, _, headers in seen)


def test_a_server_that_tells_text_only(serve, random_tokenizer):
    def answer(body):
        if "return_token_ids" in body:
            return httpx.Response(400, json={"error": {"message": "Unknown field: return_token_ids"}})
        return [{"index": 0, "text": "hi", "finish_reason": "stop"}]

    sampler, seen = serve(answer, model="m")
    (group,) = sampler.sample(["x"], progress=False)
    assert group[0].token_ids == [*random_tokenizer("hi")["input_ids"], random_tokenizer.eos_token_id]
    assert (group[0].text, group[0].truncated) == ("hi", False)
    sampler.sample(["x"], progress=False)
    assert ["return_token_ids" in body for _, body, _ in seen] == [True, False, False]


def test_greedy_is_asked_for_once(serve):
    sampler, seen = serve(lambda body: [{"token_ids": [5], "finish_reason": "length"}] * body["n"], model="m")
    (group,) = sampler.sample(["x"], samples=3, temperature=0, progress=False)
    assert len(group) == 3
    assert seen[0][1]["n"] == 1


def test_it_tries_again_when_the_server_is_busy(serve):
    left = [503, 429]

    def answer(body):
        if left:
            return httpx.Response(left.pop(), text="busy")
        return [{"token_ids": [5], "finish_reason": "length"}]

    sampler, seen = serve(answer, model="m")
    sampler.sample(["x"], progress=False)
    assert len(seen) == 3


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self):
        self.slept, self.time = [], 1_000_000_000.0  # Sun, 09 Sep 2001 01:46:40 GMT

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds

    def now(self):
        return self.time


def busy(*told):
    """Answers 429 with these pauses, one after the other, and then well."""
    left = list(told)

    def answer(body):
        if left:
            value = left.pop(0)
            return httpx.Response(429, text="slow down", headers={} if value is None else {"retry-after": value})
        return [{"token_ids": [5], "finish_reason": "length"}]

    return answer


@pytest.mark.parametrize(
    ("told", "slept"),
    [
        (["9"], [9]),
        (["Sun, 09 Sep 2001 01:46:49 GMT"], [9]),
        (["Sun, 09 Sep 2001 01:46:30 GMT"], [0.0]),  # past: the sampler's own pause
        (["9"] * 20, [9] * 20),  # as often as it is told
        (["0.1"], [0.5]),
        ([None, "soon"], [0.0, 0.0]),
        (["300", "300"], [300, 300]),
    ],
)
def test_it_waits_as_long_as_it_is_told(serve, monkeypatch, told, slept):
    monkeypatch.setattr(openai_sampler, "_PAUSES", (0.5,) if told == ["0.1"] else (0.0, 0.0))
    clock = Clock()
    sampler, seen = serve(busy(*told), model="m", sleep=clock.sleep, now=clock.now)
    sampler.sample(["x"], progress=False)
    assert clock.slept == slept
    assert len(seen) == len(told) + 1


@pytest.mark.parametrize(
    ("told", "slept", "message"),
    [
        (["601"], [], "status 429: slow down and asks to wait 601 s, 601 s in all, which is more than 600 s"),
        (["400", "300"], [400], "asks to wait 300 s, 700 s in all, which is more than 600 s"),
        ([None, None, None], [0.0, 0.0], "answered with status 429: slow down"),
    ],
)
def test_it_does_not_wait_for_ever(serve, told, slept, message):
    clock = Clock()
    sampler, _ = serve(busy(*told), model="m", sleep=clock.sleep, now=clock.now)
    with pytest.raises(OSError, match=message):
        sampler.sample(["x"], progress=False)
    assert clock.slept == slept
    assert serve(busy(), max_wait=0)[0].sample(["x"], progress=False)


def test_nobody_waits_on_when_another_request_has_failed(serve):
    """The first is told to wait five minutes, the second fails for good: both end at once."""
    waiting = threading.Event()

    def answer(body):
        if len(body["prompt"]) == 1:
            waiting.set()
            return httpx.Response(503, text="busy", headers={"retry-after": "300"})
        assert waiting.wait(30)
        return httpx.Response(404, text="gone")

    sampler, _ = serve(answer, model="m", concurrency=2)
    start = time.monotonic()
    with pytest.raises(OSError, match="refused with status 404"):
        sampler.sample(["one two", "x"], progress=False)
    assert time.monotonic() - start < 60


def refuse(request):
    raise httpx.ConnectError("refused")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda body: httpx.Response(404, json={"error": {"message": "no model\n'm'"}}), "status 404: no model 'm'"),
        (lambda body: httpx.Response(500, text="oh"), "answered with status 500: oh"),
        (lambda body: httpx.Response(200, text="<html>"), "answered without choices: <html>"),
        (lambda body: [], "gave 0 completions instead of 1"),
        (refuse, "cannot be reached: refused"),
    ],
)
def test_failures_are_one_line(answer, message, serve):
    sampler, _ = serve(answer, model="m")
    with pytest.raises(OSError, match="http://here:8000") as caught:
        sampler.sample(["x"], progress=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "here:8000"}, "url must start with"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"max_wait": -1}, "max_wait"),
    ],
)
def test_mistakes(options, message, random_tokenizer):
    with pytest.raises(ValueError, match=message):
        OpenAISampler(**{"url": "http://x", "tokenizer": random_tokenizer, **options})


def test_another_vocabulary_is_one_line(serve):
    def answer(body):
        return [{"index": 0, "token_ids": [5, 300], "finish_reason": "stop"}]

    sampler, _ = serve(answer, vocabulary=300)
    with pytest.raises(ValueError, match="here:8000 answered with the token 300, but the model here has 300 tokens"):
        sampler.sample(["one"], progress=False)
    assert serve(answer, vocabulary=301)[0].sample(["one"], progress=False)[0][0].token_ids == [5, 300]


def test_the_name_of_the_served_model(serve):
    assert serve(None)[0].served_model() == "served"
    assert serve(None, model="mine")[0].served_model() == "mine"


def test_how_much_to_think_is_sent(serve, random_tokenizer):
    answer = [{"token_ids": random_tokenizer("<think>12</think>3")["input_ids"], "finish_reason": "length"}]
    sampler, seen = serve(lambda body: answer, model="m")
    effort = {"thinking_tokens": 2, "extra_body": {"top_p": 0.5, "min_p": 0.1}}
    sampler.sample(["x"], progress=False, **effort)
    body = seen[0][1]
    assert (body["thinking_token_budget"], body["top_p"], body["min_p"]) == (2, 0.5, 0.1)
    sampler.sample(["x"], progress=False)
    assert not {"thinking_token_budget", "min_p"} & set(seen[1][1])


def test_a_server_that_ignores_the_limit_is_noticed(serve, random_tokenizer):
    """Else the strategy that was measured would not be the one that was asked for."""
    written = random_tokenizer("<think>1234</think>5")["input_ids"]
    sampler, _ = serve(lambda body: [{"token_ids": written, "finish_reason": "length"}], model="m")
    sampler.sample(["x"], progress=False, thinking_tokens=4)
    with pytest.raises(ValueError, match="http://here:8000 ignores thinking_token_budget: start vLLM with --reasoning"):
        sampler.sample(["x"], progress=False, thinking_tokens=3)
    with pytest.raises(ValueError, match="thinking_tokens must be 0 or more"):
        sampler.sample(["x"], progress=False, thinking_tokens=-3)
