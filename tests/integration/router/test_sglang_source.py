"""`SGLang` against a stub of SGLang's protocol: never tried against the real one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from stub_source import SourceServer

from entropy_rft.router.features import FeatureError, ProbedFeatures, build_features
from entropy_rft.router.settings import load_settings
from entropy_rft.router.sglang import SGLang

pytestmark = pytest.mark.integration


def state_of(token_ids: list[int]) -> list[float]:
    return [float(len(token_ids)), float(sum(token_ids)), 3.5, -1e-3]


class Server(SourceServer):
    """As SGLang words it: a state of each generated token's predecessor, here of one."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.mode: str | None = "last"
        super().__init__("/generate", self._generate, [{"id": "tiny", "max_model_len": 20}])

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.requests.append(body)
        self.keys.append(request.headers.get("Authorization"))
        if self.mode is None:
            message = "The server is not configured to return hidden states."
            return web.json_response({"error": {"message": message}}, status=400)
        if any(max(row) >= 1000 for row in body["input_ids"]):
            return web.json_response({"error": {"message": "The input_ids are out of the vocabulary"}}, status=400)
        answers = [{"text": "", "meta_info": {"hidden_states": [state_of(row)]}} for row in body["input_ids"]]
        if self.mode == "none":
            answers = [{"text": "", "meta_info": {}} for _ in answers]
        return web.json_response(answers)


def run(test: Callable[[Server, SGLang], Awaitable[None]], start: bool = True, **options: Any) -> None:
    async def main() -> None:
        server = Server()
        source = SGLang(f"{await server.start()}/v1", **{"width": 4, "api_key": "secret", **options})
        if start:
            await source.start()
        try:
            await test(server, source)
        finally:
            await source.close()
            await server.stop()

    asyncio.run(main())


def test_token_ids_in_and_the_last_state_out() -> None:
    async def test(server: Server, source: SGLang) -> None:
        assert await source.ready()
        questions = [[n, n + 1] for n in range(40)]
        states = await asyncio.gather(*(source.state(question, lambda: True) for question in questions))
        assert [list(state) for state in states] == [pytest.approx(state_of(question)) for question in questions]
        assert len(server.requests) < 40  # several at once
        for body in server.requests:
            assert body["return_hidden_states"] == "last"
            assert body["sampling_params"]["max_new_tokens"] == 1  # with more it would be a later token's
        assert set(server.keys) == {"Bearer secret"}

    run(test)


def test_a_question_that_it_refuses_spoils_no_other() -> None:
    async def test(server: Server, source: SGLang) -> None:
        found = await asyncio.gather(
            *(source.state(question, lambda: True) for question in ([1], [1000], [2])), return_exceptions=True
        )
        assert list(found[0]) == pytest.approx(state_of([1]))  # type: ignore[arg-type]
        assert isinstance(found[1], FeatureError)
        assert "out of the vocabulary" in str(found[1])
        assert list(found[2]) == pytest.approx(state_of([2]))  # type: ignore[arg-type]

    run(test)


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        (None, {}, "not configured to return hidden states"),
        ("none", {}, "gave something other than states"),
        ("last", {"width": 5}, "states of width 4, but the probe reads 5"),
        ("last", {"model": "other"}, "has no model 'other', only tiny"),
    ],
)
def test_a_server_that_cannot_be_used(mode: str | None, options: dict[str, Any], message: str) -> None:
    async def test(server: Server, source: SGLang) -> None:
        server.mode = mode
        source._client.open()
        assert not await source.ready()
        with pytest.raises(FeatureError, match=message):
            await source.state([5], lambda: True)

    run(test, start=False, **options)


def test_another_layer_than_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match="reads layer 3, but an SGLang server gives only the last one"):
        SGLang("http://a", layer=3)


def test_the_settings_name_it() -> None:
    from entropy_rft.difficulty import DifficultyProbe
    from entropy_rft.router.loading import load_probe

    settings = load_settings(None, {"probe": "embedded", "features": {"kind": "sglang", "url": "http://a"}})
    probe = load_probe(settings)
    assert isinstance(probe, DifficultyProbe)
    features = build_features(settings, probe)
    assert isinstance(features, ProbedFeatures)
    assert isinstance(features.states, SGLang)
    assert features.states.width == probe.width
    with pytest.raises(ValueError, match="sglang needs url, the address of a server started with --return-hidden"):
        load_settings(None, {"probe": "embedded", "features": {"kind": "sglang"}})
