"""Another probe and other strategies while the router runs: what requests get before, during and after, and what a
mistake changes: nothing."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import ServerProcess, router_process
from running import PATIENCE, RunningRouter, running_router
from stub import Stub
from stub_answers import HEAD, pooled
from wire import Reply, exchange, get, request

from entropy_rft.assets import DEFAULT_PROBE
from entropy_rft.difficulty import DifficultyProbe

pytestmark = pytest.mark.integration


def write_probe(directory: Path, temperature: float | None = None) -> str:
    """The embedded probe, or one that differs in its temperature; its digest."""
    probe = DifficultyProbe.from_pretrained(DEFAULT_PROBE)
    if temperature is not None:
        probe.temperature = temperature
    probe.save_pretrained(directory)
    return probe.digest()


def ask(router: RunningRouter | ServerProcess, question: object = 1, stream: bool = False) -> Reply:
    messages = [{"role": "user", "content": f"What is {question} + 1?"}]
    return exchange(router.port, request(json.dumps({"model": "m", "messages": messages, "stream": stream}).encode()))


def reload(router: RunningRouter) -> bool:
    reloading = router.server.router.reloader.reload()
    return asyncio.run_coroutine_threadsafe(reloading, router.loop).result(PATIENCE)


@pytest.fixture
def pooling() -> Iterator[Stub]:
    with Stub(answer=pooled) as pooling:
        yield pooling


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    write_probe(tmp_path / "probe")
    return tmp_path / "probe"


@pytest.fixture
def router(stub: Stub, pooling: Stub, probe: Path) -> Iterator[RunningRouter]:
    features = {"kind": "vllm_pooling", "url": pooling.url, "deadline_ms": 20_000}
    with running_router([stub.url], probe=str(probe), features=features) as router:
        yield router
        router.assert_idle()


def confidence(reply: Reply) -> float:
    assert reply.headers["x-entropy-rft-reason"] in ("probe", "low_confidence")
    return float(reply.headers["x-entropy-rft-confidence"])


def test_another_probe_is_used_and_its_results_are_its_own(router: RunningRouter, probe: Path, pooling: Stub) -> None:
    old = confidence(ask(router))
    assert router.metric("entropy_rft_probe_info", write_probe(probe)[:12]) == 1
    digest = write_probe(probe, temperature=1000.0)  # equal probabilities, nearly
    assert confidence(ask(router)) == old  # not yet
    questions = len(pooling.requests)
    assert reload(router)
    new = confidence(ask(router))
    assert old > 0.4 > new > 1 / 3
    assert len(pooling.requests) == questions + 1  # the same question: the old probe's cache is not asked
    assert confidence(ask(router)) == new
    assert len(pooling.requests) == questions + 1
    assert router.metric("entropy_rft_probe_info", digest[:12]) == 1
    assert router.metric("entropy_rft_probe_info") == 1
    assert router.metric("entropy_rft_reloads_total", 'result="ok"') == 1
    assert router.metric("entropy_rft_feature_cache_total") == 4  # it has not fallen
    assert reload(router)  # nothing has changed: the cache stays
    ask(router)
    assert len(pooling.requests) == questions + 1


def test_a_request_in_flight_ends_with_the_old_probe(router: RunningRouter, probe: Path, pooling: Stub) -> None:
    old = confidence(ask(router, "first"))
    pooling.answer = lambda asked: replace(pooled(asked), stop_before=HEAD)
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(ask, router, "another")
        pooling.wait_for(lambda stub: stub.in_progress == 1)
        write_probe(probe, temperature=1000.0)
        assert reload(router)
        pooling.answer = pooled
        new = confidence(ask(router, "another"))
        assert not waiting.done()
        pooling.release()
        # All of the stub's states for questions with this ending are equal.
        assert confidence(waiting.result(PATIENCE)) == old
        assert new < old
        assert confidence(ask(router, "another")) == new  # what the old one found was not remembered for the new one


def broken_probe(probe: Path) -> None:
    (probe / "probe.json").write_text("{")


def other_placement(probe: Path) -> None:
    data = json.loads((probe / "probe.json").read_text())
    (probe / "probe.json").write_text(json.dumps({**data, "placement": "somewhere"}))


def other_model(probe: Path) -> None:
    data = json.loads((probe / "probe.json").read_text())
    (probe / "probe.json").write_text(json.dumps({**data, "base_model": "another", "temperature": 3.0}))


def other_layer(probe: Path) -> None:
    data = json.loads((probe / "probe.json").read_text())
    (probe / "probe.json").write_text(json.dumps({**data, "layer": 2}))


def no_weights(probe: Path) -> None:
    (probe / "probe.safetensors").unlink()


@pytest.mark.parametrize("spoil", [broken_probe, other_placement, other_model, other_layer, no_weights])
def test_a_mistake_keeps_the_old_probe(
    router: RunningRouter, probe: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    old = confidence(ask(router))
    digest = DifficultyProbe.from_pretrained(probe).digest()
    spoil(probe)
    with caplog.at_level("ERROR"):
        assert not reload(router)
    (record,) = [each for each in caplog.records if "not reloaded" in each.getMessage()]
    assert record.exc_info in (None, False)
    assert "\n" not in record.getMessage()
    assert confidence(ask(router)) == old
    assert router.metric("entropy_rft_reloads_total", 'result="error"') == 1
    assert router.metric("entropy_rft_probe_info", digest[:12]) == 1
    write_probe(probe, temperature=1000.0)
    assert reload(router)
    assert confidence(ask(router)) < old


def test_a_probe_of_another_layer_gets_a_source_of_its_own(stub: Stub, probe: Path) -> None:
    features = {"kind": "local", "deadline_ms": 60_000, "threads": 1}
    with running_router([stub.url], probe=str(probe), features=features) as router:
        old = confidence(ask(router))
        before = router.server.router._parts.features
        data = json.loads((probe / "probe.json").read_text())
        (probe / "probe.json").write_text(json.dumps({**data, "layer": 2}))
        assert reload(router)
        assert confidence(ask(router)) != old  # it reads other states
        router._wait(lambda: before._closed, lambda: "the first source is still open")
        assert router.metric("entropy_rft_feature_up") == 1
        router.wait_for_metric(1, "entropy_rft_ready")


# ---- a process, its settings and its signals


def settings(stub: Stub, **changes: Any) -> dict[str, Any]:
    easy = {"instruction": "Be brief.", "temperature": 0.25}
    return {"backends": [stub.url], "strategies": {"normal": easy}, **changes}


def wait_for_line(process: ServerProcess, words: str, times: int = 1) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.said().count(words) < times:
        assert process.process.poll() is None, process.said()
        assert time.monotonic() < deadline, process.said()
        time.sleep(0.02)  # a log has no event


def reloads(process: ServerProcess, result: str) -> float:
    text = get(process.port, "/metrics").body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith(f'entropy_rft_reloads_total{{result="{result}"}}')]
    return float(line.split()[-1])


def test_sighup_under_load_drops_no_request(stub: Stub, pooling: Stub, probe: Path, tmp_path: Path) -> None:
    """Probe and strategies change ten times while four clients ask and ask; then mistakes, which change nothing."""
    config, rounds = tmp_path / "router.yaml", 10
    source = {"kind": "vllm_pooling", "url": pooling.url, "deadline_ms": 60_000}
    probed = {"probe": str(probe), "features": source, "min_confidence": 0.0}

    def strategies(temperature: float) -> dict[str, Any]:
        return {name: {"instruction": "", "temperature": temperature} for name in ("easy", "normal", "hard")}

    started = settings(stub, **probed, strategies=strategies(0.0))
    with router_process(tmp_path, started, ready="/ready") as process, ThreadPoolExecutor(4) as threads:
        process.wait_until_ready(60)
        going = True

        def client(number: int) -> list[tuple[int, bytes | bool, str]]:
            """Every second one reads streams. The status, whether the answer is whole, and what decided."""
            found = []
            while going:
                reply = ask(process, f"{number}{len(found)}", stream := number % 2 == 0)
                whole = reply.body.endswith(b"data: [DONE]\n\n") if stream else bool(json.loads(reply.body))
                found.append((reply.status, whole, reply.headers["x-entropy-rft-reason"]))
            return found

        clients = [threads.submit(client, number) for number in range(4)]
        for number in range(1, rounds + 1):
            digest = write_probe(probe, temperature=1.0 + number)
            config.write_text(yaml.safe_dump(settings(stub, **probed, strategies=strategies(number / 100))))
            process.process.send_signal(signal.SIGHUP)
            wait_for_line(process, "reloaded: questions", number)
        going = False
        replies = [reply for each in clients for reply in each.result(PATIENCE)]
        assert len(replies) > rounds
        assert set(replies) == {(200, True, "probe")}
        ask(process)
        assert stub.requests[-1].json["temperature"] == rounds / 100
        assert digest[:6] in process.said()

        config.write_text(yaml.safe_dump(settings(stub, **probed, strategies={"normal": {"temprature": 1}})))
        process.process.send_signal(signal.SIGHUP)
        wait_for_line(process, "not reloaded, the probe and the strategies stay as they were")
        config.write_text(yaml.safe_dump(settings(stub, features=source)))  # checked as at the start
        process.process.send_signal(signal.SIGHUP)
        wait_for_line(process, "probe is missing: features need a probe that reads them")
        config.write_text(yaml.safe_dump(settings(stub, **probed, log_requests=True, port=1, rollout=0.0)))
        process.process.send_signal(signal.SIGHUP)
        wait_for_line(process, "these settings have changed, which needs a restart: log_requests")
        wait_for_line(process, "reloaded: questions", rounds + 1)
        assert (reloads(process, "ok"), reloads(process, "error")) == (rounds + 1, 2)
        assert ask(process).headers["x-entropy-rft-arm"] == "control"
        assert "Traceback" not in process.said()
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(PATIENCE) == 0, process.said()


def test_a_changed_file_is_noticed(stub: Stub, tmp_path: Path) -> None:
    strategies = tmp_path / "strategies.yaml"
    strategies.write_text("normal: {instruction: '', temperature: 0.5}\n")
    watching = {"backends": [stub.url], "strategies": str(strategies), "reload": "watch"}
    with router_process(tmp_path, watching, ready="/ready") as process:
        process.wait_until_ready(60)
        ask(process)
        assert stub.requests[-1].json["temperature"] == 0.5
        strategies.write_text("normal: {instruction: '', temperature: 0.75}\n")
        wait_for_line(process, "reloaded: questions")
        ask(process)
        assert stub.requests[-1].json["temperature"] == 0.75
        strategies.write_text("normal: [")
        wait_for_line(process, "not reloaded")
        ask(process)
        assert stub.requests[-1].json["temperature"] == 0.75
        strategies.write_text("normal: {instruction: '', temperature: 1}\n")
        wait_for_line(process, "reloaded: questions", 2)
        assert (reloads(process, "ok"), reloads(process, "error")) == (2, 1)


def test_a_file_that_a_refused_configuration_names_is_watched(stub: Stub, tmp_path: Path) -> None:
    """The configuration may come before the file that it names."""
    watching = {"backends": [stub.url], "reload": "watch"}
    with router_process(tmp_path, watching, ready="/ready") as process:
        process.wait_until_ready(60)
        later = tmp_path / "later.yaml"
        (tmp_path / "router.yaml").write_text(yaml.safe_dump({**watching, "strategies": str(later)}))
        wait_for_line(process, "not reloaded")
        later.write_text("normal: {instruction: '', temperature: 0.25}\n")
        wait_for_line(process, "reloaded: questions")
        ask(process)
        assert stub.requests[-1].json["temperature"] == 0.25


def test_a_changed_probe_is_noticed(stub: Stub, pooling: Stub, probe: Path, tmp_path: Path) -> None:
    source = {"kind": "vllm_pooling", "url": pooling.url, "deadline_ms": 60_000}
    watching = settings(stub, probe=str(probe), features=source, reload="watch")
    with router_process(tmp_path, watching, ready="/ready") as process:
        process.wait_until_ready(60)
        digest = write_probe(probe, temperature=1000.0)
        wait_for_line(process, f"({digest[:6]})")
        assert "reloaded: questions" in process.said()
        assert float(ask(process).headers["x-entropy-rft-confidence"]) < 0.4  # so hot that all are alike
