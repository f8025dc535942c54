"""A model's routing profile: how its experts have been used here, in a small file that grows.

The engine counts while it answers: uses per layer and expert (they say what to load first), how
often caches of several sizes would have hit, and how many experts a token shares with the one
before. Old sessions count less and less, so the profile follows what the model is used for. Only
numbers are kept, no text and no token.

NumPy is not imported here: the planner reads profiles while ``fit`` starts, which must be quick.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmoe import kept, storage
from localmoe.facts.model import Model

VERSION = 2  # of the file; in version 1 the curves were those of an LRU cache
MAX_FILE = 16 << 20  # bytes; a real one has about 40 KB
HALF_LIFE = 20_000.0  # tokens after which an old session counts half
FRACTIONS = (0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)

# Our cache on the 128 decoded tokens of the Qwen3-30B-A3B trace in tests/routing/data, after its
# prompt of 28: (fraction resident, hit rate). `tests/routing/test_profile.py` derives it anew.
PRIOR = (
    (0.03, 0.2965),
    (0.05, 0.3787),
    (0.08, 0.5213),
    (0.1, 0.5901),
    (0.15, 0.6894),
    (0.2, 0.7735),
    (0.25, 0.8299),
    (0.3, 0.8743),
    (0.4, 0.9343),
    (0.5, 0.9597),
    (0.6, 0.9676),
    (0.75, 0.9707),
    (0.9, 0.9709),
)
PRIOR_USED = 6 / 128  # share of a layer's experts that a token uses in that trace
PRIOR_TOKENS = 128  # decoded tokens that the prior counts as

# Where a token uses more of the experts, favourites as strong as that trace's make less of a
# difference: share used → hit rates at FRACTIONS. Of texts as long as the trace with such
# favourites (decision 25); `tests/routing/test_profile.py` derives these anew, too.
COARSER = (
    (1 / 8, (0.19, 0.25, 0.33, 0.36, 0.48, 0.62, 0.69, 0.75, 0.84, 0.90, 0.94, 0.98, 0.99)),
    (1 / 4, (0.11, 0.16, 0.25, 0.30, 0.38, 0.44, 0.47, 0.58, 0.73, 0.83, 0.90, 0.96, 0.99)),
    (1 / 2, (0.06, 0.09, 0.15, 0.19, 0.27, 0.35, 0.42, 0.47, 0.58, 0.65, 0.78, 0.92, 0.99)),
    (1 / 1, FRACTIONS),
)


@dataclass(frozen=True, slots=True)
class LayerUsage:
    """The uses of one layer's experts, as the engine counts them (``engine/native/usage.h``)."""

    uses: tuple[int, ...]  # per expert, by tokens of prompts and decoded ones
    found_at: tuple[int, ...]  # [c]: lookups that a cache of c + 1 experts hits, one of c misses
    tokens: int
    decoded: int  # of those, tokens that were decoded
    lookups: int  # experts that the decoded tokens asked for
    follow: int  # lookups of tokens that came right after another one
    again: int  # of those, experts that the token before had used too

    @classmethod
    def none(cls, experts: int) -> LayerUsage:
        """The counts of a layer that no token has gone through."""
        return cls((0,) * experts, (0,) * experts, 0, 0, 0, 0, 0)

    def since(self, before: LayerUsage) -> LayerUsage:
        """The difference to an earlier count of the same layer."""
        return LayerUsage(
            tuple(now - then for now, then in zip(self.uses, before.uses, strict=True)),
            tuple(now - then for now, then in zip(self.found_at, before.found_at, strict=True)),
            self.tokens - before.tokens,
            self.decoded - before.decoded,
            self.lookups - before.lookups,
            self.follow - before.follow,
            self.again - before.again,
        )


@dataclass(frozen=True, slots=True)
class Profile:
    """How a model's experts have been used on this machine; old sessions count less."""

    model: str
    counts: Mapping[int, tuple[float, ...]]  # layer → uses of each expert
    tokens: float
    curve: tuple[tuple[float, float], ...] = ()  # (share of the experts in memory, hit rate)
    curve_tokens: float = 0.0  # decoded tokens behind ``curve``, whose shares ascend
    reuse: float | None = None  # share of a token's experts that the token before used
    sessions: int = 1

    def merge(self, newer: Profile, half_life: float = HALF_LIFE) -> Profile:
        """This profile and a newer session together; this one counts less, the longer that was.

        Layers that the session has no counts of (their experts are on a GPU) stay as they were.
        """
        if any(len(self.counts.get(i, row)) != len(row) for i, row in newer.counts.items()):
            return newer  # another model of the same name
        keep = 0.5 ** (newer.tokens / half_life)
        total = self.curve_tokens * keep + newer.curve_tokens
        curve, reuse = newer.curve, newer.reuse
        if self.curve_tokens and total:
            share = self.curve_tokens * keep / total
            curve = _mix(self.curve, newer.curve, share)
            if self.reuse is not None:
                reuse = self.reuse if reuse is None else share * self.reuse + (1 - share) * reuse
        counts = dict(self.counts)
        for layer, row in newer.counts.items():
            if any(row) or layer not in counts:
                old = counts.get(layer, (0.0,) * len(row))
                counts[layer] = tuple(a * keep + b for a, b in zip(old, row, strict=True))
        return Profile(
            model=newer.model,
            counts=counts,
            tokens=self.tokens * keep + newer.tokens,
            curve=curve,
            curve_tokens=total,
            reuse=reuse,
            sessions=self.sessions + newer.sessions,
        )

    @property
    def shape(self) -> tuple[tuple[int, int], ...]:
        """(layer, experts) of every MoE layer."""
        return tuple((layer, len(row)) for layer, row in sorted(self.counts.items()))

    def favourites(self) -> list[tuple[int, int]]:
        """(layer, expert) of every expert that was used, the most used first."""
        used = [
            (-uses, layer, expert)
            for layer, row in self.counts.items()
            for expert, uses in enumerate(row)
            if uses
        ]
        return [(layer, expert) for _, layer, expert in sorted(used)]


def of_usage(model: str, layers: Mapping[int, LayerUsage], sessions: int = 1) -> Profile:
    """The profile of what the engine counted, by layer number.

    ``sessions``: 0 when the counts go on with a session that the stored profile already has.
    """
    used = list(layers.values())
    lookups, follow = (sum(u.lookups for u in used), sum(u.follow for u in used))
    return Profile(
        model=model,
        counts={index: tuple(map(float, u.uses)) for index, u in layers.items()},
        tokens=float(max((u.tokens for u in used), default=0)),
        curve=tuple((f, _found(used, f) / lookups) for f in FRACTIONS) if lookups else (),
        curve_tokens=float(max((u.decoded for u in used), default=0)),
        reuse=sum(u.again for u in used) / follow if follow else None,
        sessions=sessions,
    )


def _found(layers: Sequence[LayerUsage], fraction: float) -> int:
    """Lookups that hit when ``fraction`` of every layer's experts, rounded, is in memory."""
    return sum(sum(u.found_at[: round(fraction * len(u.uses))]) for u in layers)


def expected_hit_rate(
    profile: Profile | None, fraction: float, *, used_share: float | None = None
) -> float:
    """Share of the expert lookups of a decoded token that our cache will answer.

    ``fraction`` of the experts is in memory. The rate is interpolated in the profile's curve and in
    a borrowed one, of a real trace of Qwen3-30B-A3B, which weighs as much as ``PRIOR_TOKENS``
    tokens of the model's own, since a short session says little. ``used_share``: k / experts of
    this model, for which the borrowed curve is changed.
    """
    fraction = min(max(fraction, 0.0), 1.0)
    borrowed = _borrowed(fraction, PRIOR_USED if used_share is None else used_share)
    if profile is None or not profile.curve:
        return borrowed
    share = profile.curve_tokens / (profile.curve_tokens + PRIOR_TOKENS)
    return share * _at(profile.curve, fraction) + (1 - share) * borrowed


def key_of(model: Model) -> str:
    """The name of a model's profile: the same for all its quantizations."""
    name = model.metadata.get("general.basename") or model.metadata.get("general.name")
    name = name if isinstance(name, str) and name.strip() else model.name
    shape = [(e.index, e.expert_count, e.expert_used) for e in model.layers if e.expert_count]
    told = json.dumps([name, model.architecture, shape]).encode()
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower())
    return f"{plain[:48].strip('-')}-{hashlib.sha256(told).hexdigest()[:12]}"


def path_of(key: str) -> Path:
    return storage.data_dir() / "routing" / f"{key}.json"


def load(key: str) -> Profile | None:
    """The profile of a model, None when there is none that can be read."""
    try:
        with path_of(key).open("rb") as file:
            raw = file.read(MAX_FILE + 1)
        return _from_json(kept.parse(raw)) if len(raw) <= MAX_FILE else None
    except (OSError, *kept.DAMAGED):
        return None


def save(key: str, profile: Profile) -> None:
    """Replace the profile of a model, in a private file. Raises StorageError."""
    document = {
        "version": VERSION,
        "model": profile.model,
        "tokens": round(profile.tokens, 1),
        "sessions": profile.sessions,
        "curve": [[f, round(h, 4)] for f, h in profile.curve],
        "curve_tokens": round(profile.curve_tokens, 1),
        "reuse": profile.reuse,
        "counts": {str(i): [round(x, 2) for x in row] for i, row in profile.counts.items()},
    }
    path = path_of(key)
    _keep_newer(path)
    storage.atomic_write(path, json.dumps(document, separators=(",", ":")))


def _keep_newer(path: Path) -> None:
    """Put the profile of a newer localmoe aside: this one cannot read it, and must not lose it."""
    try:
        with path.open("rb") as file:
            version = kept.whole(kept.parse(file.read(MAX_FILE + 1))["version"], most=1 << 31)
    except (OSError, *kept.DAMAGED):
        return
    if version > VERSION:
        with contextlib.suppress(OSError):
            path.rename(path.with_name(f"{path.stem}.v{version}{path.suffix}"))


def learn(key: str, session: Profile) -> Profile:
    """Merge a session into the stored profile of a model, and return the result."""
    known = load(key)
    merged = known.merge(session) if known else session
    save(key, merged)
    return merged


def _from_json(document: Any) -> Profile:
    if document["version"] != VERSION:
        raise ValueError("another version")
    curve = tuple((_number(f), _number(h)) for f, h in document["curve"])
    if any(not 0 <= x <= 1 for point in curve for x in point):
        raise ValueError("a hit rate out of range")
    if list(curve) != sorted(set(curve)):
        raise ValueError("a curve out of order")
    reuse = document["reuse"]
    return Profile(
        model=kept.text(document["model"], 200),
        counts={
            int(layer): tuple(_number(x) for x in row) for layer, row in document["counts"].items()
        },
        tokens=_number(document["tokens"]),
        curve=curve,
        curve_tokens=_number(document["curve_tokens"]),
        reuse=None if reuse is None else _number(reuse),
        sessions=kept.whole(document["sessions"]),
    )


def _number(value: object) -> float:
    return kept.number(value, 0, 1e15)


def _mix(
    older: tuple[tuple[float, float], ...], newer: tuple[tuple[float, float], ...], share: float
) -> tuple[tuple[float, float], ...]:
    if not older or not newer:
        return newer or older
    return tuple((f, share * _at(older, f) + (1 - share) * h) for f, h in newer)


def _at(curve: tuple[tuple[float, float], ...], fraction: float) -> float:
    """The curve's hit rate at ``fraction``: linear between its points, (0, 0) and (1, 1)."""
    points = [(0.0, 0.0), *curve, (1.0, 1.0)]
    at = bisect.bisect_left(points, (fraction, -1.0))
    (f0, h0), (f1, h1) = points[max(at - 1, 0)], points[min(at, len(points) - 1)]
    if f1 <= f0:
        return h1
    return h0 + (h1 - h0) * (fraction - f0) / (f1 - f0)


def _borrowed(fraction: float, used: float) -> float:
    """The real trace's hit rate for a model that uses the share ``used`` of its experts per token.

    Where that is less than in the trace its curve is stretched, so that room for one token's
    experts means the same; where it is more it is between the curves of ``COARSER``.
    """
    if used <= PRIOR_USED:
        return _at(PRIOR, _moved(fraction, used, PRIOR_USED))
    coarser = [(share, tuple(zip(FRACTIONS, rates, strict=True))) for share, rates in COARSER]
    curves = [(PRIOR_USED, PRIOR), *coarser]
    at = bisect.bisect_left([share for share, _ in coarser], min(used, 1.0))
    (finer, above), (wider, below) = curves[at], curves[at + 1]
    part = math.log(min(used, 1.0) / finer) / math.log(wider / finer)
    return (1 - part) * _at(above, fraction) + part * _at(below, fraction)


def _moved(fraction: float, used: float, reference: float) -> float:
    """``fraction`` of a model that uses the share ``used`` of its experts per token, as a fraction
    of one that uses ``reference``: one token's experts map to one token's, all to all.
    """
    if fraction < used:
        return fraction / used * reference
    return reference + (fraction - used) / (1 - used) * (1 - reference)
