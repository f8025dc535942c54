"""``localmoe experts``, as it is typed."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe.app.prompts import bundled, questions_of
from localmoe.errors import UsageError
from localmoe.routing.compare import MIN_PROMPTS
from localmoe.routing.outlook import SHIPPED
from localmoe.routing.rewrite import write_trace
from localmoe.routing.trace import Trace, read_trace
from localmoe.terminal.console import make_console
from localmoe.terminal.heat_map import HeatMap, folded, shade
from tests.cli.command import Localmoe, assert_clear_error
from tests.cli.test_streams import in_terminal
from tests.routing import traces
from tests.waiting import PATIENCE

QWEN3 = traces.QWEN3_TRACE
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    return two_domains(tmp_path / "domains.trace")


def two_domains(path: Path) -> Path:
    """A trace of two domains with eight prompts each, and a specialist (layer 1, expert 5)."""
    rng = np.random.default_rng(1)
    prompt = np.repeat(np.arange(16), 40)
    ids = []
    for layer in range(3):
        noise = rng.gumbel(size=(640, 16)) + rng.normal(size=(16, 16))[prompt] * 0.5
        if layer == 1:
            noise[320:, 5] += 4
        ids.append(np.argsort(-noise, axis=1)[:, :2])
    trace = traces.trace(
        ids,
        16,
        segment=prompt.tolist(),
        labels=["prose"] * 8 + ["code"] * 8,
        tokens=rng.integers(0, 50, 640).tolist(),
        expert_bytes=1 << 20,
    )
    write_trace(path, trace)
    return path


def test_show_says_what_the_trace_says(localmoe: Localmoe) -> None:
    """The JSON document holds the known facts of the real trace; the screen the same."""
    document = localmoe.document("experts", "show", QWEN3)
    assert document["trace"]["tokens"] == {"prefill": 28, "decode": 128}
    assert len(document["layers"]) == 48
    layer = document["layers"][10]
    assert sum(layer["load"]) == 156 * 6 and len(layer["load"]) == 128
    assert layer["balance"]["dead"] == layer["load"].count(0)
    assert layer["confidence"] is None  # no logits in this trace
    assert set(layer["balance"]["dropped"]) == {"1.0", "1.25", "2.0"}
    done = localmoe("experts", "show", QWEN3)
    assert done.returncode == 0 and done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "37 % of a token's experts were used by the token before" in done.stdout
    dead = sum(layer["balance"]["dead"] for layer in document["layers"])
    assert f"{dead:,} of 6,144 experts never" in done.stdout


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_the_heat_map_fits_the_terminal(localmoe: Localmoe, columns: int) -> None:
    """Coloured, two layers a line, and no line is longer than the terminal is wide."""
    text, screen = in_terminal(localmoe.home, "experts", "show", QWEN3, columns=columns)
    assert "\x1b[" in text
    rows = [line for line in text.splitlines() if "▀" in line]
    assert len(rows) == 24
    assert max(line.count("▀") for line in rows) <= columns
    assert all(len(line) <= columns for line in screen)


def test_heat_maps_by_hand() -> None:
    """Shades follow the load; folded columns keep the busiest expert."""
    assert [shade(r) for r in (0, 0.1, 0.5, 1, 5)] == list(" ░▒▓█")
    assert folded([1, 5, 2, 0, 3], 2) == [5, 2, 3]
    console = make_console(io.StringIO())
    lines = console.render_lines(HeatMap([("0", [0, 0.1, 0.5, 1, 5])]))
    assert "".join(segment.text for segment in lines[0]).startswith("0  ░▒▓█")


def test_compare_finds_the_specialist(localmoe: Localmoe, domains: Path) -> None:
    """The planted expert is first; the sentence says against what chance it was held."""
    document = localmoe.document("experts", "compare", domains)
    assert document["differs"] is True
    first = document["specialists"][0]
    assert (first["domain"], first["layer"], first["expert"]) == ("code", 1, 5)
    done = localmoe("experts", "compare", domains)
    assert "the domains use different experts" in done.stdout
    assert "16 prompts shuffled" in done.stdout


def test_compare_says_when_there_is_nothing(localmoe: Localmoe, tmp_path: Path) -> None:
    """Two traces of the same random router: a plain sentence, and exit code 0."""
    for number in range(2):
        rng = np.random.default_rng(number)
        trace = traces.trace([traces.random_ids(rng, 400, 16, 2) for _ in range(3)], 16)
        write_trace(tmp_path / f"{number}.trace", trace)
    done = localmoe("experts", "compare", tmp_path / "0.trace", tmp_path / "1.trace")
    assert done.returncode == 0
    assert "no specialisation beyond chance" in done.stdout


def test_simulate(localmoe: Localmoe) -> None:
    """Hit rates of the real trace after its prompt; more memory never hits less."""
    document = localmoe.document("experts", "simulate", QWEN3)
    rates = {b["share"]: b["policies"]["LRU"]["hit_rate"] for b in document["budgets"]}
    assert rates[0.25] == pytest.approx(0.8185, abs=1e-3)
    assert list(rates.values()) == sorted(rates.values()) and rates[1.0] == 1
    for budget in document["budgets"]:
        policies = budget["policies"]
        best = policies["optimum"]["hit_rate"]
        assert all(best >= policies[name]["hit_rate"] for name in policies)
    half = document["budgets"][7]
    assert half["bytes"] == pytest.approx(document["expert_bytes"] / 2, rel=1e-6)


def test_simulated_speed_follows_from_the_figures(localmoe: Localmoe, tmp_path: Path) -> None:
    """tok/s is one token's computing plus its misses over the disk that was measured.

    The script computes with a measured speed of computing, the command with an estimated one.
    """
    model = tmp_path / "some.gguf"
    with model.open("wb") as file:
        file.truncate(65 << 20)
    words = (QWEN3, "-m", model, "--cache-ram", "4")
    estimated = localmoe.document("experts", "simulate", *words)
    assert not estimated["speeds"]["measured"]
    more = ("--resident-tps", "10", "--json")
    done = localmoe.script("simulate_measured.py", *words, *more)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["speeds"]["resident_tps"] == 10 and measured["speeds"]["measured"]
    for document in (estimated, measured):
        computing = 1 / document["speeds"]["resident_tps"]
        for budget in document["budgets"]:
            reading = budget["policies"][SHIPPED]["bytes_per_token"] / document["speeds"]["disk"]
            hidden = document["speeds"]["hidden"] * min(computing, reading)
            assert budget["tps"] == pytest.approx(1 / (computing + reading - hidden))
            assert budget["tps_hidden"] == pytest.approx(1 / max(computing, reading))
        advice = document["advice"][0]
        assert re.match(r"with 8.0 GiB more RAM: [\d.]+ tok/s instead of [\d.]+", advice)


def test_the_report_is_one_page_without_network_or_script(
    localmoe: Localmoe, domains: Path
) -> None:
    """All plots are in it; nothing is fetched, nothing runs, and the policy forbids both."""
    done = localmoe("experts", "report", domains, "-o", "r.html", "--png", "pictures")
    assert done.returncode == 0, done.stderr
    page = (localmoe.home / "r.html").read_text()
    for name in ("load", "balance", "dropped", "reuse", "prediction", "hits", "divergence"):
        picture = (localmoe.home / "pictures" / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", picture[16:24])
        assert width == 1520 and height >= 300
    assert page.count("<svg") == len(list((localmoe.home / "pictures").iterdir())) >= 8
    outside = page.replace("http://www.w3.org/2000/svg", "")
    for forbidden in ("<script", "http:", "https:", "<link", "<img", "url(", "@import", "src="):
        assert forbidden not in outside.replace("default-src 'none'; style-src", "")
    assert "default-src 'none'" in page
    assert "the domains use different experts" in page


def test_names_in_traces_are_only_text(localmoe: Localmoe, tmp_path: Path) -> None:
    """A model or a domain named like markup, or with control characters, does nothing."""
    rows = "".join(f"{i // 2},0,{i % 7},\x1b]52;c;eA==\x07<b>x</b>\n" for i in range(200))
    text = "# model=<img-onerror=alert(1)>\x1b[2J arch=x\nstep,layer,expert,label\n" + rows
    (tmp_path / "t.csv").write_text(text)
    done = localmoe("experts", "report", tmp_path / "t.csv", "-o", "r.html")
    assert done.returncode == 0, done.stderr
    page = (localmoe.home / "r.html").read_text()
    assert "<img" not in page and "<b>" not in page and "\x1b" not in page
    assert "&lt;img-onerror" in page
    shown = localmoe("experts", "show", tmp_path / "t.csv")
    assert "\x1b" not in shown.stdout + shown.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here")
def test_the_report_in_a_real_browser(localmoe: Localmoe, domains: Path) -> None:
    """The browser draws every plot and complains of nothing."""
    localmoe("experts", "report", domains, "-o", "r.html")
    profile = localmoe.home / "browser"
    done = subprocess.run(
        [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            f"--user-data-dir={profile}",
            "--dump-dom",
            (localmoe.home / "r.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    plots = (localmoe.home / "r.html").read_text().count("<svg")
    assert done.stdout.count("<figure><svg") == plots >= 8
    assert "<figcaption>" in done.stdout
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "fragment"),
    [
        ((), 2, "record, show, compare, simulate, report"),
        (("draw",), 2, "draw"),
        (("show",), 2, "one trace"),
        (("show", "a", "b"), 2, "one trace"),
        (("compare",), 2, "one or more traces"),
        (("report",), 2, "one or more traces"),
        (("show", "none.trace"), 1, "cannot read the trace"),
        (("simulate", "nano.gguf"), 1, "not a routing trace"),
        (("compare", str(QWEN3)), 2, "one domain"),
        (("record", "nano"), 2, "nothing to record"),
        (("record", "nano", "-f", "none.txt"), 2, "cannot read none.txt"),
        (("record", "nano", "-f", "nano.gguf"), 2, "not text"),
    ],
)
def test_mistakes(localmoe: Localmoe, words: tuple[str, ...], code: int, fragment: str) -> None:
    """Each is one line with the reason and an example to type."""
    (localmoe.home / "nano.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\xff\xfe")
    assert_clear_error(localmoe("experts", *words), code, fragment)


def test_record_a_prompt(localmoe: Localmoe) -> None:
    """The trace has what was read and written, its texts, its weights; the profile has grown."""
    document = localmoe.document(
        "experts", "record", "nano", "What is a router?", "-o", "n.trace", "-n", "8"
    )
    trace = read_trace(localmoe.home / "n.trace")
    assert document["path"] == "n.trace"
    assert document["trace"]["tokens"]["decode"] == int(trace.decode.sum()) == 7
    text = "".join(trace.token_texts[int(token)] for token in trace.tokens)
    assert "What is a router?" in text
    assert trace.header.gating == "softmax, then top-k, renormalized"
    weights = trace.weights(0)
    assert weights is not None and np.allclose(weights.sum(axis=1), 1, atol=2e-3)
    stored = list((localmoe.home / ".local/share/localmoe/routing").glob("nano-*.json"))
    assert len(stored) == 1
    assert json.loads(stored[0].read_text())["tokens"] == len(trace)


def test_a_disk_that_is_full_in_mid_answer(localmoe: Localmoe) -> None:
    """The answer ends with the reason, and the steps until then are in the file."""
    done = localmoe.shell(
        'ulimit -f 8; localmoe run nano "What is an expert?" --trace n.trace --logits --no-history'
    )
    assert done.returncode == 1
    assert "cannot write the trace n.trace: file too large" in done.stderr
    assert (localmoe.home / "n.trace").stat().st_size == 8192
    trace = read_trace(localmoe.home / "n.trace")
    assert trace.cut and int(trace.decode.sum()) > 5 and trace.logits(0) is not None


def test_record_files_as_domains(localmoe: Localmoe) -> None:
    """A file is a domain, a paragraph a prompt; without history no profile is kept."""
    (localmoe.home / "sums.txt").write_text("What is 2 + 2?\n\nWhat is 3 + 4?\n")
    (localmoe.home / "words.txt").write_text("What is an expert?")
    done = localmoe(
        *("experts", "record", "nano", "-f", "sums.txt", "-f", "words.txt"),
        *("-o", "n.trace", "-n", "4", "--no-history"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    trace = read_trace(localmoe.home / "n.trace")
    assert trace.labels == ("sums", "sums", "words")
    starts = [int(np.argmax(trace.segment == number)) for number in range(3)]
    for start, words in zip(starts, ("2 + 2", "3 + 4", "expert"), strict=True):
        following = [trace.token_texts[int(t)] for t in trace.tokens[start : start + 14]]
        assert words in "".join(following)
    assert not list((localmoe.home / ".local").rglob("*.json"))


def test_the_bundled_prompts() -> None:
    """Ten domains of alike length, enough of each to shuffle prompts; own words, no repetition."""
    questions = bundled()
    labels = {q.label for q in questions}
    assert {"prose", "code", "mathematics", "law", "medicine", "chat"} <= labels
    assert len(labels) == 10
    assert len({q.text for q in questions}) == len(questions)
    for label in labels:
        texts = [q.text for q in questions if q.label == label]
        assert len(texts) >= MIN_PROMPTS
        assert all(30 < len(text) < 500 for text in texts)


def test_questions_from_files(tmp_path: Path) -> None:
    """Paragraphs are told apart by empty lines, whatever the ends of lines."""
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\ntwo\nlines\r\n\r\n\r\n".encode())
    found = questions_of("typed", [str(tmp_path / "a.txt")], False)
    assert [(q.label, q.text) for q in found] == [
        ("prompt", "typed"),
        ("a", "one"),
        ("a", "two\nlines"),
    ]
    (tmp_path / "b.bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not text"):
        questions_of("", [str(tmp_path / "b.bin")], False)


def test_a_compressed_trace_is_as_good(localmoe: Localmoe, domains: Path) -> None:
    """gzip of localmoe's own format is read too."""
    (localmoe.home / "t.gz").write_bytes(gzip.compress(domains.read_bytes()))
    one = localmoe.document("experts", "show", localmoe.home / "t.gz")
    two = localmoe.document("experts", "show", domains)
    assert one == two


def test_run_and_record_agree_with_the_engine(
    localmoe: Localmoe, arch_file: Callable[..., Path], tmp_path: Path
) -> None:
    """What ``run --trace`` writes is what the evaluation callback of the engine sees."""
    from tests.routing.observe import observe

    path = arch_file("qwen3moe")
    prompt = "one two three four five six seven eight nine ten"
    done = localmoe(
        *("run", path, prompt, "--plain", "--temp", "0", "-n", "5", "--trace", "t.trace")
    )
    assert done.returncode == 0, done.stderr
    trace = read_trace(localmoe.home / "t.trace")
    compare_with_witness(trace, observe(path, trace.tokens.tolist(), tmp_path / "o.npz"))


def compare_with_witness(trace: Trace, seen: dict[int, list[Any]]) -> None:
    assert sorted(seen) == list(trace.layers)
    for layer, steps in seen.items():
        ids = np.concatenate([step.ids for step in steps])
        weights = np.concatenate([step.weights for step in steps])
        got = trace.weights(layer)
        mine = trace.ids(layer)
        rows = (mine >= 0).all(axis=1)
        assert rows.sum() == len(ids) and got is not None
        assert (mine[rows] == ids).all()
        assert np.allclose(got[rows], weights, rtol=2e-3)
