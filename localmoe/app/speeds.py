"""A forecast of speed, in words and as JSON. Pure."""

from __future__ import annotations

import dataclasses

from localmoe.planning.plan import BatchGain, Plan
from localmoe.planning.speed import Forecast, Range
from localmoe.text import format_bytes, format_duration, format_size

SLOW = 2.0  # tok/s below which a model counts as slow: reading is faster
MINUTE = 59.5  # shorter times are shown in seconds alone
LIMITS = {
    "compute": "the processor",
    "ram": "RAM bandwidth",
    "disk": "the disk",
    "gpu": "the GPU",
    "worker": "the worker",
    "network": "the network",
}


def number(value: float) -> str:
    """``0.35``, ``4.2``, ``11``, ``1,250``: two digits, or all of those before the point."""
    if value < 0.995:
        return f"{value:.2f}" if value >= 0.095 else f"{value:.1g}"
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def spread(figures: Range) -> str:
    """``7–16``; "" if both ends are shown alike."""
    low, high = number(figures.low), number(figures.high)
    return "" if low == high else f"{low}–{high}"


def decode_text(forecast: Forecast) -> str:
    """``11 tok/s (7–16)``."""
    between = spread(forecast.decode)
    return f"{number(forecast.decode.expected)} tok/s" + (f" ({between})" if between else "")


def cell(forecast: Forecast | None) -> str:
    """``11 (7–16)``, for a column of tok/s; ``–`` where no speed is known."""
    if forecast is None:
        return "–"
    return decode_text(forecast).replace(" tok/s", "")


def limit_text(forecast: Forecast) -> str:
    """``limited by the disk``."""
    return f"limited by {LIMITS.get(forecast.limit, forecast.limit)}"


def first_text(forecast: Forecast) -> str:
    """``4.3 s (3.0–6.1 s)``, until the first token of a prompt when the model is loaded."""
    wait = forecast.loaded_first_token
    low, expected, high = map(_seconds, (wait.low, wait.expected, wait.high))
    if low == high:
        return expected
    both = wait.high < MINUTE
    return f"{expected} ({low.removesuffix(' s') if both else low}–{high})"


def cold_text(forecast: Forecast) -> str:
    """``11 s from a cold start``: loading included, and experts that memory keeps afterwards."""
    sent = forecast.sent_bytes
    sending = f", sending {format_size(sent)} to the worker" if sent else ""
    return f"{_seconds(forecast.first_token.expected)} from a cold start{sending}"


def _seconds(value: float) -> str:
    return f"{number(value)} s" if value < MINUTE else format_duration(value)


def summary(forecast: Forecast) -> str:
    """One line: speed, what limits it, and the wait for the answer to a long prompt."""
    first = f"{forecast.prompt_tokens:,}-token prompt: first token after {first_text(forecast)}"
    return f"{decode_text(forecast)}, {limit_text(forecast)} · {first}, {cold_text(forecast)}"


def brief(forecast: Forecast) -> str:
    """The same in short facts, which a narrow screen can put on several lines."""
    wait = _seconds(forecast.loaded_first_token.expected)
    prompt = f"{forecast.prompt_tokens:,}-token prompt in {wait}"
    return f"{decode_text(forecast)} expected · {limit_text(forecast)} · {prompt}"


def rows(forecast: Forecast) -> list[tuple[str, str]]:
    """Labels and values: the speed, what decides it, the time to the first token."""
    prompt = f"{forecast.prompt_tokens:,}-token prompt"
    read = number(forecast.prefill.expected)
    return [
        ("speed", f"{decode_text(forecast)}, {limit_text(forecast)}"),
        ("", forecast.why),
        (
            "first token",
            f"after {first_text(forecast)} of a {prompt}, "
            f"read at {read} tok/s{_from_disk(forecast)}",
        ),
        ("", cold_text(forecast)),
    ]


def gain_text(gain: BatchGain) -> str:
    """What larger batches bring and cost: ``of 2,048 tokens instead of 512: …``."""
    read = f"{number(gain.prefill)} tok/s instead of {number(gain.prefill_before)}"
    written, before = number(gain.decode), number(gain.decode_before)
    cost = "" if written == before else f"; answers at {written} instead of {before}"
    sizes = f"of {gain.batch:,} tokens instead of {gain.before:,}"
    return f"{sizes}: a {gain.prompt:,}-token prompt is read at {read}{cost}"


def _from_disk(forecast: Forecast) -> str:
    """``, 10.6 MiB a token from the disk``; nothing where nothing is."""
    size = int(forecast.prompt_bytes)
    return f", {format_bytes(size)} a token from the disk" if size else ""


def document(forecast: Forecast | None) -> dict[str, object]:
    """The fields of one file: tokens per second; seconds to the first token from a cold start, and
    when the model is loaded.
    """
    if forecast is None:
        speeds = ("decode_tps", "prefill_tps", "first_token_s", "loaded_first_token_s")
        return dict.fromkeys((*speeds, "prompt_bytes_per_token", "speed_why"))
    return {
        "decode_tps": {**_range(forecast.decode), "limited_by": forecast.limit},
        "prefill_tps": _range(forecast.prefill),
        "first_token_s": {
            **_range(forecast.first_token),
            "prompt_tokens": forecast.prompt_tokens,
            "sent_bytes": forecast.sent_bytes,
        },
        "loaded_first_token_s": {
            **_range(forecast.loaded_first_token),
            "prompt_tokens": forecast.prompt_tokens,
        },
        "prompt_bytes_per_token": int(forecast.prompt_bytes),
        "speed_why": forecast.why,
    }


def _range(figures: Range) -> dict[str, float]:
    """Low, expected and high, to four digits: more would feign precision."""
    return {name: float(f"{value:.4g}") for name, value in dataclasses.asdict(figures).items()}


def with_speed(plan: Plan, now: Forecast, then: Forecast) -> Plan:
    """The plan with the speed that its first advice, more RAM, would bring added to that advice."""
    more, *others = plan.advice
    faster = f"{number(then.decode.expected)} tok/s instead of {number(now.decode.expected)}"
    return dataclasses.replace(plan, advice=(f"{more}: {faster}", *others))


def too_slow(forecast: Forecast | None, min_tps: float) -> str:
    """Why a model is not fast enough."""
    if forecast is None:
        return f"no speed is known for this machine, so {number(min_tps)} tok/s cannot be promised"
    return f"{decode_text(forecast)} to be expected, less than {number(min_tps)}"
