"""A measurement and a search for faster settings as JSON: ``bench --json``.

``advice``: ``{"seconds", "trials", "complete", "turn": {"read", "written"}, "tried": [{"setting",
"value"}], "faster": [{"setting", "now", "value", "gain", "changes_answers", "decode_tps": {"now",
"then"}, "prefill_tps": {"now", "then"}, "command"}], "gain"}``; null where nothing was tried.
``gain``: of all of ``faster`` together, how many times sooner a turn is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from localmoe.app.documents import Json
from localmoe.app.machine_file import machine_document
from localmoe.bench.figures import Spread, Summary, compute_seconds, ratios
from localmoe.bench.measurement import Schedule
from localmoe.bench.records import Run
from localmoe.bench.tuning import Tuning
from localmoe.bench.variants import CHANGES_ANSWERS, TURN_READ, TURN_WRITTEN
from localmoe.facts.hardware import Machine
from localmoe.text import format_bytes


def limit_name(limit: int | None, size: int) -> str:
    """A limit in bytes beside the ``size`` of the model; None: there is none."""
    if limit is None:
        return "not limited"
    return f"{format_bytes(limit)}, {limit / size:.2f} × the model"


def measurement_document(
    wanted: Schedule,
    machine: Machine,
    runs: Sequence[Run],
    summaries: Sequence[Summary],
    to_do: int,
) -> Json:
    """``bench --json`` of the command line contract; ``to_do``: runs that are still missing."""
    job = wanted.jobs[0]
    compute = compute_seconds(runs, job.steps)
    by_limit = {limit: [s for s in summaries if s.memory == limit] for limit in wanted.limits}
    return {
        "machine": machine_document(machine),
        "model": job.model,
        "size": job.size,
        "prompt_tokens": job.prompt_tokens,
        "shared_window": wanted.shared,
        "replay": job.replay or None,
        "resident_tps": 1 / compute if compute else None,
        "to_do": to_do,
        "runs": [summary_document(summary) for summary in summaries],
        "ratios": {limit_name(limit, job.size): ratios(group) for limit, group in by_limit.items()},
    }


def summary_document(summary: Summary) -> Json:
    """One of the ``runs`` of ``bench --json``. Speeds are tokens per second, sizes bytes."""
    share = summary.memory
    name = summary.regime if share is None else f"{summary.regime} at {format_bytes(share)}"
    return {
        "name": name,
        "regime": summary.regime,
        "memory": summary.memory,
        "runs": summary.runs,
        "steps": summary.steps,
        "decode_tps": _spread(summary.decode),
        "shared_window_tps": _spread(summary.shared),
        "prefill_tps": _spread(summary.prefill),
        "first_token_s": _spread(summary.first_s),
        "ttft_s": _spread(summary.ttft_s),
        "load_s": _spread(summary.load_s),
        "hit_rate": _spread(summary.hit_rate),
        "bytes_read_per_token": _spread(summary.bytes_per_token),
        "bytes_read_per_prompt_token": _spread(summary.bytes_per_prompt_token),
        "disk_bandwidth": _spread(summary.disk),
        "of_own_bound": _spread(summary.own_bound),
        "of_stretch_bound": _spread(summary.stretch),
        "first_token_over_reading": _spread(summary.first_share),
        "anonymous_peak": summary.anonymous_peak,
        "locked_peak": summary.locked_peak,
        "charged_peak": summary.charged_peak,
        "planned": summary.planned,
        "ran": list(summary.ran),
        "errors": list(summary.errors),
    }


def _spread(values: Spread | None) -> Json | None:
    return None if values is None else asdict(values)


def advice_document(found: Tuning, commands: Sequence[str]) -> Json:
    """``advice`` of ``bench --json``."""
    return {
        "seconds": round(found.took, 1),
        "trials": found.trials,
        "complete": found.complete,
        "turn": {"read": TURN_READ, "written": TURN_WRITTEN},
        "tried": [{"setting": v.setting, "value": v.value} for v in found.variants],
        "faster": [
            {
                "setting": gain.variants[0].setting,
                "now": gain.variants[0].now,
                "value": gain.variants[0].value,
                "gain": gain.factor,
                "changes_answers": gain.variants[0].setting in CHANGES_ANSWERS,
                "decode_tps": {"now": gain.before.decode_tps, "then": gain.after.decode_tps},
                "prefill_tps": {"now": gain.before.prefill_tps, "then": gain.after.prefill_tps},
                "command": command,
            }
            for gain, command in zip(found.chosen, commands, strict=True)
        ],
        "gain": found.confirmed.factor if found.confirmed else None,
    }
