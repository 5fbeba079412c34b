"""What the site needs beyond mkdocs: files of the repository that pages link to, formulas, and roles in docstrings.

A page links to `../scripts/results/README.md` as GitHub resolves it. On the site that file is a page too: each file
that a page links to outside docs/ is taken in under its path in the repository, and links are rewritten to it. A link
to what is not there stays as it is, so that mkdocs reports it.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
FRONT = "README.md"  # the repository's; on the site the index page has its place
# A link or an image whose target is a relative path: [text](path#anchor)
_LINK = re.compile(r"(\]\()(?![a-z]+:|[#/])([^)#\s]+)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>~?(?:[\w.]+\.)?(\w+)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Take in what pages link to outside docs/, and what those files link to."""
    waiting = list(files.documentation_pages())
    while waiting:
        for target in _outside(waiting.pop()):
            if files.get_file_from_path(target) is None:
                path = str(ROOT / target)
                file = File.generated(config, target, abs_src_path=path, inclusion=InclusionLevel.NOT_IN_NAV)
                files.append(file)
                if file.is_documentation_page():
                    waiting.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links between pages and the files that were taken in."""
    here = posixpath.dirname(page.file.src_uri)

    def rewritten(match: re.Match[str]) -> str:
        target = _in_repository(page.file.src_uri, match[2])
        if target == FRONT:
            target = f"{DOCS}/index.md"
        if not (ROOT / target).is_file():
            return match[0]
        on_site = target.removeprefix(f"{DOCS}/")
        return match[1] + posixpath.relpath(on_site, here or ".")

    return _LINK.sub(rewritten, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw without a script; and what docstrings write for another tool."""

    def formula(match: re.Match[str]) -> str:
        return convert(html.unescape(match[3]), display="inline" if match[2] == "(" else "block")

    content = _FORMULA.sub(formula, content)
    return _ROLE.sub(r"<code>\1</code>", content).replace("::</p>", ":</p>")


def _in_repository(src_uri: str, link: str) -> str:
    """The path in the repository that a link on a page leads to."""
    page = src_uri if _is_taken_in(src_uri) else f"{DOCS}/{src_uri}"
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _is_taken_in(src_uri: str) -> bool:
    return not (ROOT / DOCS / src_uri).is_file()


def _outside(file: File) -> list[str]:
    targets = [_in_repository(file.src_uri, link) for _, link in _LINK.findall(file.content_string)]
    outside = [target for target in targets if not target.startswith((f"{DOCS}/", "..")) and target != FRONT]
    return [target for target in outside if (ROOT / target).is_file()]
