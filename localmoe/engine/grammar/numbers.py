"""Numbers between bounds, in GBNF. Works on digits, so every bound is kept exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from localmoe.engine.grammar.errors import refusal

MORE_DIGITS = 15  # before and after the point, where nothing bounds them
MAX_BOUND_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Bound:
    value: Decimal
    inclusive: bool


def number_rule(core: Mapping[str, Any], at: str, *, whole: bool) -> str:
    """The rule of a number with these keywords. Raises UsageError."""
    if "multipleOf" in core and not (whole and core["multipleOf"] == 1):
        raise refusal(f"{at}/multipleOf", "multiples cannot be enforced")
    low = _bound(core, "minimum", "exclusiveMinimum", at, max)
    high = _bound(core, "maximum", "exclusiveMaximum", at, min)
    if low is None and high is None:
        return "integer" if whole else "number"
    rules = []
    zero = Bound(Decimal(0), inclusive=False)
    if low is None or low.value < 0:
        # -x lies between low and high when x lies between -high and -low; "-0" is not written.
        least = zero if high is None or high.value >= 0 else _negative(high)
        most = None if low is None else _negative(low)
        if found := _from_zero(least, most, whole):
            rules.append(f'"-" ({found})')
    if high is None or high.value >= 0:
        least = low if low is not None and low.value >= 0 else Bound(Decimal(0), inclusive=True)
        if found := _from_zero(least, high, whole):
            rules.append(found)
    if not rules:
        raise refusal(at, "no number lies between these bounds")
    return " | ".join(rules)


def _from_zero(low: Bound, high: Bound | None, whole: bool) -> str:
    """Numbers without a sign; "" when there are none."""
    if whole:
        first = int(low.value.to_integral_value("ROUND_CEILING"))
        first += low.value == first and not low.inclusive
        last = None
        if high is not None:
            last = int(high.value.to_integral_value("ROUND_FLOOR"))
            last -= high.value == last and not high.inclusive
        return _between(first, last, 0)
    places = max(_places(low.value), _places(high.value) if high else 0)
    scale = 10**places
    first, last = int(low.value * scale), int(high.value * scale) if high else None
    point = "" if places else '"." '
    rules = []
    if last is None or first < last:
        # A numeral that begins like an excluded lower bound must go on, or it would be that bound.
        if low.inclusive:
            rules.append(_with_tail(_between(first, None if last is None else last - 1, places),
                                    f"({point}[0-9]{{1,{MORE_DIGITS}}})?"))  # fmt: skip
        else:
            rest = f"{point}[0]{{0,{MORE_DIGITS}}} [1-9] [0-9]{{0,{MORE_DIGITS}}}"
            rules.append(_with_tail(_between(first, first, places), rest))
            if more := _between(first + 1, None if last is None else last - 1, places):
                rules.append(_with_tail(more, f"({point}[0-9]{{1,{MORE_DIGITS}}})?"))
    if high is not None and high.inclusive and (first < high.value * scale or low.inclusive):
        zeros = f"({point}[0]{{1,{MORE_DIGITS}}})?"
        if last is not None and first <= last:
            rules.append(_with_tail(_between(last, last, places), zeros))
    return " | ".join(rules)


def _with_tail(head: str, tail: str) -> str:
    return f"({head}) {tail}"


def _between(first: int, last: int | None, places: int) -> str:
    """Numerals from ``first`` to ``last``, both 0 or more, with a point before the last places."""
    if last is not None and first > last:
        return ""
    shortest = max(places + 1, len(str(first)))
    longest = shortest if last is None else max(places + 1, len(str(last)))
    rules = []
    for length in range(shortest, longest + 1):
        least = 0 if length == places + 1 else 10 ** (length - 1)
        most = 10**length - 1
        low, high = max(first, least), most if last is None else min(last, most)
        rules.append(_digits(_numeral(low, length, places), _numeral(high, length, places)))
    if last is None:
        after = f' "." [0-9]{{{places}}}' if places else ""
        rules.append(f"[1-9] [0-9]{{{shortest - places},{shortest - places + MORE_DIGITS}}}{after}")
    return " | ".join(dict.fromkeys(rules))


def _numeral(value: int, length: int, places: int) -> str:
    text = str(value).zfill(length)
    return f"{text[:-places]}.{text[-places:]}" if places else text


def _digits(low: str, high: str) -> str:
    """Strings of one length between two numerals with the point at the same place."""
    if low == high:
        return f'"{low}"' if low else ""
    if low[0] == high[0]:
        return f'"{low[0]}" {_group(_digits(low[1:], high[1:]))}'.strip()
    rest = len(low) - 1
    zeros, nines = low[1:].replace("9", "x"), high[1:]
    full_low, full_high = not zeros.strip("0."), not nines.strip("9.")
    choices = []
    a, b = ord(low[0]) + (not full_low), ord(high[0]) - (not full_high)
    if not full_low:
        choices.append(f'"{low[0]}" {_group(_digits(low[1:], _fill(low[1:], "9")))}')
    if a <= b:
        span = f"[{chr(a)}-{chr(b)}]" if a < b else f'"{chr(a)}"'
        choices.append(f"{span} {_any(low[1:])}".strip() if rest else span)
    if not full_high:
        choices.append(f'"{high[0]}" {_group(_digits(_fill(high[1:], "0"), high[1:]))}')
    return " | ".join(choices)


def _any(shape: str) -> str:
    """Any digits in the shape of a numeral."""
    parts = (f"[0-9]{{{len(part)}}}" if part else "" for part in shape.split("."))
    return ' "." '.join(parts).strip()


def _fill(shape: str, digit: str) -> str:
    return "".join(c if c == "." else digit for c in shape)


def _group(rule: str) -> str:
    return f"({rule})" if " | " in rule else rule


def _bound(core: Mapping[str, Any], plain: str, exclusive: str, at: str, pick: Any) -> Bound | None:
    """The tighter one of two keywords. Draft 4 wrote ``exclusiveMinimum`` as a flag."""
    found = []
    for keyword in (plain, exclusive):
        value = core.get(keyword)
        if value is None or isinstance(value, bool):
            continue
        if not isinstance(value, int | float):
            raise refusal(f"{at}/{keyword}", "a number belongs here")
        bound = Decimal(repr(value))
        if (
            len(bound.as_tuple().digits) > MAX_BOUND_DIGITS
            or abs(bound.adjusted()) > MAX_BOUND_DIGITS
        ):
            raise refusal(f"{at}/{keyword}", "this bound has too many digits")
        found.append(Bound(bound, keyword == plain and core.get(exclusive) is not True))
    if not found:
        return None
    best = pick(bound.value for bound in found)
    return Bound(best, all(bound.inclusive for bound in found if bound.value == best))


def _negative(bound: Bound) -> Bound:
    return Bound(-bound.value, bound.inclusive)


def _places(value: Decimal) -> int:
    """Digits after the point."""
    exponent = value.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0
