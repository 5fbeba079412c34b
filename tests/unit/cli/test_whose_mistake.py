"""What a check of ours finds is the user's, one line and exit code 2; a fault keeps its traceback, exit code 1."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import entropy_rft
from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_PROBE, DEFAULT_TASK
from entropy_rft.cli.main import main
from entropy_rft.errors import UserMistake, UserOSError, UserTypeError, UserValueError, user_mistake, users

# What each verb calls first of what it does, and the shortest command that gets there.
VERBS = {
    "train": ("entropy_rft.training.run.load_task", ["train", "--output_dir", "run", "--use_cpu", "true"]),
    "evaluate": ("entropy_rft.tasks.load_task", ["evaluate", "--model", DEFAULT_MODEL, "--task", DEFAULT_TASK]),
    "report": ("entropy_rft.evaluation.run.load_run", ["report", "run"]),
    "collect": (
        "entropy_rft.tasks.load_task",
        ["probe", "collect", "--model", DEFAULT_MODEL, "--task", DEFAULT_TASK, "--output_dir", "t"],
    ),
    "probe train": ("entropy_rft.difficulty.load_traces", ["probe", "train", "--traces", "t", "--output_dir", "p"]),
    "probe evaluate": (
        "entropy_rft.difficulty.compare.comparison.held_out_questions",
        ["probe", "evaluate", "--probe", "PROBE", "--traces", "t", "--output_dir", "p"],
    ),
    "serve": ("entropy_rft.router.settings.load_settings", ["serve", "--check"]),
    "demo": ("entropy_rft.demo.run.Demo", ["demo"]),
}


def our_bug(*args: Any, **kwargs: Any) -> None:
    None + 1  # type: ignore[operator]  # noqa: B018


def a_key(*args: Any, **kwargs: Any) -> None:
    {}["gone"]


def a_librarys(*args: Any, **kwargs: Any) -> None:
    raise ValueError("from a library\nin two lines")


def the_users(*args: Any, **kwargs: Any) -> None:
    raise UserValueError("the field x is\nwrong")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable:
    def run(verb: str, bug: Callable) -> tuple[int, str]:
        target, command = VERBS[verb]
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(target, bug)
        probe = str(DEFAULT_PROBE)
        code = main([probe if word == "PROBE" else word for word in command])
        return code, capfd.readouterr().err

    return run


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("bug", "name"), [(our_bug, "TypeError"), (a_key, "KeyError: 'gone'"), (a_librarys, "ValueError: from a library")]
)
def test_a_fault_keeps_its_traceback(verb: str, bug: Callable, name: str, broken: Callable) -> None:
    code, err = broken(verb, bug)
    assert code == 1
    assert "Traceback (most recent call last)" in err
    assert name in err
    assert "please report it with the traceback above" in err.splitlines()[-1]
    assert "entropy-rft: error:" not in err


@pytest.mark.parametrize("verb", VERBS)
def test_a_mistake_of_the_users_is_one_line(verb: str, broken: Callable) -> None:
    code, err = broken(verb, the_users)
    assert code == 2
    assert err.splitlines()[-1] == "entropy-rft: error: the field x is wrong"
    assert "Traceback" not in err


def test_the_kinds_are_what_the_documentation_promises() -> None:
    assert isinstance(user_mistake(TypeError("x")), UserTypeError)
    assert isinstance(user_mistake(FileNotFoundError(2, "gone", "f")), UserOSError)
    assert isinstance(user_mistake(RuntimeError("no\n device"), "device: "), ValueError)
    assert str(user_mistake(RuntimeError("no\n device"), "device: ")) == "device: no device"
    assert str(user_mistake(ValueError())) == "ValueError"
    with pytest.raises(UserOSError), users(OSError):
        raise PermissionError(13, "denied", "f")
    with pytest.raises(KeyError), users(OSError):
        raise KeyError("x")
    with pytest.raises(UserTypeError), users(ValueError):  # ours already: it stays what it is
        raise UserTypeError("x")
    assert issubclass(UserMistake, Exception)


def test_every_check_says_whose_mistake_it_is() -> None:
    """A bare ValueError would be shown as a fault. The mathematics knows no user: whoever calls it converts."""
    package = Path(entropy_rft.__file__).parent
    # Writes that fail and vLLM's own arguments: failures of a run, which `training.failures` tells apart.
    neutral = {"training/run_directory.py", "training/vllm_cpu/trainer_side.py", "router/serve.py"}
    bare = [
        f"{file.relative_to(package)}:{node.lineno}"
        for file in package.rglob("*.py")
        if file.relative_to(package).parts[0] != "entropy" and str(file.relative_to(package)) not in neutral
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in ("ValueError", "TypeError", "OSError")
    ]
    assert bare == []


def test_every_kind_of_mistake_of_our_own_is_one_of_these() -> None:
    """Raising one that is but a ValueError would be shown as a fault too."""
    package = Path(entropy_rft.__file__).parent
    built_in = ("ValueError", "TypeError", "OSError")
    bare = [
        f"{file.relative_to(package)}:{node.lineno}"
        for file in package.rglob("*.py")
        if file != package / "errors.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id in built_in for base in node.bases)
    ]
    assert bare == []
