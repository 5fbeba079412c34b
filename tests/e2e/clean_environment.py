"""A virtual environment with one wheel and what it declares, and nothing else of the tests' own environment.

What is declared is linked, not installed again: gigabytes would have to be copied, and the versions would be the same.
A package that the wheel needs and does not name is missing here, as it is for a user.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from importlib.metadata import Distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def declared(own: Distribution, extras: frozenset[str]) -> dict[str, Distribution]:
    """What `own` with these extras asks for, and what that asks for in its turn; "" is the extra of what has none."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(own, extras)]
    while waiting:
        distribution, wanted = waiting.pop()
        for requirement in map(Requirement, distribution.requires or []):
            if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in wanted):
                continue
            key = canonicalize_name(requirement.name), frozenset({"", *requirement.extras})
            if key not in seen:
                seen.add(key)
                found[key[0]] = importlib.metadata.distribution(key[0])
                waiting.append((found[key[0]], key[1]))
    return found


def make_environment(directory: Path, wheel: Path, extras: Sequence[str]) -> Path:
    """Make it in `directory`; returns its folder of commands."""
    venv.create(directory)
    commands = directory / ("Scripts" if sys.platform == "win32" else "bin")
    here = Path(sysconfig.get_path("purelib"))
    there = directory / here.relative_to(sys.prefix)
    # `pip install WHEEL` from where it lies: its metadata name what is to be linked.
    # The pip that is here, run by the interpreter there.
    pip = [sys.executable, "-m", "pip", "--python", commands / "python", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    (own,) = importlib.metadata.distributions(name="entropy_rft", path=[str(there)])
    own_extras = frozenset({"", *extras})
    for distribution in declared(own, own_extras).values():
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if (here / top).exists() and not (there / top).exists():
                (there / top).symlink_to(here / top)
    subprocess.run([*pip, "check"], check=True, stdout=subprocess.DEVNULL)
    return commands
