"""Paths on the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from entropy_rft.cli.errors import UserError
from entropy_rft.cli.flags import add_effort, check_output, effort_of, path
from entropy_rft.cli.main import build_parser
from entropy_rft.errors import UserValueError


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path("~/report.html") == str(tmp_path / "report.html")
    for text in ("report.html", "./runs/", "runs/~", "/tmp/~x", ""):
        assert path(text) == text
    with pytest.raises(argparse.ArgumentTypeError, match="'~nobody-of-that-name/x' has no home directory"):
        path("~nobody-of-that-name/x")


def actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for own in action.choices.values():
                yield from actions(own)
        else:
            yield action


def test_every_flag_that_names_a_file_or_a_directory_takes_one() -> None:
    kinds = ("DIR", "FILE", "FILE.json", "RUN")
    named = [action for action in actions(build_parser()) if action.metavar in kinds]
    assert len(named) > 15
    assert [action.dest for action in named if action.type is not path] == []


def test_a_user_without_a_home_is_one_line() -> None:
    with pytest.raises(UserError, match="--output: '~nobody-of-that-name/x' has no home directory"):
        build_parser().parse_args(["report", "run", "--output", "~nobody-of-that-name/x"])


def effort(*flags: str) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_effort(parser.add_argument)
    return effort_of(parser.parse_args(flags))


def test_how_much_to_think_on_the_command_line() -> None:
    assert effort() == {}
    found = effort("--thinking_tokens", "0", "--chat_template_kwargs", '{"enable_thinking": false}')
    assert found == {"thinking_tokens": 0, "chat_template_kwargs": {"enable_thinking": False}}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--thinking_tokens", "-1"), "thinking_tokens must be 0 or more"),
        (("--extra_body", "{top_p: 1}"), "--extra_body '{top_p: 1}' is not JSON"),
        (("--extra_body", '{"model": "m"}'), "extra_body must not set 'model'"),
        (("--reasoning_effort", "hgh"), "did you mean high"),
    ],
)
def test_mistakes_in_how_much_to_think(flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        effort(*flags)


def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    check_output(tmp_path / "later" / "result.json")
    check_output(Path("/dev/stdout"))
    with pytest.raises(UserValueError, match="is a directory: give a file name"):
        check_output(tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if not os.access(closed, os.W_OK):  # root may write anywhere
        with pytest.raises(UserValueError, match="cannot be written: give another file"):
            check_output(closed / "result.json")
