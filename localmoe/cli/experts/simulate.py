"""``experts simulate``: what more memory would buy on a recorded routing."""

from __future__ import annotations

from collections.abc import Sequence

from localmoe.app import trace_documents as documents
from localmoe.app.more_memory import advice, speeds_for
from localmoe.cli.arguments import Options
from localmoe.cli.experts import screens
from localmoe.cli.experts.command import one_trace
from localmoe.cli.output import Output
from localmoe.cli.requests import plan_request
from localmoe.routing.outlook import Speeds, expert_total, outlook
from localmoe.routing.records import Trace


def simulate_command(words: Sequence[str], options: Options, output: Output) -> int:
    """Hit rate, reads and tokens/s against memory."""
    trace = one_trace("simulate", words)
    known = expert_total(trace) > 0
    speeds = speeds_for(trace, plan_request(options), options.model, output) if known else None
    simulated(trace, speeds, options, output)
    return 0


def simulated(trace: Trace, speeds: Speeds | None, options: Options, output: Output) -> None:
    """Show what caches of several sizes would do, and with ``speeds`` how fast that is."""
    rows = outlook(trace, speeds=speeds)
    sentence = advice(trace, speeds, plan_request(options))
    sentences = [sentence] if sentence else []
    if output.as_json:
        output.json(documents.simulate_document(trace, rows, speeds, sentences))
    else:
        output.print(*screens.simulate(trace, rows, speeds, sentences))
