"""One set of metrics over several processes, while one of them starts or ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from entropy_rft.router import shared_metrics
from entropy_rft.router.shared_metrics import _Merged


def test_a_file_that_is_half_made_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = tmp_path / "counter_1.db"
    half.write_bytes(b"\0")
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        half.unlink()  # its process has ended

    monkeypatch.setattr(shared_metrics.time, "sleep", wait)
    assert list(_Merged(tmp_path).collect()) == []
    assert len(waited) == 1


def test_a_file_that_stays_broken_is_no_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counter_1.db").write_bytes(b"\0")
    monkeypatch.setattr(shared_metrics.time, "sleep", lambda seconds: None)
    with pytest.raises(Exception, match="requires a buffer"):
        _Merged(tmp_path).collect()
