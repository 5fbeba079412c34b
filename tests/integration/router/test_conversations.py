"""What the probe is asked in the course of a conversation, and what a turn keeps."""

from __future__ import annotations

import asyncio
import json
import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from running import FixedFeatures, running_router
from stub import Stub
from stub_answers import HEAD, Behaviour, Request
from wire import exchange, request

from entropy_rft.router.features import Question

pytestmark = pytest.mark.integration

HARD, EASY = (0.05, 0.05, 0.9), (0.9, 0.05, 0.05)
QUESTION = {"role": "user", "content": "Prove that there are infinitely many primes."}
CALL = {"id": "call-1", "type": "function", "function": {"name": "search", "arguments": '{"text": "primes"}'}}
RESULT = {"role": "tool", "tool_call_id": "call-1", "content": "Euclid."}
GO_ON = {"role": "user", "content": "yes, go on"}


class Recording(FixedFeatures):
    """Finds hard whatever ends with the question, and easy everything else."""

    def __init__(self) -> None:
        super().__init__(EASY)
        self.asked: list[Question] = []

    async def proba(self, request: Question) -> tuple[float, float, float]:
        self.asked.append(request)
        assert request.messages
        return HARD if request.messages[-1]["content"] == QUESTION["content"] else EASY


def ask(port: int, path: str = "/v1/chat/completions", **body: Any) -> tuple[str, str]:
    """The difficulty and its reason."""
    reply = exchange(port, request(json.dumps({"model": "m", **body}).encode(), path=path))
    assert reply.status == 200, reply.body
    return reply.headers["x-entropy-rft-difficulty"], reply.headers["x-entropy-rft-reason"]


@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_a_short_answer_is_read_with_the_whole_conversation(stub: Stub, dialect: str) -> None:
    features = Recording()
    turns = [QUESTION, {"role": "assistant", "content": "Shall I?"}, GO_ON]
    with running_router([stub.url], features=features) as router:
        if dialect == "chat":
            ask(router.port, messages=[{"role": "system", "content": "Be exact."}, *turns])
        elif dialect == "responses":
            ask(router.port, "/v1/responses", instructions="Be exact.", input=turns)
        else:
            ask(router.port, "/v1/messages", system="Be exact.", messages=turns, max_tokens=100)
    (asked,) = features.asked
    text = json.dumps(asked.messages)
    for part in ("Be exact.", QUESTION["content"], "Shall I?", "yes, go on"):
        assert part in text
    assert [message["role"] for message in asked.messages or ()] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(("keep", "then"), [(True, ("hard", "turn")), (False, ("easy", "probe"))])
def test_a_turn_of_tools_keeps_its_difficulty(stub: Stub, keep: bool, then: tuple[str, str]) -> None:
    called = [QUESTION, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT]
    with running_router([stub.url], features=Recording(), keep_difficulty=keep) as router:
        assert ask(router.port, messages=[QUESTION]) == ("hard", "probe")
        assert ask(router.port, messages=called) == then
        told = [*called, {"role": "assistant", "content": "Done. More?"}, GO_ON]
        assert ask(router.port, messages=told) == ("easy", "probe")  # the next turn
        assert router.metric("entropy_rft_fallbacks_total") == 0


def test_the_same_in_anthropics_dialect(stub: Stub) -> None:
    use = {"type": "tool_use", "id": "call-1", "name": "search", "input": {"text": "primes"}}
    result = {"type": "tool_result", "tool_use_id": "call-1", "content": "Euclid."}
    with running_router([stub.url], features=Recording()) as router:
        assert ask(router.port, "/v1/messages", messages=[QUESTION], max_tokens=9) == ("hard", "probe")
        called = [QUESTION, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
        assert ask(router.port, "/v1/messages", messages=called, max_tokens=9) == ("hard", "turn")
        called[-1]["content"] = [result, {"type": "text", "text": "<reminder>Keep to the plan.</reminder>"}]
        assert ask(router.port, "/v1/messages", messages=called, max_tokens=9) == ("hard", "turn")


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
def test_a_tool_whose_result_cannot_be_probed(stub: Stub, dialect: str) -> None:
    """It is a part of the turn all the same."""
    if dialect == "chat":
        path, rest = "/v1/chat/completions", {}
        seen = {**RESULT, "content": [{"type": "text", "text": "The page:"}, IMAGE]}
        called = [QUESTION, {"role": "assistant", "content": None, "tool_calls": [CALL]}, seen]
    elif dialect == "responses":
        path, rest = "/v1/responses", {}
        called = [QUESTION, {"type": "web_search_call", "id": "ws_1", "status": "completed"}]
    else:
        path, rest = "/v1/messages", {"max_tokens": 9}
        use = {"type": "tool_use", "id": "call-1", "name": "search", "input": {}}
        source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
        result = {"type": "tool_result", "tool_use_id": "call-1", "content": [{"type": "image", "source": source}]}
        called = [QUESTION, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    field = "input" if dialect == "responses" else "messages"
    features = Recording()
    with running_router([stub.url], features=features) as router:
        assert ask(router.port, path, **{field: [QUESTION]}, **rest) == ("hard", "probe")
        assert ask(router.port, path, **{field: called}, **rest) == ("hard", "turn")
    assert len(features.asked) == 1


@pytest.mark.parametrize(("keep", "then"), [(True, ("hard", "turn")), (False, ("easy", "probe"))])
def test_what_continues_a_stored_answer_is_not_routed_by_its_few_words(
    stub: Stub, keep: bool, then: tuple[str, str]
) -> None:
    with running_router([stub.url], features=Recording(), keep_difficulty=keep) as router:
        raw = json.dumps({"model": "m", "input": [QUESTION]}).encode()
        first = exchange(router.port, request(raw, path="/v1/responses"))
        assert first.headers["x-entropy-rft-difficulty"] == "hard"
        answer = json.loads(first.body)["id"]
        assert ask(router.port, "/v1/responses", input="yes, go on", previous_response_id=answer) == then
        assert ask(router.port, "/v1/responses", input="yes, go on") == ("easy", "probe")


@pytest.mark.parametrize("affinity", ["conversation", "none"])
def test_a_conversation_stays_with_one_backend(stub: Stub, affinity: str) -> None:
    """Eight conversations of four turns; without affinity two backends without load take turns."""
    with Stub() as other, ExitStack() as stack:
        named = [{"url": stub.url, "name": "a"}, {"url": other.url, "name": "b"}]  # their names decide
        router = stack.enter_context(running_router(named, features=Recording(), affinity=affinity))
        for number in range(8):
            said = [{"role": "user", "content": f"Question {number}?"}]
            for _ in range(4):
                ask(router.port, messages=said)
                said = [*said, {"role": "assistant", "content": "Yes."}, GO_ON]
        backends = {each: [request.json["messages"] for request in each.requests] for each in (stub, other)}
    of = [{first(messages) for messages in asked} for asked in backends.values()]
    assert len(of[0] | of[1]) == 8
    if affinity == "conversation":
        assert not of[0] & of[1]
        assert of[0]
        assert of[1]
    else:
        assert of[0] == of[1]


def first(messages: list[dict[str, Any]]) -> str:
    """The user's first message; the router's own instruction may stand before it."""
    return next(message["content"] for message in messages if message["role"] == "user")


class Together(FixedFeatures):
    """Answers when so many have asked."""

    def __init__(self, count: int) -> None:
        super().__init__(EASY)
        self._missing = count
        self._all = asyncio.Event()

    async def proba(self, request: Question) -> tuple[float, float, float]:
        self._missing -= 1
        if not self._missing:
            self._all.set()
        await self._all.wait()
        return EASY


def test_questions_that_are_probed_together_keep_the_bound_of_the_load() -> None:
    """Twenty of one conversation are decided at the same time, before any of them is sent to a backend."""
    count, stubs = 20, [Stub(), Stub()]

    def answer(request: Request) -> Behaviour:
        if sum(len(stub.requests) for stub in stubs) == count:
            for stub in stubs:
                stub.release()
        return Behaviour(stop_before=HEAD)

    with ExitStack() as stack:
        for stub in stubs:
            stub.answer = answer
            stack.enter_context(stub)
        urls = [stub.url for stub in stubs]
        router = stack.enter_context(running_router(urls, features=Together(count), affinity="conversation"))
        pool = stack.enter_context(ThreadPoolExecutor(count))
        list(pool.map(lambda _: ask(router.port, messages=[QUESTION]), range(count)))
        shares = sorted(len(stub.requests) for stub in stubs)
    assert sum(shares) == count
    assert shares[1] <= math.ceil(1.25 * count / 2)
