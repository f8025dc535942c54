"""Everything about one or more traces as the sections of one page, and its plots as pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from localmoe.app.listener import Listener
from localmoe.app.outputs import PICTURE, check_output
from localmoe.errors import LocalmoeError, StorageError, UsageError
from localmoe.routing import summaries
from localmoe.routing.compare import compare, domains_of
from localmoe.routing.outlook import Speeds, expert_total, outlook
from localmoe.routing.plots import comparison_plots, layer_plots, memory_plots
from localmoe.routing.records import Trace
from localmoe.routing.report import Section, page
from localmoe.routing.stats import layer_stats
from localmoe.routing.svg import Plot

PICTURE_SCALE = 2.0  # pixels per unit of the plots


def sections_of(
    traces: Sequence[Trace],
    names: Sequence[str],
    speeds_of: Callable[[Trace], Speeds | None],
    listener: Listener,
) -> list[Section]:
    """The sections of a page about ``traces``, told apart by ``names``.

    ``speeds_of``: what a machine does with the model of a trace; None: unknown.
    """
    sections: list[Section] = []
    for name, trace in zip(names, traces, strict=True):
        sections += _trace_sections(name if len(traces) > 1 else "", trace, speeds_of)
    return sections + _comparison(traces, names, listener)


def report_page(traces: Sequence[Trace], sections: Sequence[Section]) -> str:
    """The page of these sections, as HTML."""
    headings = (" · ".join((summaries.model_name(t), *summaries.facts(t))) for t in traces)
    title = "Routing of " + (traces[0].header.model or "a model")
    return page(title, " · ".join(dict.fromkeys(headings)), sections)


def _trace_sections(
    name: str, trace: Trace, speeds_of: Callable[[Trace], Speeds | None]
) -> list[Section]:
    layers = layer_stats(trace)
    suffix = f": {name}" if name else ""
    sections = [
        Section(
            f"Load and reuse{suffix}",
            f"Gating: {trace.header.gating}." if trace.header.gating else "",
            summaries.findings(layers),
            _prefixed(name, layer_plots(layers)),
            summaries.layer_table(layers),
        )
    ]
    if trace.decode.any():
        rows = outlook(trace, speeds=speeds_of(trace) if expert_total(trace) else None)
        sections.append(
            Section(
                f"Memory{suffix}",
                "Replay of the recorded routing through caches of several sizes.",
                plots=_prefixed(name, memory_plots(rows)),
                table=summaries.memory_table(rows),
            )
        )
    return sections


def _comparison(traces: Sequence[Trace], names: Sequence[str], listener: Listener) -> list[Section]:
    """The section about specialisation; none for a single domain, or too little text."""
    try:
        groups = domains_of(traces, names)
        result = compare(groups)
    except LocalmoeError as error:
        listener.note(f"no comparison: {error.message}")
        return []
    texts = {token: text for trace in traces for token, text in trace.token_texts.items()}
    return [
        Section(
            "Specialisation",
            summaries.verdict(result) + ".",
            plots=comparison_plots(result, groups),
            table=summaries.specialists_table(result, texts) if result.specialists else None,
        )
    ]


def _prefixed(name: str, plots: Sequence[Plot]) -> list[Plot]:
    """The plots with file names that begin with ``name``, so that those of traces differ."""
    safe = "".join(c if c.isalnum() else "-" for c in name)[:40]
    lead = f"{safe}-" if name else ""
    return [Plot(lead + plot.name, plot.title, plot.caption, plot.svg) for plot in plots]


class Painter:
    """Draws plots as PNG with resvg. Raises UsageError if that package is not installed."""

    def __init__(self) -> None:
        try:
            import resvg_py
        except ImportError as error:
            raise UsageError(
                "pictures need the package resvg_py, which is not installed",
                hint="pip install 'localmoe[png]'; the page itself needs nothing",
            ) from error
        self._render = resvg_py.svg_to_bytes

    def paint(self, folder: Path, sections: Sequence[Section]) -> list[Path]:
        """One picture per plot, written to ``folder``. Raises StorageError, UsageError."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            paths = []
            for plot in (plot for section in sections for plot in section.plots):
                path = folder / f"{plot.name}.png"
                check_output(path, PICTURE, ())
                path.write_bytes(bytes(self._render(svg_string=plot.svg, zoom=PICTURE_SCALE)))
                paths.append(path)
            return paths
        except OSError as error:
            raise StorageError(f"cannot write pictures to {folder}: {error.strerror}") from error
