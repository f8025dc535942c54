"""One self-contained page: text, tables and plots, no script, nothing from the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from localmoe.routing.svg import Plot
from localmoe.text import clean_line

FOLDED_FROM = 20  # rows: a longer table opens on a click

# The plots are drawn in light colours (they are pictures too); on a dark screen the page's rules
# for their classes go before the attributes in them.
_STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #555; --faint: #6b6b6b; --ground: #f6f6f4;
  --paper: #fff; --edge: #ddd; --grid: #e3e3e3; --link: #1f5f8b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e3; --soft: #b9b9b4; --faint: #a0a09b;
  --ground: #16171a; --paper: #1f2124; --edge: #3a3d42; --grid: #34373c; --link: #7db8e0; } }
body { font: 15px/1.5 system-ui, "DejaVu Sans", Helvetica, Arial, sans-serif; color: var(--ink);
  background: var(--ground); margin: 0; }
main { max-width: 840px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 8px 0; overflow-wrap: anywhere; } h2 { margin: 40px 0 8px; }
.facts { color: var(--faint); } a { color: var(--link); }
nav ul { margin: 12px 0 0; padding-left: 20px; }
figure { margin: 18px 0; padding: 14px; background: var(--paper); border: 1px solid var(--edge);
  border-radius: 6px; overflow-x: auto; }
figure svg { width: 100%; min-width: 640px; height: auto; display: block; }
svg .ground { fill: var(--paper); } svg .title { fill: var(--ink); }
svg .tick { fill: var(--soft); } svg .axis { fill: var(--faint); }
svg .rule { stroke: var(--grid); }
figcaption { color: var(--soft); font-size: 13px; margin-top: 8px; position: sticky; left: 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 2px 10px 2px 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 1px solid var(--edge); }
summary { cursor: pointer; color: var(--link); margin: 12px 0 6px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 520px) { main { padding: 16px 12px 40px; } figure { padding: 10px; }
  dl { grid-template-columns: 1fr; } dd { margin: 0 0 6px; } }
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
    body = "".join(_section(number, section) for number, section in enumerate(sections, start=1))
    return (
        f'{BEGINNING.decode()}<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_safe(title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{_safe(title)}</h1><p class="facts">{_safe(facts)}</p>{_contents(sections)}{body}'
        '<p class="facts">Made by localmoe; docs/routing.md defines every figure.</p>'
        "</main></body></html>\n"
    )


def _contents(sections: Sequence[Section]) -> str:
    """Links to the sections, where there are several."""
    if len(sections) < 2:
        return ""
    links = (
        f'<li><a href="#section-{number}">{_safe(section.heading)}</a></li>'
        for number, section in enumerate(sections, start=1)
    )
    return f"<nav><ul>{''.join(links)}</ul></nav>"


def _section(number: int, section: Section) -> str:
    parts = [f'<h2 id="section-{number}">{_safe(section.heading)}</h2>']
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
    whole = f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
    if len(table.rows) < FOLDED_FROM:
        return whole
    return f"<details><summary>All {len(table.rows)} rows</summary>{whole}</details>"


def _safe(text: str) -> str:
    return escape(clean_line(text))
