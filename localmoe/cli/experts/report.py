"""``experts report``: everything about one or more traces on one page, and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from localmoe import storage
from localmoe.app.outputs import PAGE, PICTURE, check_output
from localmoe.cli.arguments import Options
from localmoe.cli.experts import screens
from localmoe.cli.experts.command import HELP, names_of
from localmoe.cli.experts.simulate import machine_speeds
from localmoe.cli.output import Output
from localmoe.errors import LocalmoeError, StorageError, UsageError
from localmoe.routing.compare import compare, domains_of
from localmoe.routing.outlook import expert_total, outlook
from localmoe.routing.plots import comparison_plots, layer_plots, memory_plots
from localmoe.routing.records import Trace
from localmoe.routing.report import Section, Table, page
from localmoe.routing.stats import layer_stats
from localmoe.routing.svg import Plot
from localmoe.routing.trace import read_trace

PICTURE_SCALE = 2.0  # pixels per unit of the plots


def report_command(words: Sequence[str], options: Options, output: Output) -> int:
    """Writes the page, and with ``--png`` one picture per plot."""
    if not words:
        raise UsageError("experts report needs one or more traces", hint=HELP["report"])
    out, inputs = storage.user_path(options.output or "report.html"), [Path(w) for w in words]
    check_output(out, PAGE, inputs)
    painter = _painter() if options.png is not None else None
    traces = [read_trace(word) for word in words]
    names = names_of(words)
    sections: list[Section] = []
    for name, trace in zip(names, traces, strict=True):
        sections += _trace_sections(name if len(traces) > 1 else "", trace, options, output)
    sections += _comparison(traces, names, output)
    facts = " · ".join(dict.fromkeys(str(screens.heading(trace)) for trace in traces))
    title = "Routing of " + (traces[0].header.model or "a model")
    storage.atomic_write(out.absolute(), page(title, facts, sections))
    pictures = []
    if painter is not None and options.png is not None:
        pictures = _paint(painter, storage.user_path(options.png), sections)
    if output.as_json:
        output.json({"path": str(out), "pictures": [str(path) for path in pictures]})
    else:
        output.note(f"{out}: {out.stat().st_size >> 10} KiB, opens in any browser")
        if pictures:
            output.note(f"{options.png}: {len(pictures)} pictures")
    return 0


def _trace_sections(name: str, trace: Trace, options: Options, output: Output) -> list[Section]:
    layers = layer_stats(trace)
    table = screens.layer_table(layers)
    sections = [
        Section(
            f"Load and reuse{f': {name}' if name else ''}",
            f"Gating: {trace.header.gating}." if trace.header.gating else "",
            screens.findings(layers),
            _prefixed(name, layer_plots(layers)),
            Table(table.columns, [[str(cell) for cell in row] for row in table.rows]),
        )
    ]
    if trace.decode.any():
        speeds = machine_speeds(trace, options, output) if expert_total(trace) else None
        rows = outlook(trace, speeds=speeds)
        memory = screens.simulation_table(rows)
        sections.append(
            Section(
                f"Memory{f': {name}' if name else ''}",
                "Replay of the recorded routing through caches of several sizes.",
                plots=_prefixed(name, memory_plots(rows)),
                table=Table(memory.columns, [[str(c) for c in row] for row in memory.rows]),
            )
        )
    return sections


def _comparison(traces: Sequence[Trace], names: Sequence[str], output: Output) -> list[Section]:
    """Nothing where there is one domain only, or too little of it."""
    try:
        groups = domains_of(traces, names)
        result = compare(groups)
    except LocalmoeError as error:
        output.note(f"no comparison: {error.message}")
        return []
    texts = {token: text for trace in traces for token, text in trace.token_texts.items()}
    table = screens.specialists_table(result, texts)
    return [
        Section(
            "Specialisation",
            screens.verdict(result) + ".",
            plots=comparison_plots(result, groups),
            table=Table(table.columns, [[str(cell) for cell in row] for row in table.rows])
            if result.specialists
            else None,
        )
    ]


def _prefixed(name: str, plots: Sequence[Plot]) -> list[Plot]:
    """File names that differ when several traces have the same plots."""
    safe = "".join(c if c.isalnum() else "-" for c in name)[:40]
    lead = f"{safe}-" if name else ""
    return [Plot(lead + plot.name, plot.title, plot.caption, plot.svg) for plot in plots]


class _Painter:
    """resvg: a renderer of 1.4 MB, so that pictures are the very plots of the page."""

    def __init__(self) -> None:
        import resvg_py

        self._render = resvg_py.svg_to_bytes

    def png(self, svg: str) -> bytes:
        return bytes(self._render(svg_string=svg, zoom=PICTURE_SCALE))


def _painter() -> _Painter:
    try:
        return _Painter()
    except ImportError as error:
        raise UsageError(
            "pictures need the package resvg_py, which is not installed",
            hint="pip install 'localmoe[png]'; the page itself needs nothing",
        ) from error


def _paint(painter: _Painter, folder: Path, sections: Sequence[Section]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for plot in (plot for section in sections for plot in section.plots):
            path = folder / f"{plot.name}.png"
            check_output(path, PICTURE, ())
            path.write_bytes(painter.png(plot.svg))
            paths.append(path)
        return paths
    except OSError as error:
        raise StorageError(f"cannot write pictures to {folder}: {error.strerror}") from error
