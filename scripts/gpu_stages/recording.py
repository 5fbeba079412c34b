"""One stage's result, written to disk with its first number.

The file of a stage is JSON: what the runner (gpu_day.py) records (`stage`, `status`, `reason`, `seconds`,
`environment`), and what the stage itself records: `results` by name, `checks` that must hold, and `goals`, which are
numbers with a limit. A check that does not hold makes the stage failed; a goal that is missed is a finding.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from entropy_rft.assets import DEFAULT_MODEL
from entropy_rft.files import json_text

ROOT = Path(__file__).resolve().parents[2]
ENGINES = ("fsdp2", "ddp", "zero3")


def read(path: Path) -> dict[str, Any]:
    """A stage's file; nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(path: Path, document: dict[str, Any]) -> None:
    """Replace the file in one step, so that it is never incomplete."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json_text(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


class Stage:
    """The arguments of a stage, and the record of its results.

    Args:
        argv: as the runner gives it.

    Attributes:
        dry_run: reduced size, on the CPU.
        work: a directory for files that are not needed afterwards.
        model: that the stage `methods` trains.
        engines: that the stage `engines` compares.
    """

    def __init__(self, argv: Sequence[str] | None = None) -> None:
        parser = argparse.ArgumentParser(description="A stage of scripts/gpu_day.py, which says what it does.")
        parser.add_argument("--result", type=Path, required=True)
        parser.add_argument("--work", type=Path, required=True)
        parser.add_argument("--seconds", type=float, required=True, help="after which the runner ends this process")
        parser.add_argument("--model", default=DEFAULT_MODEL)
        parser.add_argument("--engines", nargs="+", default=ENGINES)
        parser.add_argument("--dry-run", action="store_true")
        options = parser.parse_args(argv)
        self.path: Path = options.result
        self.work: Path = options.work
        self.model: str = options.model
        self.engines: list[str] = options.engines
        self.dry_run: bool = options.dry_run
        self.device = "cpu" if options.dry_run else "cuda"
        self._end = time.monotonic() + options.seconds
        self._document = read(self.path)
        for part in ("results", "checks", "goals"):
            self._document[part] = {}

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def put(self, name: str, value: Any) -> None:
        """Record a result, replacing an earlier one of that name."""
        self._document["results"][name] = value
        write(self.path, self._document)
        print(f"{name}: {json_text(value)[:400]}", flush=True)

    def check(self, name: str, holds: bool, detail: Any = None) -> None:
        """Record something that must hold."""
        self._document["checks"][name] = {"holds": bool(holds)} | ({} if detail is None else {"detail": detail})
        write(self.path, self._document)
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {name}", flush=True)

    def goal(self, name: str, value: float, limit: float, kind: str = "at most") -> None:
        """Record a number and how it compares with its limit."""
        met = value <= limit if kind == "at most" else value >= limit
        self._document["goals"][name] = {"value": value, kind: limit, "met": bool(met)}
        write(self.path, self._document)
        print(f"goal {'met' if met else 'missed'}: {name} = {value:.4g}, {kind} {limit}", flush=True)

    def attempt(self, name: str, part: Callable[[], None]) -> None:
        """Run one part of the stage; an error is recorded, fails the stage in the end, and the next part runs."""
        try:
            part()
        except Exception as error:
            traceback.print_exc()
            self.check(name, False, f"{type(error).__name__}: {error}"[:2000])

    def finish(self) -> int:
        """The exit code; says which checks do not hold, in the last line."""
        broken = [name for name, check in self._document["checks"].items() if not check["holds"]]
        if broken:
            print(f"these checks do not hold: {'; '.join(broken)}", file=sys.stderr, flush=True)
        return 1 if broken else 0


def child_environment(**further: str) -> dict[str, str]:
    """For processes of this checkout: its package, scripts and test helpers are found, and no hub is asked."""
    paths = [ROOT, ROOT / "scripts", ROOT / "tests" / "integration", ROOT / "tests" / "integration" / "router"]
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [path for path in inherited if path and path not in map(str, paths)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([*map(str, paths), *kept]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "",  # gather_wheels.py installs without compiling, and each stage imports the same
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        **further,
    }
