"""Files are replaced in one step, and nothing else is left in their directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from entropy_rft.atomic import is_temporary, replacing, write_bytes, write_text


def test_writes_a_new_file_and_replaces_an_old_one(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write_text(file, "σ\n")
    assert file.read_bytes() == "σ\n".encode()
    write_bytes(file, b"\r\n", sync=True)
    assert file.read_bytes() == b"\r\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text("old")

    def write_half() -> None:
        with replacing(file) as temporary:
            temporary.write_text("ne")
            assert file.read_text() == "old"
            assert is_temporary(temporary, of="run.json")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupted_write_leaves_no_file(tmp_path: Path) -> None:
    def write_half() -> None:
        with replacing(tmp_path / "new") as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_the_mode_bits_are_those_of_a_plain_open(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "atomic", "")
        (tmp_path / "plain").write_text("")
    finally:
        os.umask(old)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("atomic", "plain")}
    assert modes["atomic"] == modes["plain"] == 0o640


def test_keep_leaves_a_file_that_is_there(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    write_text(file, "first", keep=True, sync=True)
    write_text(file, "second", keep=True)
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]


def test_two_writers_do_not_use_the_same_temporary_file(tmp_path: Path) -> None:
    with replacing(tmp_path / "card") as one, replacing(tmp_path / "card") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "card").read_text() == "one"  # the outer block ends last
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_regular_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "page")
        assert os.read(reader, 16) == b"page"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path, "page")
