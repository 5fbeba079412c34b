"""What the scripts and the tests take from the package is there: mypy looks at neither."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "scripts").glob("make_*"), *(ROOT / "tests").rglob("*.py")]


@pytest.mark.parametrize("folder", ["scripts", "tests"])
def test_every_imported_name_exists(folder: str) -> None:
    missing = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {node.module}.{alias.name}"
        for file in FILES
        if file.relative_to(ROOT).parts[0] == folder
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and node.module
        and node.module.split(".")[0] in ("entropy_rft", "studies")
        and not node.module.startswith("entropy_rft.training.vllm_cpu.")  # needs vLLM
        for alias in node.names
        if not exists(node.module, alias.name)
    ]
    assert missing == []


def exists(module: str, name: str) -> bool:
    if hasattr(importlib.import_module(module), name):
        return True
    try:
        importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True
