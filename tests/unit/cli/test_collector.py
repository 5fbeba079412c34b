"""The garbage collector during a command's imports, and at its end."""

from __future__ import annotations

import gc
import subprocess
import sys
from types import ModuleType

import pytest

from entropy_rft.cli import collector


@pytest.fixture
def freezes_made(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each call of `gc.freeze`."""
    calls: list[bool] = []
    monkeypatch.setattr(collector.gc, "freeze", lambda: calls.append(gc.isenabled()))
    return calls


@pytest.mark.parametrize(("modules", "freezes"), [(0, 0), (500, 0), (501, 1)])
def test_nothing_is_collected_while_it_imports(
    modules: int, freezes: int, freezes_made: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector.importing():
        assert not gc.isenabled()
        for number in range(modules):
            monkeypatch.setitem(sys.modules, f"imported_{number}", ModuleType("imported"))
    assert gc.isenabled()
    assert freezes_made == [False] * freezes


def test_a_failed_import_leaves_the_collector_as_it_was(freezes_made: list[bool]) -> None:
    with pytest.raises(ImportError), collector.importing():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off(freezes_made: list[bool]) -> None:
    gc.disable()
    try:
        with collector.importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


CYCLE = """
import atexit
from entropy_rft.cli.collector import end_quickly
class Node:
    def __del__(self):
        print("collected")
atexit.register(print, "at the exit", flush=True)
{}
node = Node()
node.itself = node
del node
"""


@pytest.mark.parametrize(
    ("call", "printed"),
    [("end_quickly(); end_quickly()", ["at the exit"]), ("", ["at the exit", "collected"])],
)
def test_nothing_is_collected_at_the_exit(call: str, printed: list[str]) -> None:
    # -E: without the tests' own sitecustomize.
    command = [sys.executable, "-E", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{CYCLE.format(call)}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == printed
