#!/usr/bin/env python
"""Gather the wheels that a machine with a GPU and without a network lacks, and install them there.

    python scripts/gather_wheels.py gather                      # here: fills wheels/
    python scripts/gather_wheels.py install                     # there, after each transfer

`gather` downloads each line of scripts/gpu_wheels.txt alone, for the other machine's Python, and builds what the index
has as a source only. It lays everything out in wheels/transfer-1, wheels/transfer-2 and so on, each at most
`--megabytes` large; a larger file is cut into equal parts. wheels/ is ignored by git: if the copy tool needs ignored
paths by name, give it the transfer's folder. Everything small is in wheels/transfer-1, so one transfer is enough for
scripts/gpu_day.py; the others hold SmolLM2.

`install` takes the transfers that have arrived (it keeps what it has seen in `--store`, so the next transfer may
replace the folder), joins the parts, compares checksums, and installs what is complete with --no-index --no-deps. A
package that is installed already, in any version, is kept: nothing replaces torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "wheels"
NEEDS = Path(__file__).resolve().parent / "gpu_wheels.txt"
MANIFEST = "manifest.json"
# pip accepts exactly the tags that it is given.
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34, 35)]
PLATFORMS += ["manylinux2014_x86_64", "manylinux1_x86_64"]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    gather = commands.add_parser("gather", help="download and lay out; needs the package index")
    gather.add_argument("--python-version", default="3.12", help="of the other machine (default: %(default)s)")
    # A transfer also holds the checkout itself, 10 MB.
    gather.add_argument("--megabytes", type=float, default=50, help="of one transfer, at most (default: %(default)s)")
    gather.add_argument("--needs", type=Path, default=NEEDS)
    gather.add_argument("--wheels", type=Path, default=WHEELS)
    install = commands.add_parser("install", help="join what has arrived and install it; needs no network")
    install.add_argument("--wheels", type=Path, default=WHEELS)
    install.add_argument("--store", type=Path, default=Path(tempfile.gettempdir()) / "entropy_rft-wheels")
    install.add_argument("--target", type=Path, help="a folder for PYTHONPATH instead of this Python's own")
    return parser.parse_args(argv)


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def needs(file: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def download(requirement: str, python_version: str, directory: Path) -> None:
    """A wheel for the other machine; from the source where the index has no wheel.

    Raises:
        SystemExit: when there is neither, or when the source makes a wheel for this machine only.
    """
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    wheel = ["download", "--no-deps", "--only-binary", ":all:", "--implementation", "cp", *platforms]
    command = [*pip, *wheel, "--python-version", python_version, "--dest", str(directory), requirement]
    if subprocess.run(command, capture_output=True).returncode == 0:
        return
    before = set(directory.iterdir())
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(directory), requirement],
        env=os.environ | {"DS_BUILD_OPS": "0"},  # DeepSpeed compiles what it needs when it first runs
        capture_output=True,
        text=True,
    )
    if built.returncode != 0:
        raise SystemExit(f"gather_wheels: {requirement} can be neither downloaded nor built:\n{built.stderr[-2000:]}")
    for path in set(directory.iterdir()) - before:
        if not path.name.endswith("-none-any.whl"):
            raise SystemExit(f"gather_wheels: {requirement} was built for this machine only: {path.name}")


def lay_out(files: list[Path], wheels: Path, limit: int) -> list[Path]:
    """Distribute `files` over transfer folders of at most `limit` bytes; returns the folders.

    Whole files come first, the smallest first; a file above `limit` is cut into equal parts, each a transfer's own.
    """
    manifest: dict[str, Any] = {}
    pieces: list[tuple[str, Path, int, int]] = []  # name, file, from, to
    for file in sorted(files, key=lambda path: (path.stat().st_size, path.name)):
        size = file.stat().st_size
        count = -(-size // limit)
        edges = [size * part // count for part in range(count + 1)]
        names = [file.name] if count == 1 else [f"{file.name}.part{n}of{count}" for n in range(1, count + 1)]
        manifest[file.name] = {"sha256": digest(file), "bytes": size, "parts": names}
        pieces += [(name, file, edges[n], edges[n + 1]) for n, name in enumerate(names)]
    for old in wheels.glob("transfer-*"):
        shutil.rmtree(old)
    folders: list[Path] = []
    filled = limit + 1
    for name, file, start, end in pieces:
        if filled + end - start > limit or name != file.name:
            folders.append(wheels / f"transfer-{len(folders) + 1}")
            folders[-1].mkdir(parents=True)
            (folders[-1] / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            filled = 0
        with file.open("rb") as source:
            source.seek(start)
            (folders[-1] / name).write_bytes(source.read(end - start))
        filled += end - start
    return folders


def gather(options: argparse.Namespace) -> int:
    whole = options.wheels / "whole"
    shutil.rmtree(whole, ignore_errors=True)  # another version of a package must not be transferred too
    whole.mkdir(parents=True)
    for requirement in needs(options.needs):
        download(requirement, options.python_version, whole)
        print(f"  {requirement}", flush=True)
    for folder in lay_out(sorted(whole.iterdir()), options.wheels, int(options.megabytes * 1e6)):
        held = [path for path in folder.iterdir() if path.name != MANIFEST]
        print(f"{folder}: {sum(path.stat().st_size for path in held) / 1e6:.1f} MB, {len(held)} files")
    return 0


def join(store: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """Wheels that are complete in `store`, and of the others the parts that have not arrived.

    Raises:
        SystemExit: for a checksum that does not match; the file and its parts are removed, to be sent again.
    """
    complete: list[Path] = []
    waiting: dict[str, list[str]] = {}
    manifest = json.loads((store / MANIFEST).read_text(encoding="utf-8"))
    for name, known in manifest.items():
        parts = [store / part for part in known["parts"]]
        target = store / name
        if not target.exists():
            if missing := [part.name for part in parts if not part.exists()]:
                waiting[name] = missing
                continue
            with target.open("wb") as joined:
                for part in parts:
                    joined.write(part.read_bytes())
        if digest(target) != known["sha256"]:
            for path in {target, *parts}:
                path.unlink(missing_ok=True)
            raise SystemExit(f"gather_wheels: the checksum of {name} does not match: send it again")
        complete.append(target)
    return complete, waiting


def installed(wheel: Path) -> str | None:
    """The version that is there of what `wheel` holds."""
    try:
        return version(wheel.name.split("-")[0])
    except PackageNotFoundError:
        return None


def install(options: argparse.Namespace) -> int:
    options.store.mkdir(parents=True, exist_ok=True)
    for folder in sorted(options.wheels.glob("transfer-*")):
        shutil.copytree(folder, options.store, dirs_exist_ok=True)
    if not (options.store / MANIFEST).exists():
        raise SystemExit(f"gather_wheels: no transfer has arrived in {options.wheels}")
    complete, waiting = join(options.store)
    new = []
    for wheel in complete:
        if (there := installed(wheel)) is None:
            new.append(str(wheel))
        else:
            print(f"{wheel.name}: {there} is installed already, and is kept")
    if new:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        target = ["--target", str(options.target), "--upgrade"] if options.target else []
        subprocess.run([*pip, "--no-index", "--no-deps", "--no-compile", *target, *new], check=True)
    for path in new:
        print(f"{Path(path).name}: installed")
    for name, missing in waiting.items():
        print(f"{name}: incomplete, missing {', '.join(missing)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    return gather(options) if options.command == "gather" else install(options)


if __name__ == "__main__":
    raise SystemExit(main())
