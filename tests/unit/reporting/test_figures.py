"""A drawing as SVG text for a page."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from entropy_rft.reporting.figures import INK, new_figure, svg_text


def drawn(title: str = "", alt: str = "a line") -> str:
    figure, axes = new_figure()
    axes.plot([0, 1, 2], [0.123456, 2.0, 1.0])
    axes.set_title(title)
    return svg_text(figure, "salt", alt)


def test_the_page_gives_size_and_colours() -> None:
    text = drawn()
    svg = ElementTree.fromstring(text)
    assert svg.get("role") == "img"
    assert {"width", "height"}.isdisjoint(svg.attrib)
    assert "viewBox" in svg.attrib
    assert "currentColor" in text
    assert "var(--grid)" in text
    assert "metadata" not in text
    assert "#0102" not in text


def test_coordinates_have_one_digit() -> None:
    paths = [element.attrib["d"] for element in ElementTree.fromstring(drawn()).iter() if "d" in element.attrib]
    numbers = [word for path in paths for word in path.split() if not word.isalpha()]
    assert len(numbers) > 50
    assert all(len(number.partition(".")[2]) == 1 for number in numbers)


@pytest.mark.parametrize("evil", ['"><script>x</script>', "a & b < c", f"a run called {INK}"])
def test_text_stays_text(evil: str) -> None:
    svg = ElementTree.fromstring(drawn(title=evil, alt=evil))
    assert svg.get("aria-label") == evil
    assert evil in ["".join(element.itertext()) for element in svg.iter()]
    assert not [element for element in svg.iter() if "script" in element.tag]


def test_it_is_reproducible() -> None:
    assert drawn() == drawn()
