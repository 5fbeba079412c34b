"""What the tests of the documentation read: pages, their code, their links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "scripts" / "results" / "README.md"]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")
_COMMANDS = re.compile(r"(entropy-rft|python scripts/\S+|bash scripts/\S+|scripts/\S+\.sh)(\s|$)")


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        page: its name, for messages.
        words: as a shell splits them, without variables before the command.
        whole: it stands in a block and can be run as it is; a span in a sentence may leave out what is required.
    """

    page: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def commands() -> list[Command]:
    """Every command of every page that this project is to answer, each once a page."""
    found = [command for page in PAGES for command in commands_of(page.read_text(encoding="utf-8"), page.name)]
    return list(dict.fromkeys(found))


def commands_of(text: str, page: str) -> Iterator[Command]:
    """The commands of one page's text."""
    for language, block in _FENCE.findall(text):
        if language in ("bash", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                yield from _command(line, page, whole=True)
    for span in _SPAN.findall(_FENCE.sub("", text)):
        yield from _command(span, page, whole=False)


def _command(line: str, page: str, whole: bool) -> Iterator[Command]:
    line = line.strip().removeprefix("$ ")
    while _ASSIGNMENT.match(line):
        line = line.partition(" ")[2]
    if _COMMANDS.match(line):
        yield Command(page, tuple(shlex.split(line, comments=True)), whole)


def paths() -> set[str]:
    """Paths into the repository that pages name in code."""
    named = re.compile(r"(recipes|scripts|docs|tests|studies|entropy_rft)/[\w./-]*")
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return {span for span in _SPAN.findall(_FENCE.sub("", text)) if named.fullmatch(span)}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """The relative links of a page, resolved as GitHub does: the file, and the anchor or ""."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
