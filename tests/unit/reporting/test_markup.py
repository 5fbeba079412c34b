"""Pages from templates."""

from __future__ import annotations

from importlib.resources import files

import pytest
from jinja2 import UndefinedError

from entropy_rft.reporting.markup import render


def test_a_missing_value_is_an_error_and_not_an_empty_page() -> None:
    with pytest.raises(UndefinedError):
        render("entropy_rft.evaluation", "report.html", title="only a title")


@pytest.mark.parametrize("package", ["evaluation", "difficulty.compare"])
def test_only_drawings_are_not_escaped(package: str) -> None:
    texts = [file.read_text() for file in files(f"entropy_rft.{package}").joinpath("templates").iterdir()]
    assert texts
    assert not any("safe" in text or "autoescape" in text for text in texts)
    parts = files("entropy_rft.reporting").joinpath("templates", "parts.html").read_text()
    assert parts.count("| safe") == 1
