"""Statistics of traces → JSON documents. Sizes are bytes; NaN becomes null."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from localmoe.app.documents import Json
from localmoe.routing.compare import Comparison
from localmoe.routing.outlook import Row, Speeds, expert_total
from localmoe.routing.records import Trace
from localmoe.routing.simulate import Outcome
from localmoe.routing.stats import LayerStats


def trace_document(trace: Trace) -> Json:
    """The ``trace`` of every ``experts … --json``."""
    decoded = int(trace.decode.sum())
    return {
        "model": trace.header.model,
        "architecture": trace.header.architecture,
        "gating": trace.header.gating,
        "layers": [asdict(layer) for layer in trace.header.layers],
        "tokens": {"prefill": len(trace) - decoded, "decode": decoded},
        "labels": list(dict.fromkeys(trace.labels)),
        "complete": not trace.cut,
    }


def show_document(trace: Trace, layers: Sequence[LayerStats]) -> Json:
    """``experts show --json``: the statistics of every layer."""
    return {"trace": trace_document(trace), "layers": [plain(asdict(layer)) for layer in layers]}


def compare_document(result: Comparison, texts: Mapping[int, str]) -> Json:
    """``experts compare --json``; ``texts``: token → its text."""
    document = plain(asdict(result))
    document["differs"] = result.differs
    for told, expert in zip(document["specialists"], result.specialists, strict=True):
        told["fires_on"] = [
            {"token": token, "text": texts.get(token), "uses": uses, "seen": seen}
            for token, uses, seen in expert.fires_on
        ]
    return dict(document)


def simulate_document(
    trace: Trace, rows: Sequence[Row], speeds: Speeds | None, sentences: Sequence[str]
) -> Json:
    """``experts simulate --json``: hit rates and tokens per second for each memory budget."""
    return {
        "trace": trace_document(trace),
        "expert_bytes": expert_total(trace),
        "dense_bytes": trace.header.dense_bytes,
        "speeds": asdict(speeds) if speeds else None,
        "budgets": [
            {
                "share": row.share,
                "bytes": row.budget,
                "tps": row.tps,
                "tps_hidden": row.tps_hidden,
                "policies": {name: _outcome(o) for name, o in row.outcomes.items()},
            }
            for row in rows
        ],
        "advice": list(sentences),
    }


def plain(value: Any) -> Any:
    """A value that JSON can hold: NaN becomes None, keys become text, tuples lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _outcome(outcome: Outcome) -> Json:
    return {
        "hit_rate": outcome.hit_rate,
        "lookups": outcome.lookups,
        "hits": outcome.hits,
        "compulsory": outcome.compulsory,
        "bytes_per_token": outcome.bytes_per_token,
    }
