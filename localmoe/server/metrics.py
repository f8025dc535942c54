"""``/metrics``: what was answered so far, as Prometheus reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from localmoe.chat.events import TurnDone

_HELP = {
    "requests_total": ("counter", "requests by path and status; 499: the client went away"),
    "prompt_tokens_total": ("counter", "tokens of prompts"),
    "prompt_tokens_cached_total": ("counter", "tokens of prompts that were not read again"),
    "tokens_predicted_total": ("counter", "tokens of answers"),
    "prompt_seconds_total": ("counter", "seconds to the first token, by the engine's clock"),
    "predicted_seconds_total": ("counter", "seconds from the first token to the last"),
    "expert_hits_total": ("counter", "routed experts found in memory"),
    "expert_misses_total": ("counter", "routed experts read from the disk first"),
    "expert_bytes_read_total": ("counter", "bytes of experts read from the disk"),
    "requests_processing": ("gauge", "answers under way"),
    "requests_deferred": ("gauge", "requests that wait for their turn"),
}


class Metrics:
    """Counters of one server's life."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._sums: dict[str, float] = dict.fromkeys(
            (name for name in _HELP if name.endswith("_total") and name != "requests_total"), 0.0
        )

    def add(self, path: str, status: int, dones: Sequence[TurnDone]) -> None:
        """Count a request that has ended, with the answers that it had."""
        self._requests[path, status] += 1
        for done in dones:
            self._add(done)

    def _add(self, done: TurnDone) -> None:
        usage, times, sums = done.usage, done.timings, self._sums
        sums["prompt_tokens_total"] += usage.prompt_tokens
        sums["prompt_tokens_cached_total"] += usage.reused_tokens
        sums["tokens_predicted_total"] += usage.completion_tokens
        sums["prompt_seconds_total"] += times.ttft_s
        if times.decode_tps:
            sums["predicted_seconds_total"] += (usage.completion_tokens - 1) / times.decode_tps
        if done.finished is not None and done.finished.cache is not None:
            cache = done.finished.cache
            sums["expert_hits_total"] += cache.hits
            sums["expert_misses_total"] += cache.misses
            sums["expert_bytes_read_total"] += cache.bytes_read

    def text(self, *, running: int, waiting: int) -> str:
        """The exposition format, version 0.0.4."""
        gauges = {"requests_processing": running, "requests_deferred": waiting}
        lines = []
        for name, (kind, about) in _HELP.items():
            lines += [f"# HELP localmoe_{name} {about}", f"# TYPE localmoe_{name} {kind}"]
            if name == "requests_total":
                lines += [
                    f'localmoe_{name}{{path="{path}",status="{status}"}} {count}'
                    for (path, status), count in sorted(self._requests.items())
                ]
            else:
                lines.append(f"localmoe_{name} {gauges.get(name, self._sums.get(name, 0)):.15g}")
        return "\n".join(lines) + "\n"
