from __future__ import annotations

import threading
import time

import pytest

from entropy_rft.sampling import progress
from entropy_rft.sampling.progress import duration, progress_bar


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.4, "4 s"), (89, "89 s"), (95, "1 min 35 s"), (599, "9 min 59 s"), (1500, "25 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_file_gets_a_line_now_and_then_also_within_a_long_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    lines = ""
    with progress_bar("training", 30) as advance:
        advance(12, "[reward] 0.60")
        end = time.monotonic() + 10
        while lines.count("\n") < 2:  # nothing advances meanwhile
            assert time.monotonic() < end
            time.sleep(0.001)
            lines += capsys.readouterr().err
    assert lines.splitlines()[-1] == "training: 12 of 30 after 0 s, [reward] 0.60"
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_what_is_over_soon_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_last_line", time.monotonic())
    with progress_bar("sampling", 3) as advance:
        advance(3, "")
    assert capsys.readouterr().err == ""


def test_short_bars_do_not_add_up_to_a_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_last_line", time.monotonic() - progress.LINE_SECONDS)
    with progress_bar("sampling", 3) as advance:
        end = time.monotonic() + 10
        while not (lines := capsys.readouterr().err):
            assert time.monotonic() < end
            time.sleep(0.001)
        advance(3, "")
    assert lines.startswith("sampling: 0 of 3")
