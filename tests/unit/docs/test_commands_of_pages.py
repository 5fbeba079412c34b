"""Every command that a page names is one that this project answers: the verb, its flags, the files."""

from __future__ import annotations

import argparse
import re
import runpy
import sys

import pytest
from reading import ROOT, Command, commands, commands_of

from entropy_rft.cli.errors import UserError
from entropy_rft.cli.main import build_parser
from entropy_rft.errors import UserMistake

_IN_THE_REPOSITORY = re.compile(r"(recipes|scripts|docs)/[^=]*")


def check(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise for what would fail before anything runs: an unknown verb, flag or choice, or a file that is not there."""
    monkeypatch.chdir(ROOT)
    for word in command.words:
        if _IN_THE_REPOSITORY.fullmatch(word):
            assert (ROOT / word).exists(), f"{word} does not exist"
    program, *words = command.words
    if program == "entropy-rft":
        check_verb(words, command.whole)
        return
    script = program
    if program in ("python", "bash"):
        script, *words = words
    if script == "scripts/demo.sh":
        check_verb(["demo", *words], command.whole)
    elif script.endswith(".sh"):  # the others hand their arguments to pytest
        return
    elif words:
        monkeypatch.syspath_prepend(str(ROOT / "scripts"))
        monkeypatch.setattr(sys, "argv", [script, *words])
        runpy.run_path(script, run_name="documentation")["arguments"]()


def check_verb(words: list[str], whole: bool) -> None:
    if words[:1] == ["train"]:
        check_train(words[1:], whole)
        return
    parser = parser_of(words)
    for flag in flags(words):  # in full: argparse would take the beginning of one
        assert flag in parser._option_string_actions, f"{parser.prog} has no {flag}"
    if whole:
        build_parser().parse_args(words)


def parser_of(words: list[str]) -> argparse.ArgumentParser:
    """The parser of the verb that the words begin with, and of the verb's part where it has parts."""
    parser: argparse.ArgumentParser = build_parser()
    for word in words:
        verbs = next((each for each in parser._actions if isinstance(each, argparse._SubParsersAction)), None)
        if verbs is None or word.startswith("-"):
            break
        assert word in verbs.choices, f"{parser.prog} has no verb {word!r}"
        parser = verbs.choices[word]
    return parser


def check_train(words: list[str], whole: bool) -> None:
    from entropy_rft.training.launch import Launch
    from entropy_rft.training.recipe import RecipeParser

    parser = RecipeParser()
    if whole and "--help" not in words:
        launch = Launch.of(words, parser.flags)
        parser.check(words if launch is None else launch.training)
    known = {*parser.flags, "--config", "--accelerate_config"}
    assert [flag for flag in flags(words) if flag not in known and flag != "--help"] == []


def flags(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("--")]


@pytest.mark.parametrize("command", commands(), ids=str)
def test_a_command_is_answered(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command, monkeypatch)


def test_the_pages_have_commands_of_every_kind() -> None:
    found = commands()
    verbs = {command.words[1] for command in found if command.words[0] == "entropy-rft" and command.words[1:]}
    assert {"train", "evaluate", "report", "probe", "serve"} <= verbs
    assert {"scripts/demo.sh", "scripts/test.sh"} <= {command.words[0] for command in found}
    assert ("python", "scripts/reproduce.py") in {command.words[:2] for command in found}


@pytest.mark.parametrize(
    "line",
    [
        "entropy-rft demonstrate",
        "entropy-rft evaluate --model m --task modulo --smaples 8",
        "entropy-rft probe train --traces t --output_dir p --kind forest",
        "entropy-rft train --config recipes/tiny/nothing.yaml",
        "entropy-rft train --config recipes/tiny/grpo.yaml --max_step 5",
        "python scripts/nothing.py",
        "python scripts/reproduce.py --study teeny",
        "bash scripts/nothing.sh",
        "scripts/demo.sh --step 3",
    ],
)
def test_a_wrong_command_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = commands_of(f"```bash\nENVIRONMENT=1 {line}    # a comment\n```\n", "page")
    with pytest.raises((AssertionError, UserError, UserMistake, SystemExit)):
        check(command, monkeypatch)


@pytest.mark.parametrize(
    "span", ["entropy-rft probe rain", "entropy-rft serve --prot 1", "entropy-rft train --lerning 1"]
)
def test_a_wrong_span_is_found(span: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = commands_of(f"Use `{span}`.", "page")
    with pytest.raises(AssertionError):
        check(command, monkeypatch)
