"""Pages from templates, and the data that fills them. Jinja escapes every text but the drawings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from entropy_rft.errors import UserValueError


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a colour (``None`` is the text's own), dashed or not, and what it stands for."""

    colour: str | None
    label: str
    dashed: bool = False


@dataclass(frozen=True)
class Figure:
    """A titled drawing with its legend; `svg`, of :func:`~entropy_rft.reporting.figures.svg_text`, is not escaped."""

    title: str
    svg: str
    keys: Sequence[Key]
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Cells of text, where the first cell of a row names the row; `text` aligns them left and wraps them."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: bool = False


def render(package: str, template: str, **values: Any) -> str:
    """The template of that name in the directory ``templates`` of `package`, filled with `values`.

    It may extend ``page.html`` and import ``parts.html`` of this package.

    Raises:
        ValueError: Jinja is not installed.
    """
    return str(_environment(package).get_template(template).render(values))


@cache
def _environment(package: str) -> Any:
    try:
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise UserValueError('a page needs Jinja: pip install "entropy_rft[report]"') from error
    return Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("entropy_rft.reporting")]),
        autoescape=True,
        undefined=StrictUndefined,  # a value that a template expects and nobody gives is a bug
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
