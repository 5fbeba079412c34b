"""A real vLLM server that generates and evaluates the probe, on the CPU; beside it, what the same server answers
without the probe."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")
pytest.importorskip("aiohttp")

import warm_vllm
from processes import ServerProcess, router_process

from entropy_rft.assets import TINY_PROBE, TINY_REASONER
from entropy_rft.cli.main import main
from entropy_rft.difficulty import DifficultyProbe, choose, question_states
from entropy_rft.difficulty.served import ENV
from entropy_rft.difficulty.served.wire import decoded, request_body
from entropy_rft.router.features import Question, build_features
from entropy_rft.router.settings import load_settings
from entropy_rft.sampling import encode_prompt, load_model_and_tokenizer

pytestmark = [pytest.mark.vllm, pytest.mark.integration]

BLOCK = 32  # tokens of a block of the prefix cache
BUDGET = 64  # tokens of one step: a longer prompt is computed in parts
QUESTIONS = [f"What is {a} + {b}{' - 3' * (4 * b % 31)}?" for a in (1, 20, 99) for b in (2, 13, 19, 23)]
LONG = "What is 1{}?".format(" + 2 - 1" * 30)
# Greedy first: then the prompt is cached. vLLM 0.31 for the CPU fails where a prompt with a seed is computed in parts.
SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1, "seed": 7},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 20, "presence_penalty": 0.3, "seed": 3},
]


def server(log: Path, probe: str, *options: str, warm: bool = True, **environment: str) -> ServerProcess:
    words = ["--model", str(TINY_REASONER), "--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"]
    words += ["--block-size", str(BLOCK), "--max-num-batched-tokens", str(BUDGET), "--max-num-seqs", "16"]
    words += ["--max-model-len", "512", "--host", "127.0.0.1", "--port", "{port}", *options]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", ENV: probe, **environment}
    if warm:
        return ServerProcess(words, log, environment=environment, script=Path(warm_vllm.__file__))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]
    return ServerProcess(command, log, environment=environment)


def post(url: str, body: dict[str, Any], **headers: str) -> Any:
    headers["content-type"] = "application/json"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def counter(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def ordinary(url: str) -> list[Any]:
    """Tokens and log-probabilities of ordinary requests, each after the other."""
    found = []
    for question in QUESTIONS[::5]:
        for options in SAMPLING:
            body = {"model": "tiny", "messages": [{"role": "user", "content": question}], "max_tokens": 48, **options}
            answer = post(f"{url}/v1/chat/completions", {**body, "logprobs": True, "top_logprobs": 5})
            found.append(answer["choices"][0]["logprobs"]["content"])
    return found


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Of a server without the probe, which does not run beside the other one."""
    with server(tmp_path_factory.mktemp("without") / "server.log", "") as plain:
        plain.wait_until_ready()
        with pytest.raises(ValueError, match="the server evaluates no probe"):
            decoded(post(f"{plain.url}/v1/completions", request_body("tiny", [5])))
        return ordinary(plain.url)


@pytest.fixture(scope="module")
def served(without: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server(tmp_path_factory.mktemp("served") / "server.log", str(TINY_PROBE)) as serving:
        serving.wait_until_ready()
        yield serving


@pytest.fixture(scope="module")
def model_and_tokenizer() -> tuple[Any, Any]:
    return load_model_and_tokenizer(str(TINY_REASONER), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def probe() -> DifficultyProbe:
    return DifficultyProbe.from_pretrained(TINY_PROBE)


def conversation(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_the_probabilities_of_a_plain_forward(
    served: ServerProcess, model_and_tokenizer: tuple[Any, Any], probe: DifficultyProbe
) -> None:
    """All at once, with prompts in one step and in several, and again out of the prefix cache."""
    model, tokenizer = model_and_tokenizer
    prompts = [encode_prompt(tokenizer, conversation(question)) for question in QUESTIONS] + [[5], [5] * 511]
    assert sum(len(prompt) > BUDGET for prompt in prompts) > 3
    expected = probe.predict_proba(question_states(model, prompts)).numpy()

    def ask(prompt: list[int]) -> tuple[float, float, float]:
        found, digest = decoded(post(f"{served.url}/v1/completions", request_body("tiny", prompt)))
        assert probe.digest().startswith(digest)
        return found

    for _ in range(2):
        hits = counter(served.url, "vllm:prefix_cache_hits_total")
        with ThreadPoolExecutor(len(prompts)) as threads:
            found = np.array(list(threads.map(ask, prompts)))
        assert np.abs(found - expected).max() < 1e-4
    assert counter(served.url, "vllm:prefix_cache_hits_total") > hits


def test_ordinary_requests_are_those_of_a_server_without_the_probe(
    served: ServerProcess, without: list[Any], model_and_tokenizer: tuple[Any, Any]
) -> None:
    """Tokens and log-probabilities bit for bit, alone and while marked requests are in the same batches."""
    assert sum(len(answer) for answer in without) > 200
    assert ordinary(served.url) == without
    body, stop = request_body("tiny", [5] * 9), False

    def keep_asking() -> int:
        count = 0
        while not stop:
            decoded(post(f"{served.url}/v1/completions", body))
            count += 1
        return count

    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(keep_asking) for _ in range(2)]
        try:
            beside = ordinary(served.url)
        finally:
            stop = True
        assert sum(each.result() for each in asking) > 10
    assert [[token["token"] for token in answer] for answer in beside] == [
        [token["token"] for token in answer] for answer in without
    ]
    # A larger batch may round differently, with or without the probe.
    assert np.abs(np.array(logprobs(beside)) - np.array(logprobs(without))).max() < 1e-5


def logprobs(answers: list[Any]) -> list[float]:
    return [token["logprob"] for answer in answers for token in answer]


def test_the_router_asks_and_the_answer_reuses_the_prefix(
    served: ServerProcess,
    model_and_tokenizer: tuple[Any, Any],
    probe: DifficultyProbe,
    tmp_path: Path,
) -> None:
    model, tokenizer = model_and_tokenizer
    strategy = {"instruction": "", "temperature": 0, "max_tokens_fraction": 1.0}
    settings = {
        "probe": str(TINY_PROBE),
        "backends": [served.url],
        "features": {"kind": "vllm", "deadline_ms": 20_000},
        "strategies": dict.fromkeys(("easy", "normal", "hard"), strategy),
        "min_confidence": 0.0,
    }
    prompt = encode_prompt(tokenizer, conversation(LONG))
    with router_process(tmp_path, settings, ready="/ready") as router:
        router.wait_until_ready(120)
        queries, hits = (counter(served.url, f"vllm:prefix_cache_{name}_total") for name in ("queries", "hits"))
        body = {"model": "tiny", "messages": conversation(LONG), "max_tokens": 4}
        request = urllib.request.Request(
            f"{router.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            assert answer.headers["x-entropy-rft-reason"] == "probe"
            said = answer.headers["x-entropy-rft-difficulty"], float(answer.headers["x-entropy-rft-confidence"])
            assert json.load(answer)["usage"]["prompt_tokens"] == len(prompt)
    expected = probe.predict_proba(question_states(model, [prompt]))[0]
    assert said == (choose(expected).value, pytest.approx(float(expected.max()), abs=1e-4))
    asked = counter(served.url, "vllm:prefix_cache_queries_total") - queries
    assert asked == 2 * len(prompt)  # the question twice: for its difficulty, and for its answer
    reused = counter(served.url, "vllm:prefix_cache_hits_total") - hits
    assert reused == (len(prompt) - 1) // BLOCK * BLOCK  # all that a cache of whole blocks can hold


def test_the_source_of_the_router(
    served: ServerProcess, model_and_tokenizer: tuple[Any, Any], probe: DifficultyProbe
) -> None:
    """From the messages of a request to the probabilities, as `probe evaluate` has them."""
    model, tokenizer = model_and_tokenizer
    prompts = [encode_prompt(tokenizer, conversation(question)) for question in QUESTIONS]
    expected = probe.predict_proba(question_states(model, prompts)).numpy()
    settings = load_settings(None, {"probe": str(TINY_PROBE), "backends": [served.url], "features": {"kind": "vllm"}})

    async def main() -> Any:
        features = build_features(settings, probe)
        await features.start()
        try:
            assert await features.ready()
            asked = (features.proba(Question(messages=conversation(question))) for question in QUESTIONS)
            return await asyncio.gather(*asked)
        finally:
            await features.close()

    assert np.abs(np.array(asyncio.run(main())) - expected).max() < 1e-4


def test_probe_check(
    served: ServerProcess, probe: DifficultyProbe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(directory: Path, *options: str) -> int:
        return main(["probe", "check", "--url", served.url, "--probe", str(directory), *options])

    code = check(TINY_PROBE, "--dtype", "float32")
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "evaluates this probe as a plain forward does" in said.out
    other = DifficultyProbe.from_pretrained(TINY_PROBE)
    other.temperature *= 1.01
    other.save_pretrained(tmp_path / "other")
    assert check(tmp_path / "other", "--quick") == 2
    message = f"evaluates the probe {probe.digest()[:6]}, but the router has {other.digest()[:6]}"
    assert message in capsys.readouterr().err


# ---- the router inside the server

STRATEGIES = {
    "easy": {"instruction": "Answer directly.", "temperature": 0, "max_tokens_fraction": 0.25},
    "normal": {"instruction": "Take care.", "temperature": 0, "max_tokens_fraction": 0.5},
    "hard": {"instruction": "", "temperature": 0, "max_tokens_fraction": 1.0},
}
SETTINGS: dict[str, Any] = {
    "strategies": STRATEGIES,
    "max_tokens": 48,
    "min_confidence": 0.4,
    "features": {"kind": "vllm", "deadline_ms": 20_000},
}
VARIED = [  # of each difficulty
    *("What is 53 + 2?", "What is 98 - 10 + 1?", "What is 49 - 2 - 13?", "What is 40 - 17 + 5 - 4?"),
    *("What is 84 - 18 - 10 + 8 + 20?", "What is 82 - 9 + 11 + 4 - 18 + 1 + 17?", "What is 80 - 3?"),
    *("What is 81 - 14 - 14 + 12 - 4 - 12?", "What is 27 + 18 - 4 - 7?", "What is 6 + 9 - 4 + 16 - 4 - 7 + 8?"),
]
SAID = ("difficulty", "confidence", "reason", "applied")


def asked_in_every_dialect() -> Iterator[tuple[str, dict[str, Any]]]:
    for number, question in enumerate(VARIED):
        common = {"model": "tiny", "stream": number % 3 == 2}
        yield "/v1/chat/completions", {**common, "messages": conversation(question)}
        yield "/v1/completions", {**common, "prompt": question}
        if number % 4 == 0:
            yield "/v1/responses", {**common, "input": question}
            yield "/v1/messages", {**common, "messages": conversation(question), "max_tokens": 30}


def answers(url: str, headers: Mapping[str, str]) -> list[tuple[dict[str, str | None], str]]:
    """What the router says in its headers, and the answer's text; ids and times differ in any case."""
    found = []
    for path, body in asked_in_every_dialect():
        request = urllib.request.Request(
            url + path, json.dumps(body).encode(), {"content-type": "application/json", **headers}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            said = {name: answer.headers[f"x-entropy-rft-{name}"] for name in SAID}
            texts = re.findall(r'"(?:content|text|delta)":\s*"([^"]*)"', answer.read().decode())
            found.append((said, "".join(texts)))  # how a stream is cut into events is a matter of time
    return found


def test_the_middleware_is_the_router(served: ServerProcess, tmp_path: Path) -> None:
    """One process in place of two: the same strategies, headers and answers in every dialect, with the server's key."""
    router_settings = {**SETTINGS, "probe": str(TINY_PROBE), "backends": [served.url]}
    with router_process(tmp_path, router_settings, ready="/ready") as router:
        router.wait_until_ready(120)
        outside = answers(router.url, {})
    assert {said["difficulty"] for said, _ in outside} == {"easy", "normal", "hard"}
    assert all(text for _, text in outside)

    config = tmp_path / "middleware.yaml"
    config.write_text(json.dumps(SETTINGS))
    options = ["--middleware", "entropy_rft.router.middleware.RouterMiddleware", "--api-key", "secret"]
    environment = {"ENTROPY_RFT_CONFIG": str(config)}
    with server(tmp_path / "inside.log", str(TINY_PROBE), *options, warm=False, **environment) as inside:
        inside.wait_until_ready()
        assert "questions get the strategy of the difficulty" in inside.log.read_text()
        assert counter(inside.url, "entropy_rft_feature_up") == 1
        for (said, text), (other, same_text) in zip(answers(inside.url, {"x-api-key": "secret"}), outside, strict=True):
            assert float(said.pop("confidence") or 0) == pytest.approx(float(other.pop("confidence") or 0), abs=2e-4)
            assert said == other
            assert text == same_text

        # A hard question has no instruction: the request for its difficulty has the same tokens as that for its answer.
        queries, hits = (counter(inside.url, f"vllm:prefix_cache_{name}_total") for name in ("queries", "hits"))
        body = {"model": "tiny", "messages": conversation(LONG), "max_tokens": 4}
        answer = post(f"{inside.url}/v1/chat/completions", body, authorization="Bearer secret")
        prompt = answer["usage"]["prompt_tokens"]
        assert counter(inside.url, "vllm:prefix_cache_queries_total") - queries == 2 * prompt
        assert counter(inside.url, "vllm:prefix_cache_hits_total") - hits == (prompt - 1) // BLOCK * BLOCK

        with pytest.raises(urllib.error.HTTPError, match="401"):
            post(f"{inside.url}/v1/chat/completions", body)
        assert counter(inside.url, "entropy_rft_requests_total") == len(outside) + 2

        # A client that leaves ends the generation.
        endless = {**body, "max_tokens": 300, "ignore_eos": True, "stream": True}
        request = urllib.request.Request(
            f"{inside.url}/v1/chat/completions",
            json.dumps(endless).encode(),
            {"content-type": "application/json", "authorization": "Bearer secret"},
        )
        made = counter(inside.url, "vllm:generation_tokens_total")
        with urllib.request.urlopen(request, timeout=60) as stream:
            assert stream.readline().startswith(b"data: ")
            wait_until_running(inside, 1)
        wait_until_running(inside, 0)
        assert counter(inside.url, "vllm:generation_tokens_total") - made < endless["max_tokens"]


def wait_until_running(server: ServerProcess, requests: int) -> None:
    deadline = time.monotonic() + 60
    while counter(server.url, "vllm:num_requests_running") != requests:
        assert time.monotonic() < deadline, server.said()
        time.sleep(0.01)  # vLLM tells nobody that it has begun or aborted a request
