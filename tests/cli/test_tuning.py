"""``bench`` ends with faster settings: real trials of a small model by the real command."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from rich.cells import cell_len
from rich.console import Console

from localmoe import config
from localmoe.app.bench_documents import advice_document
from localmoe.bench.trials import SECONDS
from localmoe.bench.tuning import Tuning
from localmoe.bench.variants import Gain, Sample, Variant
from localmoe.cli.arguments import parse
from localmoe.cli.bench import tuning
from localmoe.cli.bench.tuning_screen import screen
from localmoe.cli.config.defaults import configured
from localmoe.cli.output import Output
from tests.cli.command import COMMAND, Localmoe, assert_clear_error, environment
from tests.waiting import PATIENCE, wait_until

THREADS, KV = Variant("threads", 1, 2), Variant("kv-type", "f16", "q8_0")
SLOW, QUICK, BOTH = Sample(50.0, 5.0), Sample(90.0, 9.0), Sample(95.0, 9.5)
FAST = ("-n", "6", "--prompt-tokens", "12", "--runs", "1", "--regimes", "off")


def found(*confirmed: Variant) -> Tuning:
    """A search that ended with these."""
    search = Tuning(lambda changed: SLOW, 60)
    search.variants = (THREADS, Variant("batch", 512, 256), KV)
    search.trials, search.complete = 17, True
    search.single = [Gain((variant,), SLOW, QUICK) for variant in (THREADS, KV)]
    if confirmed:
        search.confirmed = Gain(confirmed, SLOW, BOTH if len(confirmed) > 1 else QUICK)
    return search


def drawn(search: Tuning, width: int = 100) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None)
    for line in screen(search, tuning.commands(search, "some model")):
        console.print(line, crop=False)
    return stream.getvalue()


def test_a_gain_is_told_with_what_to_type() -> None:
    """Each setting with both speeds, together, the command to keep it, and what it costs."""
    text = drawn(found(THREADS, KV))
    rows = [line.split() for line in text.splitlines()]
    assert ["threads", "2", "1", "5.0", "→", "9.0", "50", "→", "90", "1.80", "×", "sooner"] in rows
    assert any(row[:1] == ["together"] and "1.90" in row for row in rows)
    assert "localmoe config set threads 2 -m 'some model'" in text
    assert "kv-type q8_0 changes the answers a little" in text
    alone = drawn(found(THREADS))
    assert "together" not in alone and "changes the answers" not in alone


def test_nothing_found_is_told_with_what_was_tried() -> None:
    assert "no faster setting found (17 trials" in drawn(found())
    assert "tried threads 2, batch 256, kv-type q8_0" in drawn(found())
    hurried = found()
    hurried.complete = False
    assert "--tune SECONDS gives more" in " ".join(drawn(hurried).split())


@pytest.mark.parametrize("width", [40, 80, 160])
def test_no_line_is_wider_than_the_screen(width: int) -> None:
    """Only what is there to be copied may be."""
    for line in drawn(found(THREADS, KV), width).splitlines():
        assert cell_len(line) <= width or line.startswith("  localmoe config set")


def test_json() -> None:
    """What was tried, what is faster, by how much, and how to keep it."""
    search = found(THREADS, KV)
    told = advice_document(search, tuning.commands(search, "m"))
    assert [each["setting"] for each in told["faster"]] == ["threads", "kv-type"]  # type: ignore[attr-defined]
    first = told["faster"][0]  # type: ignore[index]
    assert first["decode_tps"] == {"now": 5.0, "then": 9.0}
    assert first["command"] == "localmoe config set threads 2 -m m"
    assert not first["changes_answers"] and told["faster"][1]["changes_answers"]  # type: ignore[index]
    assert told["gain"] == pytest.approx(1.9)
    assert advice_document(found(), [])["faster"] == []


def test_what_is_kept_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written for one model, in the configuration, where the next command finds it."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    config.write("ctx = 4096  # mine\n")
    tuning.keep("nano", (THREADS, KV, Variant("batch", 512, 256), Variant("cache", "page", "off")))
    options = configured(parse(["run", "nano", "hi"]))
    assert (options.threads, options.type_k, options.type_v) == (2, "q8_0", "q8_0")
    assert (options.batch, options.cache, options.context) == (256, "off", 4096)
    assert configured(parse(["run", "other.gguf", "hi"])).threads is None
    assert "# mine" in config.text()


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        ((), SECONDS),
        (("--runs", "5"), SECONDS),
        (("--memory", "0.5x"), 0),
        (("--log", "f"), 0),
        (("--sweep",), 0),
        (("--memory", "0.5x", "--tune", "30"), 30),
        (("--tune", "0"), 0),
    ],
)
def test_when_it_is_looked_for(arguments: tuple[str, ...], seconds: float) -> None:
    """At the end of an ordinary ``bench``; where something special is measured only if asked."""
    assert tuning.seconds_for(parse(["bench", *arguments])) == seconds


@pytest.fixture(scope="module")
def model(arch_file: Callable[..., Path]) -> Path:
    return arch_file("qwen3moe")


def test_bench_looks_for_faster_settings(localmoe: Localmoe, model: Path) -> None:
    """Real trials, and a document that says what was tried. (In what time: tests/bench.)"""
    done = localmoe("bench", model, *FAST, "-b", "64", "--tune", "2", "--json")
    assert done.returncode == 0, done.stderr
    advice = json.loads(done.stdout)["advice"]
    assert advice["seconds"] > 0 and advice["trials"] >= 1
    settings = {each["setting"] for each in advice["tried"]}
    assert "kv-type" in settings and "batch" not in settings  # a batch was chosen
    for each in advice["faster"]:
        assert each["command"].startswith(f"localmoe config set {each['setting']}")
    assert "looking for faster settings, for 2 s at most" in done.stderr


def test_bench_without_a_search(localmoe: Localmoe, model: Path) -> None:
    done = localmoe("bench", model, *FAST, "--tune", "0", "--json")
    assert json.loads(done.stdout)["advice"] is None
    assert "faster settings" not in done.stderr


def test_wrong_values(localmoe: Localmoe, model: Path) -> None:
    assert_clear_error(localmoe("bench", model, "--tune", "soon"), 2, "--tune")
    assert_clear_error(localmoe("bench", model, "--vs", "ollama run"), 2, "not ollama")


class Terminal(io.StringIO):
    """Where somebody types, or reads."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "kept"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_only_a_yes_keeps_them(
    answer: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    said = Terminal()
    tuning.offer("nano", (THREADS,), Output(err=said))
    assert "Keep it for nano? [y/N]" in said.getvalue()
    assert (configured(parse(["run", "nano", "hi"])).threads == 2) == kept


def test_ctrl_c_ends_the_search_alone(localmoe: Localmoe, model: Path) -> None:
    """The measurement is on the screen by then; what the search found is told; 130."""
    command = [*COMMAND, "bench", str(model), *FAST, "--tune", "100"]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(localmoe.home),
    ) as child:
        assert child.stderr is not None
        while "looking for faster settings" not in child.stderr.readline():
            pass
        wait_until(psutil.Process(child.pid).children)  # the engine of a trial
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130
    assert "regime" in out and "no faster setting found" in out
    assert "Traceback" not in err
