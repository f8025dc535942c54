"""One self-contained page: text, tables and plots, no script, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from localmoe.routing.svg import Plot
from localmoe.text import clean_line

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", Helvetica, Arial, sans-serif; color: #222;
  background: #f6f6f4; margin: 0; }
main { max-width: 840px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 8px 0; } h2 { margin: 40px 0 8px; } .facts { color: #666; }
figure { margin: 18px 0; padding: 14px; background: #fff; border: 1px solid #ddd;
  border-radius: 6px; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { color: #555; font-size: 13px; margin-top: 8px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 2px 10px 2px 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 1px solid #bbb; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; }
dt { color: #777; } dd { margin: 0; }
"""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of untrusted text; ``numbers`` names the columns of numbers.

    ``spare``: columns that a narrow screen may leave out, the first one first.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = ()
    spare: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: a heading, sentences by name, plots, a table."""

    heading: str
    intro: str = ""
    findings: Sequence[tuple[str, str]] = ()
    plots: Sequence[Plot] = ()
    table: Table | None = None


BEGINNING = b"<!doctype html>\n<!-- localmoe experts report -->\n"
"""The first bytes of each page, by which `outputs.check_output` tells it from other files."""


def page(title: str, facts: str, sections: Sequence[Section]) -> str:
    """The whole document. Every text is escaped; the policy allows nothing but inline styles."""
    body = "".join(map(_section, sections))
    return (
        f'{BEGINNING.decode()}<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_safe(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{_safe(title)}</h1><p class="facts">{_safe(facts)}</p>{body}'
        '<p class="facts">Made by localmoe; docs/routing.md defines every figure.</p>'
        "</main></body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{_safe(section.heading)}</h2>"]
    if section.intro:
        parts.append(f"<p>{_safe(section.intro)}</p>")
    if section.findings:
        rows = "".join(f"<dt>{_safe(a)}</dt><dd>{_safe(b)}</dd>" for a, b in section.findings)
        parts.append(f"<dl>{rows}</dl>")
    parts += [
        f"<figure>{plot.svg}<figcaption>{_safe(plot.caption)}</figcaption></figure>"
        for plot in section.plots
    ]
    if section.table is not None:
        parts.append(_table(section.table))
    return "".join(parts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{_safe(name)}</th>" for name in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _safe(text: str) -> str:
    return escape(clean_line(text))
