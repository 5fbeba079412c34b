"""The router before two real vLLM servers, one that generates and one that pools; and traces from the former."""

from __future__ import annotations

import contextlib
import io
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import anthropic
import openai
from processes import ServerProcess, router_process
from vllm_servers import POOLING_KEY, SERVED

from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_PROBE, DEFAULT_TASK
from entropy_rft.difficulty import DifficultyProbe, question_states
from entropy_rft.models.sources import model_source
from entropy_rft.sampling import encode_prompt
from entropy_rft.tasks import load_task

pytestmark = [pytest.mark.vllm, pytest.mark.integration]

MIN_CONFIDENCE = 0.5
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"operation": {"enum": ["add", "subtract"]}},
    "required": ["operation"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def servers(vllm_servers: tuple[ServerProcess, ServerProcess]) -> tuple[ServerProcess, ServerProcess]:
    """The one that generates, and the one that pools."""
    return vllm_servers


@pytest.fixture(scope="module")
def router(
    servers: tuple[ServerProcess, ServerProcess], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    generating, pooling = servers
    settings = {
        "probe": str(DEFAULT_PROBE),
        "backends": [{"url": generating.url}],
        "features": {
            "kind": "vllm_pooling",
            "url": pooling.url,
            "api_key_env": "POOLING_KEY",
            "deadline_ms": 20_000,
        },
        "min_confidence": MIN_CONFIDENCE,
        "max_tokens": 200,
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("POOLING_KEY", POOLING_KEY)
        process = router_process(tmp_path_factory.mktemp("router"), settings, ready="/ready")
    with process as router:
        router.wait_until_ready(120)
        yield router


@pytest.fixture
def client(router: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{router.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def claude(router: ServerProcess) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=router.url, api_key="unused", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def plain() -> Any:
    """From messages to the hidden state and the probe's probabilities, by a plain forward of transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_source(DEFAULT_MODEL), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_source(DEFAULT_MODEL))
    probe = DifficultyProbe.from_pretrained(DEFAULT_PROBE)

    def ask(messages: list[dict[str, str]]) -> tuple[list[int], Any, Any]:
        ids = encode_prompt(tokenizer, messages)
        state = question_states(model, [ids])
        return ids, state[0], probe.predict_proba(state)[0]

    return ask


def questions(count: int = 24) -> list[list[dict[str, str]]]:
    """Easy and hard sums."""
    return [row["prompt"] for row in load_task(DEFAULT_TASK, split="test", limit=count).dataset]


def metric(server: ServerProcess, name: str, *labels: str) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    chosen = [line for line in lines if line.startswith((name + "{", name + " ")) and all(x in line for x in labels)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in chosen)


def test_difficulties_are_those_of_a_plain_forward(client: openai.OpenAI, router: ServerProcess, plain: Any) -> None:
    found = []
    for messages in questions():
        # A short answer, since only the question matters here.
        raw = client.chat.completions.with_raw_response.create(model=SERVED, messages=messages, max_tokens=16)
        answer = raw.parse()
        assert answer.choices[0].message.content
        assert answer.usage.completion_tokens > 1
        _, _, proba = plain(messages)
        headers = raw.headers
        assert float(headers["x-entropy-rft-confidence"]) == pytest.approx(float(proba.max()), abs=1e-3)
        sure = float(proba.max()) >= MIN_CONFIDENCE
        assert headers["x-entropy-rft-reason"] == ("probe" if sure else "low_confidence")
        expected = ("easy", "normal", "hard")[int(proba.argmax())] if sure else "normal"
        assert headers["x-entropy-rft-difficulty"] == expected
        found.append(expected)
    assert len(set(found)) > 1, found  # otherwise a constant would pass
    for name in set(found):
        counted = metric(router, "entropy_rft_requests_total", f'difficulty="{name}"', 'status="200"')
        assert counted >= found.count(name)


def test_states_of_the_pooling_server_are_exact(servers: tuple[ServerProcess, ServerProcess], plain: Any) -> None:
    import asyncio

    import torch

    from entropy_rft.router.vllm_pooling import VLLMPooling

    async def states(prompts: list[list[int]]) -> list[Any]:
        pooling = VLLMPooling(servers[1].url, api_key=POOLING_KEY, width=128)
        await pooling.start()
        try:
            assert await pooling.ready()
            return await asyncio.gather(*(pooling.state(ids, lambda: True) for ids in prompts))
        finally:
            await pooling.close()

    expected = [plain(messages) for messages in questions()]
    given = asyncio.run(states([ids for ids, _, _ in expected]))
    for state, (_, wanted, _) in zip(given, expected, strict=True):
        assert torch.allclose(torch.tensor(state), wanted, rtol=0, atol=1e-4)


def test_a_strategy_reaches_the_model(client: openai.OpenAI) -> None:
    messages = questions(1)[0]
    plain_tokens = client.chat.completions.create(
        model=SERVED, messages=messages, temperature=0, max_tokens=1
    ).usage.prompt_tokens
    ends = {}
    for difficulty in ("easy", "normal", "hard"):
        answer = client.chat.completions.create(
            model=SERVED, messages=messages, extra_body={"difficulty": difficulty, "ignore_eos": True}
        )
        ends[difficulty] = (answer.usage.completion_tokens, answer.choices[0].finish_reason)
        assert answer.usage.prompt_tokens >= plain_tokens - 20
    strategies = DifficultyProbe.from_pretrained(DEFAULT_PROBE).strategies
    expected = {s.difficulty.name.lower(): (s.max_tokens(200), "length") for s in strategies.values()}
    assert ends == expected


def test_what_a_client_may_ask_of_vllm(client: openai.OpenAI) -> None:
    messages = questions(1)[0]
    answer = client.chat.completions.create(
        model=SERVED, messages=messages, n=2, logprobs=True, top_logprobs=2, max_tokens=40, seed=1
    )
    assert len(answer.choices) == 2
    assert all(len(entry.top_logprobs) == 2 for entry in answer.choices[0].logprobs.content)
    chunks = list(
        client.chat.completions.create(
            model=SERVED, messages=messages, stream=True, stream_options={"include_usage": True}, max_tokens=40
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage.completion_tokens > 1
    text = client.completions.create(model=SERVED, prompt="2 + 2 =", max_tokens=5)
    assert text.choices[0].finish_reason
    assert [model.id for model in client.models.list()] == [SERVED]
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="another", messages=messages)


CONVERSATIONS: list[list[Any]] = [
    *questions(4),
    [{"role": "system", "content": "Think."}, *questions(1)[0]],
    [*questions(1)[0], {"role": "assistant", "content": "5"}, *questions(2)[1]],
]


@pytest.mark.parametrize("difficulty", ["auto", "hard"])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_same_question_in_every_dialect(
    client: openai.OpenAI, claude: anthropic.Anthropic, messages: list[Any], difficulty: str
) -> None:
    """The same decision, with the same confidence, and vLLM counts the same tokens: the prompts are equal."""
    how: dict[str, Any] = {"model": SERVED, "extra_headers": {"x-entropy-rft-difficulty": difficulty}}
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    spoken = messages[1:] if system else messages
    chat = client.chat.completions.with_raw_response.create(messages=messages, max_tokens=4, **how)
    instructions = {"instructions": system} if system else {}
    response = client.responses.with_raw_response.create(input=spoken, max_output_tokens=4, **instructions, **how)
    items = client.responses.with_raw_response.create(input=messages, max_output_tokens=4, **how)
    given = {"system": system} if system else {}
    message = claude.messages.with_raw_response.create(messages=spoken, max_tokens=4, **given, **how)
    raws = (chat, response, items, message)
    for name in ("difficulty", "reason", "confidence"):
        assert len({raw.headers[f"x-entropy-rft-{name}"] for raw in raws}) == 1, name
    usages = [raw.parse().usage for raw in raws]
    assert len({usages[0].prompt_tokens, *(usage.input_tokens for usage in usages[1:])}) == 1
    assert [usages[0].completion_tokens, *(usage.output_tokens for usage in usages[1:])] == [4] * 4


def test_responses_streamed(client: openai.OpenAI) -> None:
    question: Any = questions(1)[0]
    plain = client.responses.create(model=SERVED, input=question, max_output_tokens=40, temperature=0)
    how: dict[str, Any] = {"reasoning": {"effort": "low"}}
    events = list(
        client.responses.create(
            model=SERVED, input=question, max_output_tokens=40, temperature=0, stream=True, extra_body=how
        )
    )
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == plain.output_text
    assert text
    assert events[-1].response.reasoning.effort == "low"
    assert events[-1].response.usage.output_tokens > 1


def test_responses_are_stored_and_continued(client: openai.OpenAI, router: ServerProcess) -> None:
    question = questions(1)[0][0]["content"]
    first = client.responses.create(model=SERVED, input=question, max_output_tokens=8)
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(model=SERVED, input=question, max_output_tokens=8, previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert second.usage.input_tokens > first.usage.input_tokens
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.create(model=SERVED, input=question, previous_response_id="resp_nowhere")
    with pytest.raises(openai.BadRequestError, match="Cannot cancel"):
        client.responses.cancel(first.id)


@pytest.mark.parametrize("stream", [False, True])
def test_tools_in_responses(client: openai.OpenAI, stream: bool) -> None:
    how: dict[str, Any] = {
        "model": SERVED,
        "input": questions(1)[0],
        "tools": [{"type": "function", "name": "calculate", "parameters": SCHEMA, "strict": True}],
        "tool_choice": {"type": "function", "name": "calculate"},
        "max_output_tokens": 1500,  # the schema allows any white space,
        "temperature": 1,  # in which a colder model could go on and on
    }
    if stream:
        answer = list(client.responses.create(stream=True, **how))[-1].response
    else:
        answer = client.responses.create(**how)
    (call,) = (item for item in answer.output if item.type == "function_call")
    assert call.name == "calculate"
    assert json.loads(call.arguments)["operation"] in ("add", "subtract")
    own = {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "4"}
    how |= {"input": [*how["input"], own, result], "tool_choice": "none"}
    assert client.responses.create(**how).output_text


def test_messages_streamed(claude: anthropic.Anthropic) -> None:
    how: dict[str, Any] = {"model": SERVED, "messages": questions(1)[0], "max_tokens": 40}
    greedy = {"extra_body": {"temperature": 0}}
    plain = claude.messages.create(**how, **greedy)
    with claude.messages.stream(**how, **greedy) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text
    assert text == plain.content[0].text
    assert (final.usage, final.stop_reason) == (plain.usage, plain.stop_reason)
    assert claude.messages.count_tokens(model=SERVED, messages=how["messages"]).input_tokens > 1


@pytest.mark.parametrize("stream", [False, True])
def test_tools_in_messages(claude: anthropic.Anthropic, stream: bool) -> None:
    how: dict[str, Any] = {
        "model": SERVED,
        "messages": questions(1)[0],
        "tools": [{"name": "calculate", "input_schema": SCHEMA, "strict": True}],
        "tool_choice": {"type": "tool", "name": "calculate"},
        "max_tokens": 1500,
        "extra_body": {"temperature": 1},
    }
    if stream:
        with claude.messages.stream(**how) as events:
            answer = events.get_final_message()
    else:
        answer = claude.messages.create(**how)
    (use,) = (block for block in answer.content if block.type == "tool_use")
    assert use.name == "calculate"
    assert use.input["operation"] in ("add", "subtract")
    said = {"type": "tool_use", "id": use.id, "name": use.name, "input": use.input}
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "4"}
    turns = [{"role": "assistant", "content": [said]}, {"role": "user", "content": [result]}]
    how |= {"messages": [*how["messages"], *turns], "tool_choice": {"type": "none"}}
    assert claude.messages.create(**how).content[0].text


def test_a_budget_for_thinking_reaches_vllm(claude: anthropic.Anthropic) -> None:
    how: dict[str, Any] = {"model": SERVED, "messages": questions(1)[0]}
    thinking: Any = {"type": "enabled", "budget_tokens": 1024}
    assert claude.messages.create(max_tokens=1100, thinking=thinking, **how).content[0].text
    with pytest.raises(anthropic.BadRequestError, match="budget_tokens must be less than max_tokens") as refusal:
        claude.messages.create(max_tokens=1000, thinking=thinking, **how)
    assert refusal.value.type == "invalid_request_error"


def test_vllms_errors_in_each_dialect(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    question: Any = questions(1)[0]
    with pytest.raises(openai.NotFoundError, match="another"):
        client.responses.create(model="another", input=question)
    with pytest.raises(anthropic.NotFoundError, match="another") as missing:
        claude.messages.create(model="another", messages=question, max_tokens=4)
    assert missing.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="tool_choice") as refusal:
        claude.messages.create(model=SERVED, messages=question, max_tokens=4, extra_body={"tool_choice": {"type": "x"}})
    assert refusal.value.type == "invalid_request_error"


def test_a_client_that_leaves_ends_the_generation(
    client: openai.OpenAI, servers: tuple[ServerProcess, ServerProcess]
) -> None:
    finished = ("vllm:request_success_total", 'finished_reason="length"')
    generated = "vllm:generation_tokens_total"
    before = metric(servers[0], *finished), metric(servers[0], generated)
    stream = client.chat.completions.create(
        model=SERVED, messages=questions(1)[0], stream=True, max_tokens=400, n=8, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert metric(servers[0], "vllm:num_requests_running")
    stream.close()
    deadline = time.monotonic() + 60
    while metric(servers[0], "vllm:num_requests_running"):
        assert time.monotonic() < deadline
        time.sleep(0.1)  # vLLM tells nobody
    assert metric(servers[0], *finished) == before[0]
    assert metric(servers[0], generated) - before[1] < 400 * 8 / 2


def test_a_limit_on_the_thinking_is_that_of_transformers(
    servers: tuple[ServerProcess, ServerProcess], tmp_path: Path
) -> None:
    """vLLM and our own sampler end the same greedy thinking at the same token, and go on alike."""
    from entropy_rft.sampling import TransformersSampler, load_model_and_tokenizer
    from entropy_rft.sampling.openai_sampler import OpenAISampler

    model, tokenizer = load_model_and_tokenizer(DEFAULT_MODEL, dtype="float32", device="cpu")
    local, served = TransformersSampler(model, tokenizer), OpenAISampler(servers[0].url, tokenizer)
    prompts = [*questions(8), [*questions(1)[0], {"role": "assistant", "content": "<think>"}]]
    for limit in (0, 12):
        settings = {"temperature": 0, "max_tokens": 96, "progress": False, "thinking_tokens": limit}
        ours, theirs = local.sample(prompts, **settings), served.sample(prompts, **settings)
        cut = [tokenizer.decode(own.token_ids[:-1]).partition("<think>")[2] for (own,) in ours]
        assert sum(len(tokenizer(text.partition("</think>")[0])["input_ids"]) == limit for text in cut) >= 6, cut
        same = [own.token_ids == their.token_ids for (own,), (their,) in zip(ours, theirs, strict=True)]
        assert sum(same) >= len(prompts) - 1, same  # where two tokens are equally likely, rounding decides
    settings["thinking_tokens"] = None
    assert [own.token_ids for (own,) in local.sample(prompts[:8], **settings)] != [own.token_ids for (own,) in ours[:8]]

    strategies = {"easy": {"thinking_tokens": 5, "extra_body": {"ignore_eos": True}}}
    with router_process(tmp_path, {"backends": [{"url": servers[0].url}], "strategies": strategies}) as router:
        router.wait_until_ready(120)
        with openai.OpenAI(base_url=f"{router.url}/v1", api_key="unused", max_retries=0, timeout=120) as client:
            raw = client.chat.completions.with_raw_response.create(
                model=SERVED, messages=questions(1)[0], max_tokens=40, extra_body={"difficulty": "easy"}
            )
    assert "thinking_token_budget=5" in raw.headers["x-entropy-rft-applied"]
    assert raw.parse().usage.completion_tokens == 40
    thinking = raw.parse().choices[0].message.content.partition("<think>")[2].partition("</think>")[0]
    assert 0 < len(tokenizer(thinking)["input_ids"]) <= 5


def test_traces_from_a_real_server(servers: tuple[ServerProcess, ServerProcess], tmp_path: Path) -> None:
    """Greedy answers of vLLM and of transformers are the same, so the traces are: states come from the local model."""
    from entropy_rft.cli.main import main
    from entropy_rft.difficulty import load_traces

    flags = ["--model", DEFAULT_MODEL, "--task", DEFAULT_TASK, "--limit", "12", "--samples", "2", "--device", "cpu"]
    flags += ["--max_tokens", "96", "--temperature", "0"]
    for name, extra in (("served", ["--url", servers[0].url]), ("local", [])):
        err = io.StringIO()
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            code = main(["probe", "collect", *flags, "--output_dir", str(tmp_path / name), *extra])
        assert code == 0, err.getvalue()
    served, local = load_traces(tmp_path / "served"), load_traces(tmp_path / "local")
    assert json.loads((tmp_path / "served" / "settings.json").read_text())["sampler"] == "openai"
    assert (served.hidden == local.hidden).all()
    same = [a["answer_tokens"] == b["answer_tokens"] for a, b in zip(served.rows, local.rows, strict=True)]
    assert sum(same) >= 11, same  # where two tokens are equally likely, rounding decides
    for mine, other, equal in zip(served.rows, local.rows, same, strict=True):
        if equal:
            assert mine["correct"] == other["correct"]
            assert mine["entropy"] == pytest.approx(other["entropy"], abs=1e-4)
