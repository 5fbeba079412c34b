"""What the tests' processes start with (tests/startup)."""

from __future__ import annotations

import gc
import subprocess
import sys


def test_processes_that_tests_start_rarely_collect() -> None:
    code = "import gc; print(*gc.get_threshold())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["50000", "20", "20"]
    assert gc.get_threshold()[0] == 50_000
