"""``experts report``: everything about one or more traces on one page, and as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from localmoe import storage
from localmoe.app.more_memory import speeds_for
from localmoe.app.outputs import PAGE, check_output
from localmoe.app.routing_report import Painter, report_page, sections_of
from localmoe.cli.arguments import Options
from localmoe.cli.experts.command import HELP, names_of
from localmoe.cli.output import Output
from localmoe.cli.requests import plan_request
from localmoe.errors import UsageError
from localmoe.routing.trace import read_trace
from localmoe.text import format_size


def report_command(words: Sequence[str], options: Options, output: Output) -> int:
    """Writes the page, and with ``--png`` one picture per plot."""
    if not words:
        raise UsageError("experts report needs one or more traces", hint=HELP["report"])
    out = storage.user_path(options.output or "report.html")
    check_output(out, PAGE, [Path(word) for word in words])
    painter = Painter() if options.png is not None else None
    traces = [read_trace(word) for word in words]
    request = plan_request(options)
    sections = sections_of(
        traces,
        names_of(words),
        lambda trace: speeds_for(trace, request, options.model, output),
        output,
    )
    storage.atomic_write(out.absolute(), report_page(traces, sections))
    pictures: list[Path] = []
    if painter is not None and options.png is not None:
        pictures = painter.paint(storage.user_path(options.png), sections)
    if output.as_json:
        output.json({"path": str(out), "pictures": [str(path) for path in pictures]})
    else:
        output.note(f"{out}: {format_size(out.stat().st_size)}, opens in any browser")
        if pictures:
            output.note(f"{options.png}: {len(pictures)} pictures")
    return 0
