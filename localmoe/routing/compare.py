"""Do experts specialise? How far the loads of several domains differ, beside chance alone.

Chance is found by shuffling what belongs to which domain. Tokens of one text resemble each other,
so with single tokens shuffled every trace would seem to differ; whole prompts are shuffled instead,
or runs of tokens where there are too few prompts (``Comparison.unit`` says which).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localmoe.errors import TraceFileError, UsageError
from localmoe.routing.records import Trace
from localmoe.routing.stats import one_hot

RUN = 32  # tokens in a run, which are shuffled where prompts are too few
MIN_PROMPTS = 4  # prompts in every domain, to shuffle prompts
MIN_RUNS = 3  # runs in every domain, to compare at all
PERMUTATIONS = 200  # shuffles
LEVEL = 0.05  # a difference is believed when fewer shuffles than this share reach it
TOKENS_SHOWN = 6  # per specialist

Counts = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Group:
    """One domain: the ``tokens`` bool[n] of ``trace`` that belong to it."""

    label: str
    trace: Trace
    tokens: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LayerDivergence:
    """Jensen-Shannon divergence of the domains' loads in one layer, in bits."""

    layer: int
    divergence: float
    chance_mean: float  # mean divergence of shuffled domains
    chance_high: float  # 95th percentile of the divergence of shuffled domains
    p: float  # share of shuffles that reach ``divergence``


@dataclass(frozen=True, slots=True)
class Specialist:
    """An expert that one domain uses more than the others do.

    ``z``: the difference of the shares, in standard deviations of the shuffles. ``fires_on``:
    (token id, times that it used this expert, times that it occurs in the domain).
    """

    layer: int
    expert: int
    domain: str
    share: float  # of the domain's assignments in this layer
    elsewhere: float  # mean share in the other domains
    z: float
    fires_on: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far the domains differ; ``divergence``, ``chance_…`` and ``p`` are for the mean of all
    layers.

    ``specialists`` are the experts with a z above ``threshold``: in 95 % of the shuffles not one
    expert of any layer exceeds it.
    """

    domains: Mapping[str, int]  # tokens of each
    unit: str  # what was shuffled: "prompts" or "runs of 32 tokens"
    units: int
    divergence: float
    chance_mean: float
    chance_high: float
    p: float
    threshold: float  # of z
    layers: tuple[LayerDivergence, ...]
    specialists: tuple[Specialist, ...]

    @property
    def differs(self) -> bool:
        return self.p < LEVEL


def domains_of(traces: Sequence[Trace], names: Sequence[str]) -> tuple[Group, ...]:
    """The domains to compare: the labels inside the traces, or the traces themselves.

    Several traces are told apart by file; one trace by the labels of its prompts. Raises
    UsageError when there is only one domain, TraceFileError when the models differ.
    """
    shapes = {tuple((e.index, e.experts) for e in trace.header.layers) for trace in traces}
    if len(shapes) > 1:
        raise TraceFileError(
            "these traces are of models with different layers or experts",
            hint="compare traces of one model",
        )
    if len(traces) > 1:
        return tuple(
            Group(name, trace, np.ones(len(trace), bool))
            for name, trace in zip(names, traces, strict=True)
        )
    trace = traces[0]
    labels = list(dict.fromkeys(trace.labels[s] for s in np.unique(trace.segment)))
    if len(labels) < 2:
        raise UsageError(
            "one trace of one domain: nothing to compare with",
            hint="localmoe experts record MODEL --domains writes a trace with several",
        )
    of_token = np.array(trace.labels, dtype=object)[trace.segment]
    return tuple(Group(label, trace, np.equal(of_token, label)) for label in labels)


def compare(groups: Sequence[Group], seed: int = 0, permutations: int = PERMUTATIONS) -> Comparison:
    """The divergence between domains and the specialists, beside ``permutations`` shuffles.

    Raises UsageError for domains that are too short to say anything.
    """
    header = groups[0].trace.header
    by_prompt = [_units(group, None) for group in groups]
    prompts = min(map(len, by_prompt)) >= MIN_PROMPTS
    units = by_prompt if prompts else [_units(group, RUN) for group in groups]
    if min(map(len, units)) < MIN_RUNS:
        short = min(zip(units, groups, strict=True), key=lambda pair: len(pair[0]))[1]
        raise UsageError(
            f'"{short.label}" is too short to compare: {int(short.tokens.sum())} tokens',
            hint=f"each domain needs {MIN_PROMPTS} prompts, or {MIN_RUNS * RUN} tokens",
        )
    counts = np.concatenate([_counts(g, u) for g, u in zip(groups, units, strict=True)])
    owner = np.repeat(np.arange(len(groups)), [len(u) for u in units])
    observed_js, observed_gap = _measure(counts, owner, len(groups))
    rng = np.random.default_rng(seed)
    shuffled = [_measure(counts, rng.permutation(owner), len(groups)) for _ in range(permutations)]
    chance_js = np.array([js for js, _ in shuffled])  # [permutations, layers]
    gaps = np.array([gap for _, gap in shuffled])  # [permutations, groups, layers, experts]
    spread = np.maximum(gaps.std(axis=0), 1e-12)
    mean = gaps.mean(axis=0)
    z = (observed_gap - mean) / spread
    largest = ((gaps - mean) / spread).reshape(permutations, -1).max(axis=1)
    threshold = float(np.quantile(largest, 1 - LEVEL))
    overall, chance = float(observed_js.mean()), chance_js.mean(axis=1)
    return Comparison(
        domains={group.label: int(group.tokens.sum()) for group in groups},
        unit="prompts" if prompts else f"runs of {RUN} tokens",
        units=len(owner),
        divergence=overall,
        chance_mean=float(chance.mean()),
        chance_high=float(np.quantile(chance, 1 - LEVEL)),
        p=_p(overall, chance),
        threshold=threshold,
        layers=tuple(
            LayerDivergence(
                layer.index,
                float(observed_js[at]),
                float(chance_js[:, at].mean()),
                float(np.quantile(chance_js[:, at], 1 - LEVEL)),
                _p(float(observed_js[at]), chance_js[:, at]),
            )
            for at, layer in enumerate(header.layers)
        ),
        specialists=_specialists(groups, _shares(counts, owner, len(groups)), z, threshold),
    )


def js_divergence(shares: Counts) -> Counts:
    """Jensen-Shannon divergence in bits, f64[…], of equally weighted distributions
    f64[groups, …, experts].
    """
    middle = shares.mean(axis=0)
    result: Counts = np.maximum(_entropy(middle) - _entropy(shares).mean(axis=0), 0.0)
    return result


def _entropy(p: Counts) -> Counts:
    logs = np.log2(np.where(p > 0, p, 1.0))
    result: Counts = -(p * logs).sum(axis=-1)
    return result


def _units(group: Group, run: int | None) -> list[NDArray[np.int64]]:
    """Token positions of each prompt, or of each run of ``run`` tokens within the prompts."""
    positions = np.nonzero(group.tokens)[0]
    segment = group.trace.segment[positions]
    edges = np.nonzero(np.diff(segment))[0] + 1
    prompts = [part for part in np.split(positions, edges) if len(part)]
    if run is None:
        return prompts
    return [part[i : i + run] for part in prompts for i in range(0, len(part) - run + 1, run)]


def _counts(group: Group, units: Sequence[NDArray[np.int64]]) -> Counts:
    """Assignments f64[units, layers, experts]."""
    header = group.trace.header
    most = max(layer.experts for layer in header.layers)
    result = np.zeros((len(units), len(header.layers), most))
    for number, unit in enumerate(units):
        for at, ids in enumerate(group.trace.layer_ids):
            chosen = ids[unit]
            result[number, at] = np.bincount(chosen[chosen >= 0], minlength=most)
    return result


def _shares(counts: Counts, owner: NDArray[np.int64], groups: int) -> Counts:
    """Each group's load as shares, f64[groups, layers, experts]."""
    total = np.stack([counts[owner == group].sum(axis=0) for group in range(groups)])
    result: Counts = total / np.maximum(total.sum(axis=-1, keepdims=True), 1)
    return result


def _measure(counts: Counts, owner: NDArray[np.int64], groups: int) -> tuple[Counts, Counts]:
    """The divergence f64[layers], and each group's shares minus the mean of the other groups'
    shares, f64[groups, layers, experts].
    """
    shares = _shares(counts, owner, groups)
    others = (shares.sum(axis=0) - shares) / (groups - 1)
    return js_divergence(shares), shares - others


def _p(observed: float, chance: Counts) -> float:
    """Share of shuffles that reach the observed value, counting the observation itself."""
    return float((1 + (chance >= observed).sum()) / (1 + len(chance)))


def _specialists(
    groups: Sequence[Group], shares: Counts, z: Counts, threshold: float
) -> tuple[Specialist, ...]:
    found = np.argwhere(z > threshold)
    found = found[np.argsort(-z[tuple(found.T)], kind="stable")]
    others = (shares.sum(axis=0) - shares) / (len(groups) - 1)
    header = groups[0].trace.header
    return tuple(
        Specialist(
            layer=header.layers[at].index,
            expert=int(expert),
            domain=groups[group].label,
            share=float(shares[group, at, expert]),
            elsewhere=float(others[group, at, expert]),
            z=float(z[group, at, expert]),
            fires_on=_fires_on(groups[group], int(at), int(expert)),
        )
        for group, at, expert in found.tolist()
    )


def _fires_on(group: Group, at: int, expert: int) -> tuple[tuple[int, int, int], ...]:
    """``Specialist.fires_on``: the tokens that use this expert most beyond its usual rate, three
    times at least.
    """
    ids, tokens = group.trace.layer_ids[at][group.tokens], group.trace.tokens[group.tokens]
    known = (tokens >= 0) & (ids >= 0).any(axis=1)
    if not known.any():
        return ()
    fired = one_hot(ids[known], group.trace.header.layers[at].experts)[:, expert]
    names, number = np.unique(tokens[known], return_inverse=True)
    seen = np.bincount(number)
    uses = np.bincount(number, weights=fired)
    rate = min(max(float(fired.mean()), 1e-9), 1 - 1e-9)
    surprise = (uses - seen * rate) / np.sqrt(seen * rate * (1 - rate))
    best = [i for i in np.argsort(-surprise, kind="stable") if uses[i] >= 3 and surprise[i] > 0]
    return tuple((int(names[i]), int(uses[i]), int(seen[i])) for i in best[:TOKENS_SHOWN])
