"""The README's commands, as a user runs them; smaller, because the demo at its own size takes minutes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from warm import WarmCommand

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
SMALL = ("--steps", "1", "--questions", "2", "--samples", "2")


def demo(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The environment the tests run in is an existing virtual environment, which the script must honour.
    return subprocess.run(
        [ROOT / "scripts" / "demo.sh", *arguments],
        cwd=cwd,
        env={**os.environ, "VIRTUAL_ENV": sys.prefix, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=550,
    )


class Elements(HTMLParser):
    """Counts tags, and collects what a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.fetched += [
            value for name, value in attrs if name in ("src", "href") and not value.startswith(("#", "data:"))
        ]


def test_demo_from_any_directory_ends_with_the_table_and_the_report(tmp_path: Path) -> None:
    result = demo(tmp_path, *SMALL)
    assert result.returncode == 0, result.stderr
    assert sys.prefix in result.stderr
    for text in ("GRPO", "target", "target + PEAR", "2 × 2", "avg@k", "pass@2", "thinking", "total time: "):
        assert text in result.stdout
    page = tmp_path / "runs" / "demo" / "report.html"
    assert f"report: {page}" in result.stdout
    elements = Elements()
    elements.feed(page.read_text(encoding="utf-8"))
    assert elements.tags.count("svg") >= 5
    assert elements.tags.count("table") >= 2
    assert elements.fetched == []
    for name in ("grpo", "target", "target_pear"):
        assert (tmp_path / "runs" / "demo" / name / "evaluation.json").is_file()
        lines = (tmp_path / "runs" / "demo" / name / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 1
    # The embedded model's longer answers are more certain per token, so PEAR prefers them.
    assert 0 <= json.loads(lines[0])["pear/prefers_shorter"] < 0.5
    # The environment is ready now: nothing is installed a second time.
    again = demo(tmp_path, "--steps", "many")
    assert again.returncode == 2
    assert "is ready" in again.stderr
    assert "argument --steps: invalid int value: 'many'" in again.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_demo_that_is_stopped_reports_what_it_has(
    tmp_path: Path, number: signal.Signals, code: int, said: str
) -> None:
    process = WarmCommand(["demo", "--steps", "500", "--questions", "2", "--samples", "1"], tmp_path)
    end = time.monotonic() + 240
    # A line of progress in a file that is no terminal: the start has been measured, and training is under way.
    while not re.search(r"^training: [1-9]\d* of 500 after \d+ s", process.errors(), re.MULTILINE):
        assert process.poll() is None, process.errors()
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "avg@k" in output
    assert re.search(r"^ *stopped after \d+ s *$", output, re.MULTILINE), output
    assert errors.splitlines()[-1] == f"entropy-rft: {said}"
    assert "Traceback" not in output + errors
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
