"""The few pieces of HTML that the report is made of. Every text given to them is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --soft: #59636e; --grid: #d5dae0; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --ink: #e6e9ed; --soft: #9aa4af; --grid: #3a424c; --card: #1c2127; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 60rem; } .soft, figcaption { color: var(--soft); font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; margin: .25rem 0 .75rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap; }
tbody th { font-weight: 500; white-space: pre; }
th:first-child { position: sticky; left: 0; background: var(--page); padding-left: 0; }
th:first-child, .text th, .text td { text-align: left; }
.text td { white-space: normal; overflow-wrap: anywhere; min-width: 7rem; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: .75rem; background: var(--card); border-radius: .5rem; min-width: 0; max-width: 40rem; }
figure svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: 0 0 .25rem; padding: 0; list-style: none;
  font-size: .875rem; overflow-wrap: anywhere; }
.legend svg { display: inline-block; width: 1.75rem; height: .6rem; margin-right: .35rem; vertical-align: middle; }
code { font-size: .85em; overflow-wrap: anywhere; }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--soft); }
.note { border-left: .25rem solid #E69F00; padding: .25rem .75rem; background: var(--card); }
"""


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a colour (``None`` is the text's own), dashed or not, and what it stands for."""

    colour: str | None
    label: str
    dashed: bool = False


def legend(keys: Iterable[Key]) -> str:
    items = []
    for key in keys:
        dash = ' stroke-dasharray="6 3"' if key.dashed else ""
        line = f'<line x1="0" y1="5" x2="28" y2="5" stroke="{key.colour or "currentColor"}" stroke-width="3"{dash}/>'
        items.append(f'<li><svg viewBox="0 0 28 10" aria-hidden="true">{line}</svg>{escape(key.label)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def figure(title: str, svg: str, keys: Iterable[Key], caption: str = "") -> str:
    """A titled drawing; `svg` is taken as it is."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure><h3>{escape(title)}</h3>{legend(keys)}{svg}{below}</figure>"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text: bool = False) -> str:
    """A table that scrolls sideways by itself on a narrow screen; `text` aligns its cells left and wraps them."""
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in header)
    body = "".join("<tr>" + "".join(_cell(i, cell) for i, cell in enumerate(row)) + "</tr>" for row in rows)
    kind = ' class="text"' if text else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(index: int, cell: str) -> str:
    return f'<th scope="row">{escape(cell)}</th>' if index == 0 else f"<td>{escape(cell)}</td>"


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document; `parts` are HTML."""
    body = "\n".join(part for part in parts if part)
    # The policy is a second lock behind the escaping: no script runs and nothing is fetched.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""
