"""What a reader of the results needs to know of the machine: the GPU, the driver, versions, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings this one
    import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("router", "deepspeed")
PACKAGES = ("torch", "triton", "transformers", "accelerate", "peft", "trl", "datasets", "math-verify", "deepspeed")
_QUERY = ("name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.mem")


def environment(dry_run: bool) -> dict[str, Any]:
    """As JSON; says `gpu: null` on a dry run, and where nvidia-smi finds none."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    missing, unfit = lacking()
    return {
        "gpu": None if dry_run else gpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": versions,
        "missing": missing,
        "outside_the_range": unfit,
        "commit": _commit(),
    }


def gpu() -> dict[str, str] | None:
    """What nvidia-smi says of the first one."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True)
    lines = said.stdout.strip().splitlines()
    if said.returncode != 0 or not lines:
        return None
    return dict(zip(_QUERY, (field.strip() for field in lines[0].split(",")), strict=False))


def lacking() -> tuple[list[str], list[str]]:
    """The needs of this project, and their needs, that are not installed; and those in another version than asked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    open_needs = [
        *project["dependencies"],
        *(need for name in EXTRAS for need in project["optional-dependencies"][name]),
    ]
    missing: set[str] = set()
    unfit: set[str] = set()
    seen: set[str] = set()
    for need in open_needs:  # grows in the loop
        requirement = Requirement(need)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            missing.add(need.partition(";")[0].strip())
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            unfit.add(f"{need.partition(';')[0].strip()}: {found}")
        if requirement.name not in seen:
            seen.add(requirement.name)
            open_needs += requires(requirement.name) or []
    return sorted(missing), sorted(unfit)


def _commit() -> str | None:
    if shutil.which("git") is None:
        return None
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return said.stdout.strip() if said.returncode == 0 else None
