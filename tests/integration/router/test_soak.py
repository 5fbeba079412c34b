"""The soak: what it says of a request, of memory; and the whole of it on a few seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from soak.client import Failure, Tally  # noqa: E402
from soak.ledger import STREAM_PIECES, Ledger, Record  # noqa: E402
from soak.verdict import BEGUN, STREAM_DIED, UNREAD, outcomes, slope, verdict  # noqa: E402

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds"),
]

KILLED = [[], [10.5]]  # the second of two backends
NOTHING = Record(0, 0)


def failure(**changes: Any) -> Failure:
    found = {"number": 0, "stream": True, "start": 10.0, "end": 10.6, "status": 200, "code": "backend_died"}
    return Failure(**{**found, "pieces": 4, "seen": "", **changes})


@pytest.mark.parametrize(
    ("found", "record", "expected"),
    [
        (failure(), Record(1, 4), STREAM_DIED),
        (failure(), Record(1, 3), STREAM_DIED),  # killed between sending and noting it
        (failure(pieces=0, status=502), Record(1, 0), BEGUN),
        (failure(stream=False, pieces=0, status=502), Record(1, 0), BEGUN),
        (failure(pieces=0, status=502), NOTHING, UNREAD),
    ],
)
def test_what_could_not_be_avoided(found: Failure, record: Record, expected: str) -> None:
    assert verdict(found, [NOTHING, record], KILLED) == expected


@pytest.mark.parametrize(
    ("found", "records", "words"),
    [
        (failure(), [Record(1, 4), NOTHING], "its backend lived"),
        (failure(pieces=3), [NOTHING, Record(1, 4)], "events that the backend had sent"),
        (failure(), [NOTHING, Record(1, STREAM_PIECES)], "had sent all of it"),
        (failure(stream=False, pieces=0), [NOTHING, Record(1, 1)], "had sent all of it"),
        (failure(code=""), [NOTHING, Record(1, 4)], "without an error"),
        (failure(code="no_backend", status=503, pieces=0), [NOTHING, NOTHING], "no backend received it"),
        (failure(start=10.55, pieces=0, status=502), [NOTHING, NOTHING], "asked after the backend had died"),
        (failure(), [Record(1, 0), Record(1, 4)], "begun more than once"),
        (failure(), [NOTHING, Record(2, 4)], "begun more than once"),
    ],
)
def test_what_was_lost(found: Failure, records: list[Record], words: str) -> None:
    said = verdict(found, records, KILLED)
    assert said.startswith("lost")
    assert words in said


def test_all_requests_are_counted(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "first"), Ledger(tmp_path / "second")
    tally = Tally(sent=5, answered=3, failures=[failure(number=3), failure(number=4, code="no_backend")])
    tally.whole[0:3] = b"\1\1\1"
    for ledger, number in ((first, 0), (first, 1), (second, 1), (second, 3)):
        ledger.received(number)
    second.written(3, 4)
    assert Ledger(tmp_path / "second").record(3) == Record(1, 4)  # as another process reads it
    found = outcomes(tally, [first, second], KILLED)
    assert found["unavoidable"] == {STREAM_DIED: 1, BEGUN: 0, UNREAD: 0}
    assert (found["lost"], found["without_any_outcome"], found["begun_twice"]) == (1, 0, 1)
    assert found["answered_but_not_received_once"] == 2  # number 1 by both, number 2 by none


def test_the_slope_and_its_interval() -> None:
    random, times = Random(0), [5.0 * number for number in range(720)]
    flat = [300 + random.gauss(0, 0.5) for _ in times]
    growing = [mib + 2.0 * time_s / 3600 for time_s, mib in zip(times, flat, strict=True)]
    low, high = slope(times, flat)["interval"]
    assert low < 0 < high < 0.5
    found = slope(times, growing)
    assert found["blocks"] == 60
    assert found["interval"][0] < 2.0 < found["interval"][1]
    assert found["interval"][0] > 1.0
    walk = [300.0]
    for _ in times[1:]:
        walk.append(walk[-1] + random.gauss(0, 0.1))
    assert slope(times, walk)["autocorrelation"] > 0.5  # so that its interval is wide
    assert slope(times[:10], flat[:10])["interval"] is None


@pytest.mark.soak
def test_a_short_soak(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    command = [sys.executable, str(SCRIPTS / "soak_router.py"), "--minutes", "0.12", "--saturate-seconds", "1"]
    command += ["--rate", "100", "--idle-seconds", "2", "--kill-every", "0.5"]
    command += ["--output", str(output), "--log", str(tmp_path / "log")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(output.read_text())
    assert found["wrong"] == []
    assert sum(found["kills"].values()) >= 2
    counted = found["outcomes"]
    assert counted["sent"] == counted["answered"] + sum(counted["unavoidable"].values())
    assert counted["answered"] > 300
    assert len(found["memory"]["samples"]) >= 2
