"""Profiles: made, merged, kept, asked."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from localmoe.facts.model import read_model
from localmoe.routing import profile
from localmoe.routing.profile import LayerUsage, Profile, expected_hit_rate
from localmoe.routing.trace import read_trace
from tests.routing import traces


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def real() -> Profile:
    return traces.profile_of(read_trace(traces.QWEN3_TRACE))


def counted(counts: dict[int, list[float]], tokens: float) -> Profile:
    """A session without a decoded token."""
    return Profile("m", {layer: tuple(row) for layer, row in counts.items()}, tokens)


def test_the_prior_is_that_of_the_real_trace(real: Profile) -> None:
    """The constants are what our cache does on the trace in tests/routing/data, no invention."""
    trace = read_trace(traces.QWEN3_TRACE)
    assert dict(real.curve) == pytest.approx(dict(profile.PRIOR), abs=6e-5)
    assert trace.info(0).used / trace.info(0).experts == profile.PRIOR_USED
    assert trace.decode.sum() == profile.PRIOR_TOKENS


def test_a_session_as_the_engine_counts_it() -> None:
    """Counts, the hit rate of each room in whole experts, and reuse, by hand."""
    layers = {
        0: LayerUsage((3, 1, 0, 0), (2, 1, 0, 0), 4, decoded=3, lookups=4, follow=4, again=1),
        5: LayerUsage((0, 0, 2, 2), (0, 2, 0, 0), 3, decoded=3, lookups=4, follow=4, again=3),
    }
    made = profile.of_usage("m", layers, sessions=0)
    assert made.counts == {0: (3, 1, 0, 0), 5: (0, 0, 2, 2)}
    assert (made.tokens, made.curve_tokens, made.sessions, made.reuse) == (4, 3, 0, 0.5)
    curve = dict(made.curve)
    assert curve[0.05] == 0 and curve[0.25] == 2 / 8 and curve[0.5] == 5 / 8 and curve[0.9] == 5 / 8
    more = layers[0].since(LayerUsage((1, 1, 0, 0), (1, 0, 0, 0), 2, 1, 2, 2, 0))
    assert more == LayerUsage((2, 0, 0, 0), (1, 1, 0, 0), 2, 2, 2, 2, 1)
    nothing = profile.of_usage("m", {0: LayerUsage.none(4)})
    assert nothing.curve == () and nothing.reuse is None and nothing.tokens == 0


def test_the_favourites(real: Profile) -> None:
    """By their uses over all layers, and none that was never used."""
    pairs = real.favourites()
    uses = [real.counts[layer][expert] for layer, expert in pairs]
    assert uses == sorted(uses, reverse=True) and uses[-1] > 0
    assert len(set(pairs)) == len(pairs) == sum(x > 0 for row in real.counts.values() for x in row)


def test_it_comes_back_from_disk(real: Profile, home: Path) -> None:
    """Private, small and the same to the figures that are kept."""
    profile.save("some-model", real)
    path = profile.path_of("some-model")
    assert path.is_relative_to(home)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size < 60_000
    again = profile.load("some-model")
    assert again is not None
    assert again.counts == real.counts
    assert dict(again.curve) == pytest.approx(dict(real.curve), abs=1e-4)


def test_sessions_add_up_and_fade(real: Profile) -> None:
    """Twice the same session doubles the counts, less what the older one has faded."""
    twice = real.merge(real, half_life=1e12)
    assert twice.tokens == pytest.approx(312) and twice.sessions == 2
    assert twice.counts[3] == pytest.approx([2 * x for x in real.counts[3]])
    assert dict(twice.curve) == pytest.approx(dict(real.curve))
    faded = real.merge(real, half_life=real.tokens)
    assert faded.counts[3] == pytest.approx([1.5 * x for x in real.counts[3]])


def test_what_was_not_measured_does_not_count(real: Profile) -> None:
    """A session of counts alone leaves curve and reuse as they were."""
    counts = counted({k: [1.0] * len(v) for k, v in real.counts.items()}, 10)
    merged = real.merge(counts)
    assert merged.curve == real.curve and merged.reuse == real.reuse
    assert counts.merge(real).curve == real.curve


def test_layers_that_were_on_a_gpu_stay_as_they_were(real: Profile) -> None:
    """What nobody counted neither fades nor goes, and comes when it is counted."""
    part = {k: [0.0] * len(v) if k < 40 else [2.0] * len(v) for k, v in real.counts.items()}
    merged = real.merge(counted(part, 20_000))
    assert merged.counts[3] == real.counts[3]
    assert merged.counts[41] == pytest.approx([x / 2 + 2 for x in real.counts[41]])
    assert merged.shape == real.shape
    first = counted({41: [1.0] * 128}, 10)
    assert first.merge(real).counts[3] == real.counts[3]


def test_the_newer_curve_counts_by_its_tokens(real: Profile) -> None:
    """A long session moves the curve more than a short one."""
    low = replace(real, curve=((0.5, 0.2),), curve_tokens=100.0, reuse=None)
    high = replace(real, curve=((0.5, 0.8),), curve_tokens=300.0)
    merged = low.merge(high, half_life=1e12)
    assert dict(merged.curve) == pytest.approx({0.5: 0.65})
    assert merged.curve_tokens == pytest.approx(400)
    assert merged.reuse == high.reuse


def test_a_profile_of_another_shape_is_replaced(real: Profile) -> None:
    """Counts of other layers cannot be added."""
    other = counted({0: [1.0, 2.0]}, 5)
    assert real.merge(other) is other


def test_learning_keeps_what_was_learnt(real: Profile) -> None:
    """Each session is in the file when the next one begins."""
    assert profile.load("k") is None
    assert profile.learn("k", real).sessions == 1
    assert profile.learn("k", real).sessions == 2
    stored = profile.load("k")
    assert stored is not None and stored.sessions == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"version": 1}',
        '{"version": 2, "counts": 3}',
        "NaN",
    ],
)
def test_a_damaged_profile_is_none(content: str) -> None:
    """It is only a memory of use: it begins anew."""
    path = profile.path_of("k")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert profile.load("k") is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("curve", [[0.5, 2.0]]),
        ("curve", [[0.5, 0.5], [0.4, 0.6]]),
        ("tokens", -1),
        ("tokens", float("nan")),
        ("counts", {"0": ["x"]}),
        ("reuse", "often"),
    ],
)
def test_wrong_figures_are_no_profile(real: Profile, key: str, value: object) -> None:
    """A figure out of range is never believed."""
    profile.save("k", real)
    path = profile.path_of("k")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert profile.load("k") is None


def test_expected_hit_rate() -> None:
    """Nothing resident hits nothing, everything hits all, and more is never worse."""
    made = counted({0: [1.0]}, 5)
    measured = replace(made, curve=((0.2, 0.5), (0.6, 0.9)), curve_tokens=1e12)
    for asked in (None, made, measured):
        assert expected_hit_rate(asked, 0.0) == 0
        assert expected_hit_rate(asked, 1.0) == expected_hit_rate(asked, 1.7) == 1
        rates = [expected_hit_rate(asked, i / 200) for i in range(201)]
        assert rates == sorted(rates)
    assert expected_hit_rate(measured, 0.4) == pytest.approx(0.7)
    assert expected_hit_rate(measured, 0.1) == pytest.approx(0.25)
    borrowed = dict(profile.PRIOR)[0.25]
    assert expected_hit_rate(made, 0.25) == expected_hit_rate(None, 0.25) == borrowed


def test_a_short_session_says_little() -> None:
    """The borrowed curve counts like as many tokens as it was measured on."""
    measured = Profile("m", {0: (1.0,)}, 5, curve=((0.5, 0.0),), curve_tokens=profile.PRIOR_TOKENS)
    borrowed = expected_hit_rate(None, 0.5, used_share=0.1)
    assert expected_hit_rate(measured, 0.5, used_share=0.1) == pytest.approx(borrowed / 2)
    shorter = replace(measured, curve_tokens=1)
    assert expected_hit_rate(shorter, 0.5, used_share=0.1) == pytest.approx(borrowed, rel=0.01)


def test_routers_with_favourites_are_like_the_real_one() -> None:
    """Favourites of the strength that stand-ins have give the curve of the real trace."""
    made = traces.profile_of(traces.preferring(128, 6))
    assert dict(made.curve) == pytest.approx(dict(profile.PRIOR), abs=0.06)


@pytest.mark.parametrize(("used", "curve"), profile.COARSER[:-1])
def test_the_curves_of_coarser_models(used: float, curve: tuple[float, ...]) -> None:
    """They are what our cache does where such routers take more of the experts per token, however
    many experts there are.
    """
    for experts in (128, 32):
        made = traces.profile_of(traces.preferring(experts, int(used * experts)))
        roughness = 0.02 if experts == 128 else 0.06  # rooms of whole experts
        for (fraction, rate), told in zip(made.curve, curve, strict=True):
            if fraction >= used:
                assert rate == pytest.approx(told, abs=roughness), (experts, fraction)


def test_the_prior_is_changed_for_other_shares() -> None:
    """Room for one token's experts stays that where the model is finer; where it is coarser, and
    all the more the coarser it is, less is found.
    """
    one_token = expected_hit_rate(None, profile.PRIOR_USED)
    assert expected_hit_rate(None, 10 / 512, used_share=10 / 512) == pytest.approx(one_token)
    shares = (10 / 512, *(i / 64 for i in range(4, 65)))
    for fraction in (0.1, 0.3, 0.5, 0.7, 0.9):
        rates = [expected_hit_rate(None, fraction, used_share=used) for used in shares]
        if fraction < 0.7:  # beyond, the fewest experts are used for the first time
            assert rates == sorted(rates, reverse=True)
        assert rates[-1] == pytest.approx(fraction)
    at = profile.FRACTIONS.index(0.5)
    assert expected_hit_rate(None, 0.5, used_share=2 / 8) == profile.COARSER[1][1][at]


def test_quantizations_share_a_profile(arch_file: Callable[..., Path]) -> None:
    """The key depends on name and shape, and is safe as a file name."""
    moe, other = read_model(arch_file("qwen3moe")), read_model(arch_file("mixtral"))
    key = profile.key_of(moe)
    assert key == profile.key_of(replace(moe, quantization="Q8_0", size=moe.size * 2))
    assert key != profile.key_of(replace(other, name=moe.name))
    nasty = replace(moe, name="../../etc/\x1b[31m", metadata={})
    assert set(profile.key_of(nasty)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@pytest.mark.process
def test_asking_needs_no_numpy() -> None:
    """The planner can ask while ``fit`` starts: NumPy alone would take a tenth of a second."""
    code = (
        "import sys\nfrom localmoe.routing.profile import expected_hit_rate, load\n"
        "load('k'); expected_hit_rate(None, 0.3)\nassert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
