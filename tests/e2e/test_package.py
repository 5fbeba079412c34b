"""The package as users get it: built, installed outside the source tree, and run from an empty directory."""

from __future__ import annotations

import email
import json
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import pytest
from clean_environment import make_environment
from processes import ServerProcess

from entropy_rft.assets import DEFAULT_MODEL, EMBEDDED_MODELS

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, made from the sdist, and the sdist."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,), (sdist,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def commands(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("clean") / "venv", built[0], ["report", "router"])


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the source tree's environment but what every test sets."""
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)


def run(commands: Path, cwd: Path, *words: str) -> str:
    result = subprocess.run(
        [commands / "entropy-rft", *words], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_the_metadata_are_complete(built: tuple[Path, Path]) -> None:
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)]
    result = subprocess.run(check, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(wheel.read(name))
        assert metadata["Name"] == "entropy_rft"
        assert metadata["Summary"]
        assert metadata["License-Expression"] == "Apache-2.0"
        assert metadata.get_all("Project-URL")
        assert metadata["Description-Content-Type"] == "text/markdown"


def test_a_wheel_holds_what_users_run_and_an_sdist_what_developers_do(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = wheel.namelist()
    assert not [name for name in names if name.startswith("studies/") or "recipes/studies" in name]
    templates = ("reporting/templates/page.css", "reporting/templates/page.html", "reporting/templates/parts.html")
    templates += ("evaluation/templates/report.html", "difficulty/compare/templates/comparison.html")
    models = (f"assets/{name}/model.safetensors" for name in EMBEDDED_MODELS)
    probes = ("assets/tiny_probe/probe.safetensors", "assets/modulo_probe/probe.safetensors")
    recipes = ("recipes/tiny/grpo.yaml", "recipes/smollm2/grpo.yaml")
    for name in (*models, *probes, *recipes, "router/status.html", *templates):
        assert f"entropy_rft/{name}" in names
    with tarfile.open(built[1]) as sdist:
        files = {name.partition("/")[2] for name in sdist.getnames()}
    for name in ("studies/methods/plan.py", "recipes/studies/tiny.yaml", "scripts/test.sh", "tests/conftest.py"):
        assert name in files


def test_everything_installed_can_be_imported(commands: Path, environment: None, tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, sys
import entropy_rft
assert "venv" in entropy_rft.__file__, entropy_rft.__file__
for module in pkgutil.walk_packages(entropy_rft.__path__, "entropy_rft."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name.partition(".")[0] in ("vllm", "deepspeed", "wandb", "triton"), (module.name, error)
"""
    result = subprocess.run(
        [commands / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr


def test_a_packaged_recipe_trains_and_is_reported(commands: Path, environment: None, tmp_path: Path) -> None:
    small = ("--max_steps", "2", "--max_completion_length", "24", "--per_device_train_batch_size", "8")
    run(commands, tmp_path, "train", "--config", "tiny/clip_b.yaml", *small)
    directory = tmp_path / "runs" / "tiny" / "clip_b"
    assert (directory / "model.safetensors").is_file()
    steps = [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    run(commands, tmp_path, "report", str(directory))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    assert "</table>" in page


def test_the_demo(commands: Path, environment: None, tmp_path: Path) -> None:
    output = run(commands, tmp_path, "demo", "--steps", "1", "--questions", "6", "--samples", "1")
    assert "avg@k" in output
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()


def test_the_router_answers(commands: Path, environment: None, tmp_path: Path) -> None:
    command = [str(commands / "entropy-rft"), "serve", "--port", "{port}"]
    with ServerProcess(command, tmp_path / "router.log", ready="/ready") as server:
        server.wait_until_ready()
        body = {
            "model": DEFAULT_MODEL,
            "messages": [{"role": "user", "content": "Start at 3, then +8 *9 -7 +4 *3, modulo 10?"}],
        }
        request = urllib.request.Request(
            server.url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.headers["x-entropy-rft-difficulty"] in ("easy", "normal", "hard")
            assert json.load(answer)["choices"][0]["message"]["content"]
