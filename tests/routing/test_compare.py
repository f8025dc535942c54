"""Specialisation, and what chance gives."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from localmoe.errors import TraceFileError, UsageError
from localmoe.routing import compare
from localmoe.routing.records import Trace
from tests.routing import traces

PROMPTS, LENGTH = 8, 40


def domains(rng: np.random.Generator, *, planted: bool, layers: int = 3) -> Trace:
    """Two domains of eight prompts. Every prompt has its own favourites, so tokens of a prompt are
    alike; with ``planted``, expert 5 of layer 1 also takes every third token of "code", always on
    token 77."""
    n = 2 * PROMPTS * LENGTH
    prompt = np.repeat(np.arange(2 * PROMPTS), LENGTH)
    ids = []
    for _ in range(layers):
        taste = rng.normal(size=(2 * PROMPTS, 16))
        noise = rng.gumbel(size=(n, 16)) + taste[prompt]
        noise[:, 5] -= 2
        ids.append(np.argsort(-noise, axis=1)[:, :2])
    tokens = rng.integers(0, 50, n)
    if planted:
        rows = np.arange(n // 2, n, 3)
        others = ids[1][rows]
        ids[1][rows, 0] = np.where(others[:, 0] == 5, others[:, 1], others[:, 0])
        ids[1][rows, 1] = 5
        tokens[rows] = 77
    labels = ["prose"] * PROMPTS + ["code"] * PROMPTS
    return traces.trace(ids, 16, segment=prompt.tolist(), labels=labels, tokens=tokens.tolist())


def run(trace: Trace) -> compare.Comparison:
    return compare.compare(compare.domains_of([trace], ["t"]))


def test_a_specialist_is_found_with_its_token() -> None:
    """The planted expert comes first, with its domain, its shares and the token it fires on."""
    result = run(domains(np.random.default_rng(1), planted=True))
    assert result.differs and result.unit == "prompts" and result.units == 16
    first = result.specialists[0]
    assert (first.layer, first.expert, first.domain) == (1, 5, "code")
    assert first.share > 0.16 > 0.03 > first.elsewhere
    token, uses, seen = first.fires_on[0]
    assert token == 77 and uses == seen >= 100
    by_layer = {layer.layer: layer for layer in result.layers}
    assert by_layer[1].p < 0.05 < max(by_layer[0].p, by_layer[2].p)


def test_nothing_is_found_where_there_is_nothing() -> None:
    """Without a difference of domains, 5 % of the comparisons may report one: not 3 of 12."""
    found = [run(domains(np.random.default_rng(seed), planted=False)) for seed in range(20, 32)]
    assert sum(result.differs for result in found) <= 2
    assert sum(bool(result.specialists) for result in found) <= 2


def test_shuffled_tokens_would_find_differences_everywhere() -> None:
    """The reason for shuffling prompts: with tokens as units the same traces all seem to differ."""
    seeming = 0
    for seed in range(20, 24):
        trace = domains(np.random.default_rng(seed), planted=False)
        groups = compare.domains_of([trace], ["t"])
        units = [[np.array([i]) for i in np.nonzero(group.tokens)[0]] for group in groups]
        counts = np.concatenate([compare._counts(g, u) for g, u in zip(groups, units, strict=True)])
        owner = np.repeat([0, 1], [len(u) for u in units])
        observed = compare._measure(counts, owner, 2)[0].mean()
        rng = np.random.default_rng(0)
        chance = [compare._measure(counts, rng.permutation(owner), 2)[0].mean() for _ in range(40)]
        seeming += observed > max(chance)
    assert seeming == 4


@pytest.mark.parametrize(
    ("shares", "bits"),
    [
        ([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], 1.0),
        ([[0.25] * 4, [0.25] * 4], 0.0),
        ([[1, 0], [0.5, 0.5]], 0.311278),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], 1.584963),
    ],
)
def test_js_divergence(shares: list[list[float]], bits: float) -> None:
    """Disjoint loads are log2(domains) bits apart, equal ones none."""
    assert float(compare.js_divergence(np.array(shares, float))) == pytest.approx(bits, abs=1e-6)


def test_files_are_domains() -> None:
    """Two traces of one text each: runs of tokens are shuffled, and it says so."""
    rng = np.random.default_rng(6)

    def made(favourite: int) -> Trace:
        noise = rng.gumbel(size=(320, 8))
        noise[:, favourite] += 2
        return traces.trace([np.argsort(-noise, axis=1)[:, :2]])

    groups = compare.domains_of([made(0), made(3)], ["a", "b"])
    result = compare.compare(groups)
    assert result.unit == "runs of 32 tokens" and result.units == 20
    assert result.domains == {"a": 320, "b": 320}
    assert result.differs
    assert {(s.domain, s.expert) for s in result.specialists[:2]} == {("a", 0), ("b", 3)}


def test_what_cannot_be_compared() -> None:
    """One domain, other models, too few tokens: each with what to do."""
    ids: NDArray[np.int64] = np.zeros((40, 1), int)
    with pytest.raises(UsageError, match="one domain"):
        compare.domains_of([traces.trace([ids])], ["t"])
    with pytest.raises(TraceFileError, match="different layers"):
        compare.domains_of([traces.trace([ids]), traces.trace([ids], 16)], ["a", "b"])
    short = compare.domains_of([traces.trace([ids]), traces.trace([ids])], ["a", "b"])
    with pytest.raises(UsageError, match="too short"):
        compare.compare(short)
