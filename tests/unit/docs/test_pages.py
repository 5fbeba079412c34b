"""The pages as GitHub shows them: what mkdocs does not look at when it builds the site."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading import PAGES, README, ROOT, anchors, links, paths


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), f"{target.name} has no heading #{anchor}"


def test_paths_in_code_exist() -> None:
    named = paths()
    assert {"tests/unit", "scripts/results/", "recipes/tiny/"} <= named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_page_is_linked_from_the_readme_or_the_index() -> None:
    linked = {target for page in (README, ROOT / "docs" / "index.md") for target, _ in links(page)}
    assert set((ROOT / "docs").rglob("*.md")) - linked == {ROOT / "docs" / "index.md"}
