"""The probe's study at a small size: it goes on where it was broken off, and refuses another one's directory."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
SMALL = (
    *("--seeds", "3", "--train_questions", "36", "--test_questions", "12", "--samples", "2", "--answer_samples", "2"),
    *("--max_tokens", "120", "--thresholds", "0.7", "0.3", "0.4"),  # so few questions need not have three clouds
)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the script in this process, since each new one imports torch; what it printed, errors last."""

    def run(*arguments: str, expected: int = 0) -> str:
        places = ("--work_dir", str(tmp_path / "work"), "--output", str(tmp_path / "out"))
        monkeypatch.setattr(sys, "argv", ["study_probe.py", *places, *SMALL, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "scripts" / "study_probe.py"), run_name="__main__")
        printed = capsys.readouterr()
        assert ended.value.code == expected, printed.err
        return printed.out + printed.err

    return run


def test_a_study_that_is_broken_off(study: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    printed = study()
    assert "fixed Normal" in printed
    assert "macro-F1 minus majority" in printed
    written = json.loads((tmp_path / "out" / "probe-tiny.json").read_text())
    assert {"command", "settings", "versions", "seconds", "pooled", "seeds"} <= written.keys()
    result = written["seeds"]["3"]
    assert result["classifier"].keys() == {"probe", "majority", "prompt_length", "pass_rate"}
    assert result["policies"].keys() >= {"easy", "normal", "hard", "random", "prompt_length", "probe", "oracle"}
    for rule in ("", "prompt_length_"):
        assert result[f"{rule}confidence_trials"][0]["min_confidence"] == 0.0
        assert result[f"{rule}min_confidence"] in [t["min_confidence"] for t in result[f"{rule}confidence_trials"]]
    assert result["confidence_trials"] != result["prompt_length_confidence_trials"]
    assert result["questions"] == written["pooled"]["questions"] == 12
    assert list(written["pooled"]["levels"]["groups"]) == ["2", "3", "4", "5", "6", "7"]
    for name in ("u", "frontier"):
        assert (tmp_path / "out" / f"probe-tiny-{name}.png").stat().st_size > 10_000

    # As after a kill: one chunk of the traces and the answers to the test questions are not there yet.
    seed = tmp_path / "work" / "seed-3"
    kept = next((seed / "confidence").rglob("chunk-*.parquet"))
    stamps = {path: path.stat().st_mtime_ns for path in (kept, seed / "probe" / "probe.json")}
    for missing in (next((seed / "test").rglob("chunk-*.parquet")), next((seed / "answers").rglob("chunk-*.parquet"))):
        missing.unlink()
    study()
    again = json.loads((tmp_path / "out" / "probe-tiny.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps

    def without_times(policies: dict) -> dict:
        return {name: {k: v for k, v in policy.items() if k != "seconds"} for name, policy in policies.items()}

    assert without_times(again["pooled"].pop("policies")) == without_times(written["pooled"].pop("policies"))
    assert again["pooled"] == written["pooled"]

    other = study("--max_tokens", "121", expected=2).splitlines()[-1]
    assert "was started with max_tokens = 120, not 121: give another directory" in other


def test_parts_and_shared_traces(study: Callable[..., str], tmp_path: Path) -> None:
    """Levels that are kinds of questions, from a file; two probes on one set of traces."""
    pytest.importorskip("matplotlib")
    config = tmp_path / "study.yaml"
    config.write_text(
        "name: kinds\nshared_traces: true\ntemperature: 0.7\n"
        "strategies: {hard: {max_tokens_fraction: 0.2}}\n"
        "parts:\n"
        "  - {level: 1, options: {levels: [2]}}\n"
        "  - {level: 2, options: {levels: [4], answer_format: Please answer.}}\n"
        "  - {level: 3, options: {levels: [7]}}\n"
    )
    printed = study("--config", str(config), "--seeds", "3", "4", "--max_tokens", "60")
    assert "probe beside fixed Normal: " in printed
    assert "entropy over difficulty: " in printed
    written = json.loads((tmp_path / "out" / "kinds.json").read_text())
    assert written["settings"]["strategies"]["hard"]["max_tokens_fraction"] == 0.2
    pooled = written["pooled"]
    assert {name: group["questions"] for name, group in pooled["levels"]["groups"].items()} == {"1": 4, "2": 4, "3": 4}
    assert len(pooled["u_shape"]["levels"]) == 3
    assert pooled["against"].keys() == {"easy", "normal", "hard", "random_same_mix", "prompt_length"}
    assert len(written["seeds"]["3"]["predicted"]["probe"]) == 12
    shared = tmp_path / "work" / "shared"
    assert sorted(path.name for path in (shared / "train").iterdir()) == ["part-0", "part-1", "part-2"]
    assert {path.name for path in (tmp_path / "work" / "seed-4").iterdir()} == {"probe", "seconds.json"}
    traced = json.loads((shared / "test" / "part-1" / "settings.json").read_text())
    assert (traced["temperature"], traced["level"], traced["task"]["seed"]) == (0.7, "2", 1000)

    config.write_text("sampels: 3\n")
    assert "unknown setting 'sampels'; did you mean samples?" in study("--config", str(config), expected=2)
