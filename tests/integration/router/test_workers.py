"""`entropy-rft serve --workers`: several real processes that are one router for whoever asks, scrapes or stops it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import ServerProcess, router_process
from prometheus_client.parser import text_string_to_metric_families
from stub import Stub
from stub_answers import HEAD, PLAIN, Behaviour, stream_events
from wire import STREAM, Reply, connected, exchange, get, read_reply, request

from entropy_rft.assets import DEFAULT_PROBE

pytestmark = pytest.mark.integration

PATIENCE = 60.0
WHOLE = b"".join(stream_events())


def until(condition: Callable[[], Any], explain: Callable[[], str] = str) -> Any:
    """Wait for what another process does and tells nobody."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, explain()
        time.sleep(0.01)
    return found


def workers(router: ServerProcess) -> list[psutil.Process]:
    return psutil.Process(router.pid).children()


@contextmanager
def started(stub: Stub, directory: Path, count: int = 2, **settings: Any) -> Iterator[ServerProcess]:
    """A router whose workers are all ready; none of them is left after it."""
    with router_process(directory, {"backends": [stub.url], "workers": count, **settings}) as router:
        until(lambda: lines(router, "the router listens") or router.process.poll() is not None, router.said)
        found = workers(router)
        assert len(found) == count, router.said()
        yield router
        found += workers(router) if psutil.pid_exists(router.pid) and router.process.poll() is None else []
    _, left = psutil.wait_procs(found, PATIENCE)
    assert not left
    assert "Traceback" not in router.said()


@contextmanager
def connected_to(worker: psutil.Process, router: ServerProcess) -> Iterator[socket.socket]:
    """A connection that this worker has accepted: as many are made as that takes."""
    with ExitStack() as stack:
        while True:
            connection = stack.enter_context(connected(router.port))
            assert ask(connection, GET).status == 200
            port = connection.getsockname()[1]
            if any(each.raddr and each.raddr.port == port for each in worker.net_connections("tcp")):
                yield connection
                return


def ask(connection: socket.socket, data: bytes) -> Reply:
    connection.sendall(data)
    return read_reply(connection)


def path(path: str) -> bytes:
    return request(b"", path=path, length=-1, method="GET")


GET = path("/health")


def lines(router: ServerProcess, message: str) -> list[dict[str, Any]]:
    """What the log says with this message."""
    logged = [json.loads(line) for line in router.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in logged if line["message"] == message]


def scraped(connection: socket.socket) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The samples of /metrics, by name and labels."""
    families = list(text_string_to_metric_families(ask(connection, path("/metrics")).body.decode()))
    assert len({family.name for family in families}) == len(families), "a family occurs twice"
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for sample in (sample for family in families for sample in family.samples):
        found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def counted(connection: socket.socket) -> float:
    return sum(scraped(connection).get("entropy_rft_requests_total", {}).values())


def test_each_worker_answers_and_knows_what_all_did(stub: Stub, tmp_path: Path) -> None:
    with started(stub, tmp_path, 3) as router:
        first, second, third = workers(router)
        assert len({router.pid, first.pid, second.pid, third.pid}) == 4
        for number, worker in enumerate((first, second, third), 1):
            with connected_to(worker, router) as connection:
                for _ in range(4):
                    assert ask(connection, request()).body == PLAIN
                until(lambda number=number, connection=connection: counted(connection) == 4 * number)
        backend = ("backend", stub.url.removeprefix("http://"))
        for worker in (first, second, third):  # what one of them says is what each says
            with connected_to(worker, router) as connection:
                status = json.loads(ask(connection, path("/status.json")).body)
                assert status["traffic"]["requests"] == 12
                assert [each["up"] for each in status["backends"]] == [True]
                metrics = scraped(connection)
                assert metrics["entropy_rft_ready"] == {(): 1.0}
                assert metrics["entropy_rft_in_flight"] == {(): 0.0}
                assert metrics["entropy_rft_backend_requests_total"] == {(backend,): 12.0}
                assert metrics["entropy_rft_backend_up"] == {(backend,): 1.0}
                assert set(metrics["process_resident_memory_bytes"]) == {
                    (("worker", str(each.pid)),) for each in (first, second, third)
                }
        (line,) = lines(router, "the router listens")
        assert (line["port"], line["workers"]) == (router.port, 3)


def test_what_is_in_flight_is_added_up(stub: Stub, tmp_path: Path) -> None:
    """Also of a worker that does not answer now; it published its own a second ago at most."""
    stub.answer = lambda asked: Behaviour(stop_before=HEAD)
    with started(stub, tmp_path) as router, ExitStack() as stack:
        asked = [stack.enter_context(connected_to(worker, router)) for worker in workers(router)]
        look = stack.enter_context(connected(router.port))
        for connection in asked:
            connection.sendall(request())
        stub.wait_for(lambda stub: stub.in_progress == 2)
        until(lambda: list(scraped(look)["entropy_rft_in_flight"].values()) == [2.0])
        until(lambda: list(scraped(look)["entropy_rft_backend_outstanding"].values()) == [2.0])
        stub.release()
        assert [read_reply(connection).body for connection in asked] == [PLAIN, PLAIN]


def test_one_process_checks_the_backends_for_all(stub: Stub, tmp_path: Path) -> None:
    with started(stub, tmp_path, 3, health={"interval_s": 1000.0}) as router:
        for worker in workers(router):
            with connected_to(worker, router) as connection:
                assert ask(connection, path("/ready")).status == 200
        assert stub.health_checks == 1


def test_what_a_check_finds_reaches_each_worker(stub: Stub, tmp_path: Path) -> None:
    with started(stub, tmp_path, health={"interval_s": 0.05}) as router:
        for healthy, status in ((False, 503), (True, 200)):
            stub.healthy = healthy
            for worker in workers(router):
                with connected_to(worker, router) as connection:
                    until(lambda status=status, on=connection: ask(on, path("/ready")).status == status)
        assert len(lines(router, "backend is down")) == 1
        assert len(lines(router, "backend is up")) == 2  # at the start, and again


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_all_finish_what_they_began(stub: Stub, tmp_path: Path, how: signal.Signals) -> None:
    stub.answer = lambda asked: Behaviour.stream(stop_before=3)
    with started(stub, tmp_path) as router, ExitStack() as stack:
        both = workers(router)
        asked = [stack.enter_context(connected_to(worker, router)) for worker in both for _ in range(4)]
        for connection in asked:
            connection.sendall(request(STREAM))
        stub.wait_for(lambda stub: stub.in_progress == 8)
        router.process.send_signal(how)
        until(lambda: refused(router.port))
        assert router.process.poll() is None
        assert len(workers(router)) == 2
        stub.release()
        replies = [read_reply(connection) for connection in asked]
        assert [(reply.status, reply.whole, reply.body) for reply in replies] == [(200, True, WHOLE)] * 8
        assert router.process.wait(PATIENCE) == 0, router.said()
        assert len(lines(router, "draining")) == 1
        assert not lines(router, "a worker ended and is replaced")


def test_each_says_that_it_drains_and_a_second_signal_does_not_wait(stub: Stub, tmp_path: Path) -> None:
    with started(stub, tmp_path, drain_delay_s=1000.0) as router:
        with ExitStack() as stack:
            connections = [stack.enter_context(connected_to(worker, router)) for worker in workers(router)]
            router.process.send_signal(signal.SIGTERM)
            for connection in connections:
                until(lambda on=connection: ask(on, path("/ready")).status == 503)
                assert ask(connection, request()).headers["connection"] == "close"
        router.process.send_signal(signal.SIGTERM)
        assert router.process.wait(PATIENCE) == 0, router.said()


def test_a_worker_that_dies_is_replaced(stub: Stub, tmp_path: Path) -> None:
    with started(stub, tmp_path) as router:
        lost, kept = workers(router)
        with connected_to(lost, router) as connection:
            assert ask(connection, request()).status == 200
            until(lambda: counted(connection) == 1)
        lost.kill()
        until(lambda: lines(router, "a worker ended and is replaced"))
        assert exchange(router.port, request()).status == 200  # by the other one, meanwhile
        (new,) = until(lambda: [each for each in workers(router) if each not in (lost, kept)])
        with connected_to(new, router) as connection:
            assert ask(connection, request()).status == 200
            until(lambda: counted(connection) == 3)  # what the lost one counted is not lost
            assert set(scraped(connection)["process_cpu_seconds_total"]) == {
                (("worker", str(each.pid)),) for each in (kept, new)
            }
        (line,) = lines(router, "a worker ended and is replaced")
        assert (line["worker"], line["how"], line["level"]) == (lost.pid, "was ended by SIGKILL", "warning")


def test_a_worker_is_replaced_once_it_can_start(stub: Stub, tmp_path: Path) -> None:
    probe, away = tmp_path / "probe", tmp_path / "away"
    shutil.copytree(DEFAULT_PROBE, probe)
    pooling = {"kind": "vllm_pooling", "url": stub.url}
    with started(stub, tmp_path, probe=str(probe), features=pooling) as router:
        lost, kept = workers(router)
        probe.rename(away)
        lost.kill()
        with_cause = until(
            lambda: [each for each in lines(router, "a worker ended and is replaced") if "cause" in each]
        )
        assert str(probe) in with_cause[0]["cause"]
        assert with_cause[0]["how"] == "ended with status 1"
        assert exchange(router.port, request()).status == 200
        away.rename(probe)
        with connected(router.port) as connection:  # to the one that was kept
            until(lambda: len(scraped(connection)["process_cpu_seconds_total"]) == 2)
        assert kept in workers(router)


def test_none_is_left_when_the_first_process_is_killed(stub: Stub, tmp_path: Path) -> None:
    with started(stub, tmp_path) as router:
        both = workers(router)
        os.kill(router.pid, signal.SIGKILL)
        _, left = psutil.wait_procs(both, PATIENCE)
        assert not left


def test_a_port_is_not_shared_with_another_router(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    with started(stub, tmp_path) as router:
        status, said = run_with(tmp_path / "second", router.port, backends=[stub.url], workers=2)
        assert (status, said.count("\n")) == (2, 1)
        assert f"cannot listen on 127.0.0.1 port {router.port}" in said


def moved_probe(directory: Path) -> Path:
    """The embedded probe as if made for a model that does not exist."""
    probe = directory / "probe"
    shutil.copytree(DEFAULT_PROBE, probe)
    config = json.loads((probe / "probe.json").read_text())
    (probe / "probe.json").write_text(json.dumps(config | {"base_model": "nowhere/model"}))
    return probe


def run_with(directory: Path, port: int = 0, **settings: Any) -> tuple[int, str]:
    """Exit code and standard error of a router that cannot start, without what its log says."""
    config = directory / "router.yaml"
    config.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "entropy_rft", "serve", "--config", str(config), "--log_level", "error"]
    result = subprocess.run([*command, "--port", str(port)], capture_output=True, text=True, timeout=PATIENCE)
    assert not result.stdout
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"probe": "nowhere/at/all", "features": {"kind": "vllm"}}, "nowhere/at/all"),
        ({"probe": "moved", "features": {"kind": "vllm"}}, "nowhere/model"),
        ({"probe": "embedded"}, "features.kind is missing"),
        ({"auth": {"keys_file": "/nowhere/keys"}}, "/nowhere/keys"),
        ({"host": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
    ],
    ids=["the probe", "the tokenizer", "features", "a key", "the address"],
)
def test_a_mistake_is_one_line_whatever_the_number(
    stub: Stub, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    if settings.get("probe") == "moved":  # of a model that is not there, which is found out when the server starts
        settings = settings | {"probe": str(moved_probe(tmp_path))}
    alone = run_with(tmp_path, backends=[stub.url], **settings)
    assert run_with(tmp_path, backends=[stub.url], workers=2, **settings) == alone
    assert alone[0] == 2
    assert named in alone[1]
    assert alone[1].count("\n") == 1


def test_a_fault_keeps_its_traceback(stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('router.worker' in word for word in sys.orig_argv):\n"
        "    import entropy_rft.router.app as app\n"
        "    app.RouterApp.__init__ = lambda *given: 1 / 0\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    status, said = run_with(tmp_path, backends=[stub.url], workers=2)
    assert status == 1
    assert said.count("ZeroDivisionError: division by zero") == 1


def refused(port: int) -> bool:
    """Nothing new is taken."""
    try:
        return get(port, "/health").status != 200
    except (ConnectionError, AssertionError):
        return True


def test_each_worker_reloads(stub: Stub, tmp_path: Path) -> None:
    strategies = tmp_path / "strategies.yaml"

    def write(temperature: float) -> None:
        names = ("easy", "normal", "hard")
        found = {name: {"instruction": "", "temperature": temperature, "max_tokens_fraction": 1.0} for name in names}
        strategies.write_text(json.dumps(found))

    def used(connection: socket.socket) -> float:
        assert ask(connection, request()).status == 200
        return float(stub.requests[-1].json["temperature"])

    write(0.25)
    with started(stub, tmp_path, strategies=str(strategies)) as router, ExitStack() as stack:
        connections = [stack.enter_context(connected_to(worker, router)) for worker in workers(router)]
        assert [used(connection) for connection in connections] == [0.25, 0.25]
        write(0.75)
        os.kill(router.pid, signal.SIGHUP)
        for connection in connections:
            until(lambda connection=connection: used(connection) == 0.75, router.said)
        strategies.write_text("easy: 3")
        os.kill(router.pid, signal.SIGHUP)
        said = "not reloaded, the probe and the strategies stay as they were"
        until(lambda: router.log.read_text().count(said) >= 2, router.said)
        assert [used(connection) for connection in connections] == [0.75, 0.75]
        metrics = scraped(connections[0])["entropy_rft_reloads_total"]
        until(lambda: scraped(connections[0])["entropy_rft_reloads_total"][(("result", "error"),)] == 2, router.said)
        assert metrics[(("result", "ok"),)] == 2


HINT = request(headers=(("x-entropy-rft-difficulty", "easy"),))


def change(directory: Path, **settings: Any) -> None:
    """Other settings in the file that `started` wrote."""
    file = directory / "router.yaml"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_settings_that_were_refused_are_not_those_of_a_later_worker(stub: Stub, tmp_path: Path) -> None:
    with started(stub, tmp_path) as router:
        change(tmp_path, strategies="/nowhere.yaml")
        os.kill(router.pid, signal.SIGHUP)
        said = "not reloaded, the probe and the strategies stay as they were"
        until(lambda: router.log.read_text().count(said) >= 2, router.said)
        lost, kept = workers(router)
        lost.kill()
        (new,) = until(lambda: [each for each in workers(router) if each not in (lost, kept)])
        with connected_to(new, router) as connection:
            assert ask(connection, request()).status == 200
        assert not [each for each in lines(router, "a worker ended and is replaced") if "cause" in each]


def test_a_worker_that_was_starting_gets_the_latest_settings(stub: Stub, tmp_path: Path) -> None:
    with started(stub, tmp_path) as router:
        lost, kept = workers(router)
        lost.kill()
        (new,) = until(lambda: [each for each in workers(router) if each not in (lost, kept)])
        change(tmp_path, mode="shadow", drain_s=7.0)
        os.kill(router.pid, signal.SIGHUP)
        with connected_to(new, router) as connection:
            until(lambda: ask(connection, HINT).headers["x-entropy-rft-arm"] == "shadow", router.said)
        assert "these settings have changed, which needs a restart: drain_s" in router.log.read_text()


def test_a_change_of_the_file_reaches_each_worker(stub: Stub, tmp_path: Path) -> None:
    with started(stub, tmp_path, reload="watch") as router, ExitStack() as stack:
        connections = [stack.enter_context(connected_to(worker, router)) for worker in workers(router)]
        change(tmp_path, mode="shadow")
        for connection in connections:
            until(lambda on=connection: ask(on, HINT).headers["x-entropy-rft-arm"] == "shadow", router.said)


def test_a_signal_to_all_processes_is_one_signal(stub: Stub, tmp_path: Path) -> None:
    """As a service manager sends it: the workers get it twice, by themselves and from the first process."""
    with started(stub, tmp_path, drain_delay_s=1000.0) as router:
        with ExitStack() as stack:
            connections = [stack.enter_context(connected_to(worker, router)) for worker in workers(router)]
            for process in [*workers(router), router.process]:
                process.send_signal(signal.SIGTERM)
            for connection in connections:
                until(lambda on=connection: ask(on, path("/ready")).status == 503)
                assert ask(connection, request()).status == 200
        router.process.send_signal(signal.SIGTERM)
        assert router.process.wait(PATIENCE) == 0, router.said()
