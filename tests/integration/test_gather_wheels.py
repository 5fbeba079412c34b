"""Wheels that travel in parts arrive as they were, and replace nothing."""

from __future__ import annotations

import random
import shutil
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.integration

SCRIPTS = Path(__file__).parents[2] / "scripts"
LIMIT = 20_000


@pytest.fixture
def gather_wheels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gather_wheels

    return gather_wheels


def wheel(directory: Path, name: str, data: int) -> Path:
    """A wheel that pip installs: one module and `data` bytes that do not compress."""
    path = directory / f"{name}-9.0-py3-none-any.whl"
    info = f"{name}-9.0.dist-info"
    files = {
        f"{name}/__init__.py": "arrived = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
        archive.writestr(f"{name}/data.bin", random.Random(0).randbytes(data))
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{name}/data.bin"]))
    return path


@pytest.fixture
def transfers(tmp_path: Path, gather_wheels: ModuleType) -> list[Path]:
    """Of a wheel larger than two transfers, a small one, and one of a package that is installed here."""
    whole = tmp_path / "whole"
    whole.mkdir()
    files = [wheel(whole, "gpu_day_large", 45_000), wheel(whole, "gpu_day_small", 10), wheel(whole, "torch", 10)]
    return gather_wheels.lay_out(files, tmp_path / "gathered", LIMIT)


def test_transfers_are_within_the_limit_and_hold_everything_once(transfers: list[Path]) -> None:
    held = [path for folder in transfers for path in folder.iterdir() if path.name != "manifest.json"]
    names = [path.name for path in held]
    large = "gpu_day_large-9.0-py3-none-any.whl"
    assert sorted(names) == [
        *(f"{large}.part{n}of3" for n in (1, 2, 3)),
        "gpu_day_small-9.0-py3-none-any.whl",
        "torch-9.0-py3-none-any.whl",
    ]
    assert len(transfers) == 4  # what is small travels first, together
    for folder in transfers:
        files = [path for path in folder.iterdir() if path.name != "manifest.json"]
        assert sum(path.stat().st_size for path in files) <= LIMIT
    sizes = [path.stat().st_size for path in held if ".part" in path.name]
    assert max(sizes) - min(sizes) <= 1


def test_parts_that_arrive_one_after_another_are_joined_and_installed(
    tmp_path: Path, transfers: list[Path], gather_wheels: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    arrived, target = tmp_path / "arrived", tmp_path / "site"
    words = ["install", "--wheels", str(arrived), "--store", str(tmp_path / "store"), "--target", str(target)]
    for number, folder in enumerate(transfers):
        shutil.rmtree(arrived, ignore_errors=True)  # each transfer replaces the one before
        shutil.copytree(folder, arrived / folder.name)
        assert gather_wheels.main(words) == 0
        said = capsys.readouterr().out
        assert (target / "gpu_day_small" / "__init__.py").is_file()
        assert "torch-9.0-py3-none-any.whl: 2." in said
        assert ("gpu_day_large-9.0-py3-none-any.whl: incomplete, missing" in said) == (number < 3), said
    assert (target / "gpu_day_large" / "data.bin").read_bytes() == random.Random(0).randbytes(45_000)
    assert not (target / "torch").exists()


def test_a_part_that_was_damaged_is_sent_again(
    tmp_path: Path, transfers: list[Path], gather_wheels: ModuleType
) -> None:
    store = tmp_path / "store"
    for folder in transfers:
        shutil.copytree(folder, store, dirs_exist_ok=True)
    part = store / "gpu_day_large-9.0-py3-none-any.whl.part2of3"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit, match=r"checksum of gpu_day_large.* does not match"):
        gather_wheels.join(store)
    complete, waiting = gather_wheels.join(store)
    assert sorted(path.name.partition("-")[0] for path in complete) == ["gpu_day_small", "torch"]
    assert len(waiting["gpu_day_large-9.0-py3-none-any.whl"]) == 3


def test_the_list_of_needs_is_pinned_and_holds_no_torch(gather_wheels: ModuleType) -> None:
    names = []
    for line in gather_wheels.needs(gather_wheels.NEEDS):
        name, _, version = line.partition("==")
        assert version, line
        names.append(name)
    assert len(names) == len(set(names)) > 10
    assert not {"torch", "triton", "transformers", "accelerate", "peft", "numpy"} & set(names)


def test_what_is_neither_a_wheel_nor_a_source_is_named(tmp_path: Path, gather_wheels: ModuleType) -> None:
    (tmp_path / "needs.txt").write_text(f"{tmp_path}/nothing-1.0.whl  # a comment\n")
    words = ["gather", "--needs", str(tmp_path / "needs.txt"), "--wheels", str(tmp_path / "wheels")]
    with pytest.raises(SystemExit, match=r"nothing-1\.0\.whl can be neither downloaded nor built"):
        gather_wheels.main(words)
