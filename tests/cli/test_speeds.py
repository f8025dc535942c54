"""Forecasts as people and scripts see them; which model they make the best choice."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from localmoe.app import speeds
from localmoe.app.download import doubt_about
from localmoe.app.planned_model import PlannedModel
from localmoe.app.recommend import best_first, quality, recommend
from localmoe.cli.fit import screens
from localmoe.cli.fit.plan_screen import plan_screen
from localmoe.facts.bandwidth import to_json
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Plan, Tiers, Wishes
from localmoe.planning.speed import Forecast, Range
from localmoe.planning.what_if import with_enough_ram
from tests.cli.command import Localmoe, assert_clear_error
from tests.planning.invented import GIB, engine, machine, moe_model
from tests.planning.rates import RATES

MODEL = moe_model(layers=24)


def planned(ram: float, *vram: float) -> Plan:
    return make_plan(MODEL, machine(ram, *vram), Wishes(context=8192), engine(MODEL))


RAM, DISK, NO = planned(24), planned(7), planned(0.5)
GPU_DISK = planned(6, 3)


def forecast(tps: float, limit: str = "disk", first: float = 4.3) -> Forecast:
    """0.7 to 1.4 × ``tps``."""
    return Forecast(
        decode=Range(0.7 * tps, tps, 1.4 * tps),
        prefill=Range(70.0, 123.456, 140.0),
        loaded_first_token=Range(0.7 * first, first, 1.4 * first),
        first_token=Range(1.4 * first, 2 * first, 2.8 * first),
        prompt_tokens=512,
        prompt_bytes=0.0,
        limit=limit,
        why="1.1 GiB of weights a token at 9.4 GB/s (2 threads)",
    )


def fitted(quant: str, size: float, plan: Plan, tps: float | None) -> PlannedModel:
    model = dataclasses.replace(MODEL, quantization=quant, size=int(size * GIB))
    return PlannedModel(model, plan, forecast=None if tps is None else forecast(tps))


def on_disk(size: float) -> Plan:
    """A plan with so many GiB of experts on the disk."""
    return dataclasses.replace(DISK, tiers=Tiers(0, 6 * GIB, int(size * GIB)))


# -- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0312, "0.03"), (0.35, "0.35"), (0.8, "0.80"), (0.996, "1.0"), (4.249, "4.2"),
        (9.94, "9.9"), (9.96, "10"), (11.4, "11"), (1250.2, "1,250"),
    ],
)  # fmt: skip
def test_numbers_have_the_digits_that_count(value: float, text: str) -> None:
    assert speeds.number(value) == text


def test_a_forecast_in_words() -> None:
    """The contract's line: expected, range, what limits it, the wait for a long prompt."""
    assert speeds.summary(forecast(11)) == (
        "11 tok/s (7.7–15), limited by the disk · 512-token prompt: first token after "
        "4.3 s (3.0–6.0 s), 8.6 s from a cold start"
    )
    sending = dataclasses.replace(forecast(11), sent_bytes=17 << 30)
    assert speeds.cold_text(sending) == "8.6 s from a cold start, sending 18.3 GB to the worker"
    assert "3.0 s" in speeds.first_text(forecast(11, first=3.0))
    assert speeds.first_text(forecast(11, first=60.0)) == "1 min (42 s–1 min 24 s)"
    narrow = dataclasses.replace(forecast(11), decode=Range(11.1, 11.2, 11.3))
    assert speeds.decode_text(narrow) == "11 tok/s"


@pytest.mark.parametrize("limit", ["compute", "ram", "disk", "gpu", "worker", "network"])
def test_every_limit_has_a_name(limit: str) -> None:
    assert speeds.limit_text(forecast(1, limit)) == f"limited by {speeds.LIMITS[limit]}"


def test_json() -> None:
    """Tokens per second as in the contract, no more digits than are true; null without rates."""
    document = speeds.document(forecast(10 / 3))
    assert document["decode_tps"] == {
        "low": 2.333, "expected": 3.333, "high": 4.667, "limited_by": "disk",
    }  # fmt: skip
    assert document["prefill_tps"] == {"low": 70.0, "expected": 123.5, "high": 140.0}
    assert document["first_token_s"] == {
        "low": 6.02, "expected": 8.6, "high": 12.04, "prompt_tokens": 512, "sent_bytes": 0,
    }  # fmt: skip
    assert document["loaded_first_token_s"] == {
        "low": 3.01, "expected": 4.3, "high": 6.02, "prompt_tokens": 512,
    }  # fmt: skip
    assert set(speeds.document(None).values()) == {None}
    assert speeds.document(None).keys() == document.keys()


# -- with more RAM -----------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [DISK, GPU_DISK])
def test_a_plan_with_enough_ram(plan: Plan) -> None:
    """Nothing is on the disk, nothing else has moved, and the sums are the same."""
    more = with_enough_ram(plan)
    assert plan.tiers.disk > 0 and plan.missing_ram >= plan.tiers.disk
    assert "disk" not in more.verdict.value
    assert more.tiers == Tiers(plan.tiers.gpu, plan.tiers.ram + plan.tiers.disk, 0)
    assert (more.cache.regime, more.settings.cache, more.missing_ram) == ("resident", "off", 0)
    for before, after in zip(plan.layers, more.layers, strict=True):
        assert after.experts_disk == 0 and after.experts != "disk"
        assert after.experts_ram == before.experts_ram + before.experts_disk
        assert (after.experts_gpu, after.dense) == (before.experts_gpu, before.dense)


def test_missing_ram_is_what_the_advice_names() -> None:
    """And there is none where nothing is on the disk, or where nothing runs."""
    assert RAM.missing_ram == NO.missing_ram == 0
    told = speeds.with_speed(DISK, forecast(4), forecast(20))
    assert told.advice[0] == f"{DISK.advice[0]}: 20 tok/s instead of 4.0"
    assert told.advice[1:] == DISK.advice[1:]


# -- the best choice ---------------------------------------------------------------------------


def test_the_usual_one_unless_it_is_slow() -> None:
    """Q4_K_M where it is quick; where it crawls, what does not."""
    q2, q4 = fitted("Q2_K", 2, RAM, 9.0), fitted("Q4_K_M", 4, RAM, 6.0)
    assert recommend([q2, q4])[0] is q4
    slow = fitted("Q4_K_M", 4, RAM, 1.5)
    best, why = recommend([q2, slow])
    assert best is q2 and "Q4_K_M would be too slow" in why
    crawling = fitted("Q2_K", 2, RAM, 1.7)
    best, why = recommend([crawling, slow])
    assert best is crawling and "the fastest" in why  # where nothing is usable


def test_quality_counts_among_what_is_usable() -> None:
    """The disk is no reason against it, speed below the bar is; more than Q4_K_M is taken where it
    is quick, and without Q4_K_M the faster one of what is larger.
    """
    q3, q8 = fitted("Q3_K_M", 3, RAM, 10.0), fitted("Q8_0", 8, RAM, 4.0)
    near, far = fitted("Q4_K_M", 4, on_disk(1), 4.1), fitted("Q4_K_M", 4, on_disk(1), 1.9)
    assert recommend([q3, near, q8])[0] is near
    assert recommend([q3, fitted("Q4_K_M", 4, RAM, 2.1), q8])[0] is q8  # better in both
    q6 = fitted("Q6_K", 6, RAM, 5.0)
    assert recommend([q3, far, q6, q8])[0] is q6
    best, why = recommend([q3, near])
    assert best is near and "1.0 GiB of it are read from the disk" in why
    best, why = recommend([q3, far])
    assert best is q3 and "Q4_K_M would be too slow" in why
    assert recommend([q3, q8])[0] is q8
    quick = fitted("Q8_0", 8, RAM, 10.0)
    best, why = recommend([q3, near, quick])
    assert best is quick and "better than the usual Q4_K_M" in why
    f16 = fitted("F16", 20, RAM, 10.0)  # Q8_0 has all that one notices
    smaller = fitted("Q8_0", 10.6, RAM, 11.0)
    assert recommend([near, smaller, f16])[0] is smaller
    assert recommend([q3, near, q8], 3.0)[0] is q8  # somebody has said what is usable


files = st.lists(
    st.tuples(
        st.sampled_from(["Q2_K", "Q3_K_M", "Q4_K_M", "UD-Q4_K_XL", "Q6_K", "BF16"]),
        st.floats(0.5, 60),  # GiB
        st.floats(0.05, 50),  # tok/s
        st.booleans(),  # fits
        st.floats(1, 20),  # times as fast on the better machine
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda row: row[0],
)


@given(rows=files, least=st.none() | st.floats(0.5, 20))
def test_a_better_machine_never_gets_a_worse_recommendation(
    rows: list[tuple[str, float, float, bool, float]], least: float | None
) -> None:
    """Where every file is at least as fast, and fits if it did, what is recommended is not both
    worse and slower; and something is recommended if something was.
    """
    before = [fitted(name, size, RAM if fits else NO, tps) for name, size, tps, fits, _ in rows]
    after = [fitted(name, size, RAM, tps * faster) for name, size, tps, _, faster in rows]
    was, now = recommend(before, least)[0], recommend(after, least)[0]
    if was is None:
        return
    assert now is not None and was.tps is not None and now.tps is not None
    assert quality(now) >= quality(was) or now.tps >= was.tps


def test_min_tps_bounds_the_choice() -> None:
    """Nothing slower than what was asked for; when nothing is as fast, that is the answer."""
    found = [fitted("Q2_K", 2, RAM, 9.0), fitted("Q4_K_M", 4, RAM, 6.0)]
    assert recommend(found, 5.0)[0] is found[1]
    assert recommend(found, 8.0)[0] is found[0]
    assert recommend(found, 20.0) == (None, "nothing of it is expected to reach 20 tok/s")
    unknown = [fitted("Q4_K_M", 4, RAM, None)]
    assert recommend(unknown)[0] is unknown[0]
    assert recommend(unknown, 1.0)[0] is None


def test_ranking() -> None:
    """Verdict first, then speed, then size."""
    order = [
        fitted("IQ1_S", 1, RAM, 20.0),
        fitted("Q2_K", 2, RAM, 12.0),
        fitted("IQ2_XS", 1, RAM, 9.0),
        fitted("Q4_0", 4, on_disk(1), 14.0),
        fitted("Q5_0", 5, on_disk(2), None),
        fitted("Q8_0", 8, NO, None),
    ]
    assert best_first(order[::-1]) == order


def test_doubts_before_a_download() -> None:
    """Less than 2 tok/s, or than what was asked for; what is not known is no reason by itself."""
    assert doubt_about(fitted("Q4_K_M", 4, RAM, 2.1), None) == ""
    assert "1.9 tok/s" in doubt_about(fitted("Q4_K_M", 4, RAM, 1.9), None)
    assert "limited by the disk" in doubt_about(fitted("Q4_K_M", 4, RAM, 1.9), None)
    assert doubt_about(fitted("Q4_K_M", 4, RAM, 1.9), 1.5) == ""
    assert "less than 5" in doubt_about(fitted("Q4_K_M", 4, RAM, 4.0), 5.0)
    assert doubt_about(fitted("Q4_K_M", 4, RAM, None), None) == ""
    assert "no speed is known" in doubt_about(fitted("Q4_K_M", 4, RAM, None), 1.0)
    assert "does not fit" in doubt_about(fitted("Q4_K_M", 4, NO, None), None)


# -- screens -----------------------------------------------------------------------------------

FOUND = [
    fitted("UD-Q4_K_XL", 17.3, RAM, 11.0),
    fitted("Q6_K", 23.4, on_disk(6.7), 5.2),
    fitted("BF16", 56.9, on_disk(40.2), 0.35),
    fitted("Q8_0", 30.3, NO, None),
]
SCREENS: dict[str, Callable[[], RenderableType]] = {
    "detail": lambda: screens.detail(FOUND[1]),
    "plan": lambda: plan_screen(
        dataclasses.replace(MODEL, paths=(Path("/m.gguf"),)), DISK, forecast(5.2)
    ),
    "quantizations": lambda: screens.quantizations("some/Repo-GGUF", FOUND, FOUND[0], "why"),
    "local": lambda: screens.local(FOUND),
}


def drawn(screen: RenderableType, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(screen, crop=False)
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("name", SCREENS)
def test_no_line_is_wider_than_the_screen(name: str, width: int) -> None:
    for line in drawn(SCREENS[name](), width).splitlines():
        assert cell_len(line) <= width or line.startswith("llama-server -m ")


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("name", ["detail", "plan"])
def test_speed_at_every_width(name: str, width: int) -> None:
    """Low, expected, high, what limits it, and the first token of a long prompt."""
    text = " ".join(drawn(SCREENS[name](), width).split())
    for fact in ("5.2 tok/s (3.6–7.3)", "limited by the disk", "after 4.3 s", "512-token prompt"):
        assert fact in text


def test_a_table_of_quantizations_fits_80_columns() -> None:
    """One row each, its speed among the columns; on a wider screen the context too."""
    lines = drawn(SCREENS["quantizations"](), 80).splitlines()
    head = next(line for line in lines if line.startswith("quant "))
    assert "tok/s" in head and "disk" in head and "context" not in head
    row = next(line for line in lines if line.startswith("UD-Q4_K_XL"))
    assert "11 (7.7–15)" in row
    assert "context" in drawn(SCREENS["quantizations"](), 160)
    narrow = " ".join(drawn(SCREENS["quantizations"](), 40).split())
    assert "tok/s 0.35 (0.24–0.49)" in narrow and "context" in narrow


def test_without_speeds_there_is_no_column() -> None:
    bare = [dataclasses.replace(f, forecast=None) for f in FOUND]
    assert "tok/s" not in drawn(screens.quantizations("r", bare, bare[0], ""), 160)
    assert "tok/s" not in drawn(screens.local(bare), 160)


# -- commands ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(arch_file: Callable[..., Path]) -> Path:
    return arch_file("qwen3moe")


def check(entry: dict[str, Any]) -> None:
    for name in ("decode_tps", "prefill_tps", "first_token_s"):
        assert 0 < entry[name]["low"] <= entry[name]["expected"] <= entry[name]["high"]
    assert entry["decode_tps"]["limited_by"] in speeds.LIMITS
    assert entry["speed_why"]


def test_fit_and_plan_tell_the_same(localmoe: Localmoe, model: Path) -> None:
    """By a machine that was measured before; on the screen and as JSON."""
    (entry,) = localmoe.document("fit", model, "--ram", "4")["files"]
    check(entry)
    plan = localmoe.document("plan", model, "--ram", "4")
    assert plan["decode_tps"] == entry["decode_tps"]
    done = localmoe("fit", model, "--ram", "4")
    assert speeds.number(entry["decode_tps"]["expected"]) + " tok/s" in done.stdout
    assert done.stderr == ""


def test_fit_min_tps(localmoe: Localmoe, model: Path) -> None:
    """Exit code 3 where a model runs, and is not expected to run so fast."""
    expected = localmoe.document("fit", model)["files"][0]["decode_tps"]["expected"]
    assert localmoe("fit", model, "--min-tps", str(expected / 2)).returncode == 0
    done = localmoe("fit", model, "--min-tps", str(expected * 2))
    assert done.returncode == 3 and "less than" in done.stderr
    document = localmoe.document("fit", model, "--min-tps", str(expected * 2), code=3)
    assert document["recommended"] is None and document["files"][0]["fits"] == "ram"
    assert_clear_error(localmoe("fit", model, "--min-tps", "fast"), 2, "--min-tps")


def test_another_machine_has_its_own_speed(localmoe: Localmoe, model: Path) -> None:
    """The rates in its file count; a file without them leaves the speed open."""
    body = {"ram_total": 8 * GIB, "cores_physical": 4, "cores_logical": 4, "disk_free": GIB}
    file = localmoe.home / "m.json"
    file.write_text(json.dumps({"machine": body | {"rates": to_json(RATES)}}))
    check(localmoe.document("fit", model, "--machine", file)["files"][0])
    file.write_text(json.dumps({"machine": body}))
    entry = localmoe.document("fit", model, "--machine", file)["files"][0]
    assert entry["decode_tps"] is None
    done = localmoe("fit", model, "--machine", file, "--min-tps", "1")
    assert done.returncode == 3 and "no speed is known" in done.stderr


def test_run_tells_what_to_expect(localmoe: Localmoe, model: Path) -> None:
    """``-v``: where the model lives, how fast it should be; the same in the document's plan."""
    done = localmoe("run", model, "hello", "-n", "2", "-v")
    assert done.returncode == 0
    assert "experts in RAM" in done.stderr and "first token after" in done.stderr
    check(localmoe.document("run", model, "hello", "-n", "2")["plan"])


def test_nobody_waits_for_a_measurement_before_an_answer(localmoe: Localmoe, model: Path) -> None:
    """On a machine that was never measured ``run`` answers, and measures nothing."""
    localmoe("--version")
    kept = localmoe.home / ".cache" / "localmoe" / "rates.json"
    kept.write_text("{}")
    done = localmoe("run", model, "hello", "-n", "2", "-v")
    assert done.returncode == 0 and "no speed is known yet" in done.stderr
    assert kept.read_text() == "{}"


def test_what_would_spare_the_disk(localmoe: Localmoe, model: Path) -> None:
    """``fit``, ``plan`` and ``run`` say how much memory is missing, and how fast it would be."""
    roomy = localmoe.document("plan", model, "--ram", "4", "-c", "2048")
    (host,) = (device for device in roomy["devices"] if device["device"] == "CPU")
    enough = 4 * GIB - host["budget"] + roomy["placement"]["ram"]
    half = roomy["memory"]["weights"]["experts"] // 2
    tight = (model, "-c", "2048", "--ram", f"{(enough - half) / GIB:.9f}")
    plan = localmoe.document("plan", *tight)
    assert plan["fits"] == "ram+disk" and plan["decode_tps"]["limited_by"]
    now, then = (d["decode_tps"]["expected"] for d in (plan, roomy))
    told = re.search(
        r"nothing needs the disk: ([\d,]+) tok/s instead of ([\d,]+)", plan["advice"][0]
    )
    assert told is not None
    assert [int(n.replace(",", "")) for n in told.groups()] == pytest.approx([then, now], rel=0.01)
    assert localmoe.document("fit", *tight)["files"][0]["advice"] == plan["advice"]
    assert plan["advice"][0] in localmoe("plan", *tight).stdout
    done = localmoe("run", *tight, "hello", "-n", "2")
    assert done.returncode == 0 and "nothing would need the disk" in done.stderr


def test_the_chat_begins_with_its_speed(localmoe: Localmoe, model: Path) -> None:
    """On the card: low, expected, high, what limits it, the wait for a long prompt."""
    done = localmoe("chat", model, "--no-history", "-n", "2", stdin="hello\n")
    assert done.returncode == 0, done.stderr
    head = " ".join(done.stderr.split())
    assert re.search(
        r"tok/s (\([\d,.]+–[\d,.]+\) )?expected · limited by .*512-token prompt in", head
    )
