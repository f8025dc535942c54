"""``experts``: the routing of a model: record it, show, compare, simulate, report."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from localmoe.cli.arguments import Options
from localmoe.cli.output import Output
from localmoe.errors import UsageError
from localmoe.routing.trace import Trace, read_trace

ACTIONS = {
    "record": ("localmoe.cli.experts.record", "record_command"),
    "show": ("localmoe.cli.experts.command", "show_command"),
    "compare": ("localmoe.cli.experts.command", "compare_command"),
    "simulate": ("localmoe.cli.experts.simulate", "simulate_command"),
    "report": ("localmoe.cli.experts.report", "report_command"),
}
HELP = {
    "record": "localmoe experts record MODEL --domains -o model.trace",
    "show": "localmoe experts show model.trace",
    "compare": "localmoe experts compare prose.trace code.trace",
    "simulate": "localmoe experts simulate model.trace",
    "report": "localmoe experts report model.trace -o report.html",
}


def experts_command(options: Options, output: Output) -> int:
    """Run the action that the first word names. Raises UsageError for an unknown one."""
    words = options.words + (options.after_dashes or ())
    if not words or words[0] not in ACTIONS:
        asked = f'"{words[0]}" is not one of' if words else "say which:"
        raise UsageError(f"experts: {asked} {', '.join(ACTIONS)}", hint="; ".join(HELP.values()))
    module, name = ACTIONS[words[0]]
    code: int = getattr(importlib.import_module(module), name)(words[1:], options, output)
    return code


def show_command(words: Sequence[str], options: Options, output: Output) -> int:
    """Load, confidence and reuse of every layer."""
    from localmoe.app import trace_documents as documents
    from localmoe.cli.experts import screens
    from localmoe.routing.stats import layer_stats

    trace = one_trace("show", words)
    layers = layer_stats(trace)
    if output.as_json:
        output.json(documents.show_document(trace, layers))
    else:
        output.print(*screens.show(trace, layers))
    return 0


def compare_command(words: Sequence[str], options: Options, output: Output) -> int:
    """Which experts specialise, compared with chance."""
    from localmoe.app import trace_documents as documents
    from localmoe.cli.experts import screens
    from localmoe.routing.compare import compare, domains_of

    traces = [read_trace(word) for word in words]
    if not traces:
        raise UsageError("experts compare needs one or more traces", hint=HELP["compare"])
    result = compare(domains_of(traces, names_of(words)))
    texts = {token: text for trace in traces for token, text in trace.token_texts.items()}
    if output.as_json:
        output.json(documents.compare_document(result, texts))
    else:
        output.print(*screens.compare(result, texts))
    return 0


def one_trace(action: str, words: Sequence[str]) -> Trace:
    """The trace that an action is about. Raises UsageError for none or several."""
    if len(words) != 1:
        raise UsageError(
            f"experts {action} takes one trace, got {len(words)}", hint=HELP.get(action)
        )
    return read_trace(words[0])


def names_of(words: Sequence[str]) -> list[str]:
    """File names without endings; whole paths if two of them would be the same."""
    stems = [Path(word).name.split(".")[0] or word for word in words]
    return stems if len(set(stems)) == len(stems) else list(words)
