"""``pull``: what it asks, shows and prints."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from rich.console import Console

from localmoe.facts.bandwidth import to_json
from localmoe.hub.download import PartProgress, Progress
from localmoe.terminal.download_display import screen, summary
from localmoe.text import FORBIDDEN
from tests import rates
from tests.hub.command import COMMAND, HubCommand
from tests.hub.content import Generated
from tests.hub.pulling import FILE, KEY, REPO, SIZE, blobs, sha256, snapshots
from tests.hub.server import Fault, HubServer
from tests.waiting import PATIENCE


@pytest.fixture
def real(hub: HubServer, arch_file: Callable[..., Path]) -> Path:
    """A model that the engine can be asked about; the file that is served."""
    path = arch_file("qwen3moe")
    hub.add(REPO, {FILE: path})
    return path


def ask(localmoe: HubCommand, *args: str) -> pexpect.spawn[str]:
    """The command in a terminal, with somebody at it."""
    return pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], *args],
        env=localmoe.environment(TERM="xterm", COLUMNS="200"),
        cwd=str(localmoe.home),
        encoding="utf-8",
        timeout=PATIENCE,
    )


def test_a_model_that_runs_here_is_not_asked_about(
    hub: HubServer, real: Path, localmoe: HubCommand
) -> None:
    """No question, no ``--yes``; the path on stdout, the rest on stderr."""
    done = localmoe("pull", REPO)
    assert done.returncode == 0, done.stderr
    (path,) = done.stdout.splitlines()
    assert sha256(Path(path)) == sha256(real)
    assert "sha256 checked" in done.stderr


def test_the_last_line_is_what_to_type_next(
    hub: HubServer, real: Path, localmoe: HubCommand
) -> None:
    """A name for exactly this model, which works; also for what is here already. Not with -q."""
    for _ in range(2):
        done = localmoe("pull", REPO)
        line = done.stderr.splitlines()[-1]
        assert line.startswith(f"localmoe chat {REPO}:")
    name = line.removeprefix("localmoe chat ")
    assert localmoe("show", name, HF_HUB_OFFLINE="1").returncode == 0
    assert localmoe("pull", "-q", REPO).stderr == ""
    assert localmoe("pull", "nano").stderr.splitlines()[-1] == "localmoe chat nano"


def test_nobody_to_ask_is_a_no(hub: HubServer, real: Path, localmoe: HubCommand) -> None:
    """A model that does not fit is refused when nobody can answer: exit 3, the reason, the way."""
    done = localmoe("pull", REPO, "--ram", "0.001")
    assert done.returncode == 3
    assert "does not fit this machine" in done.stderr
    assert "hint: --yes downloads it anyway" in done.stderr
    assert blobs(localmoe.cache) == {}
    document = json.loads(localmoe("pull", REPO, "--ram", "0.001", "--json").stdout)
    assert document["error"]["code"] == "does_not_fit"
    assert localmoe("pull", REPO, "--ram", "0.001", "--yes").returncode == 0


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 3), ("", 3), ("\x04", 3)])
def test_a_person_is_asked(
    hub: HubServer, real: Path, localmoe: HubCommand, answer: str, code: int
) -> None:
    """People pull for other machines: only a yes downloads; Enter and Ctrl-D are a no."""
    child = ask(localmoe, "pull", REPO, "--ram", "0.001")
    child.expect("does not fit this machine")
    child.expect(r"anyway\? \[y/N\] ")
    child.send(answer if answer == "\x04" else answer + "\r")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == code
    assert bool(snapshots(localmoe.cache)) == (code == 0)


def test_ctrl_c_at_the_question(hub: HubServer, real: Path, localmoe: HubCommand) -> None:
    """130, and nothing was downloaded."""
    child = ask(localmoe, "pull", REPO, "--ram", "0.001")
    child.expect(r"anyway\? \[y/N\] ")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 130
    assert "Traceback" not in (child.before or "")
    assert blobs(localmoe.cache) == {}


def test_the_display_in_a_terminal(hub: HubServer, localmoe: HubCommand) -> None:
    """Percent, rate and time left while it runs; Ctrl-C leaves the cursor and says what is kept."""
    hub.add(REPO, {FILE: Generated(SIZE)})
    hub.fault("content", KEY, Fault(rate=100_000))  # half a minute
    child = ask(localmoe, "pull", REPO, "--yes")
    child.expect(r"\d+ % · .* of 3.0 MB · .* Mbit/s · .* left")
    child.sendintr()
    child.expect("are kept, and the same command goes on from there")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 130


def test_a_pipe_gets_lines_without_escape_codes(hub: HubServer, localmoe: HubCommand) -> None:
    """Nothing of the display reaches a pipe."""
    hub.add(REPO, {FILE: Generated(SIZE)})
    done = localmoe("pull", REPO, "--yes")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert "downloading model-Q4_K_M · 3.0 MB" in done.stderr
    again = localmoe("pull", REPO, "--yes")
    assert again.stdout == done.stdout
    assert "already here" in again.stderr


def test_events_are_json(hub: HubServer, localmoe: HubCommand) -> None:
    """``--jsonl``: progress, then the result; every line a document, and nothing else on stdout."""
    hub.add(REPO, {FILE: Generated(SIZE)})
    done = localmoe("pull", REPO, "--yes", "--jsonl")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["schema_version"] for event in events} == {1}
    assert [event["event"] for event in events[-2:]] == ["progress", "pulled"]
    assert events[-2]["done"] == events[-2]["total"] == SIZE
    assert events[-1]["files"][0]["name"] == FILE
    assert Path(events[-1]["path"]).stat().st_size == SIZE


def test_a_bare_name_is_what_fit_recommends(
    hub: HubServer, real: Path, arch_file: Callable[..., Path], localmoe: HubCommand
) -> None:
    """Of several quantizations the one that suits this machine is taken, and it is said why."""
    hub.add(REPO, {"m-Q4_K_M.gguf": real, "m-F16.gguf": arch_file("olmoe"), "mmproj-m.gguf": b"p"})
    done = localmoe("pull", REPO)
    assert done.returncode == 0, done.stderr
    assert f"{REPO}: Q4_K_M, the usual balance" in done.stderr
    assert snapshots(localmoe.cache) == ["m-Q4_K_M.gguf"]


def test_a_quantization_that_is_not_there(hub: HubServer, localmoe: HubCommand) -> None:
    """The choices are named, without side files; exit 2."""
    hub.add(REPO, {"m-Q2_K.gguf": b"GGUF", "m-Q8_0.gguf": b"GGUF8", "mmproj-m.gguf": b"p"})
    done = localmoe("pull", f"{REPO}:Q5_K_M", "--yes")
    assert done.returncode == 2
    assert "Q2_K, Q8_0" in done.stderr
    assert "mmproj" not in done.stderr


def test_an_incomplete_set_is_refused(hub: HubServer, localmoe: HubCommand) -> None:
    """A part that the repository lacks: exit 5 before the first byte."""
    hub.add(REPO, {"m-Q8_0-00001-of-00002.gguf": Generated(SIZE)})
    done = localmoe("pull", f"{REPO}:Q8_0", "--yes")
    assert done.returncode == 5
    assert "m-Q8_0-00002-of-00002.gguf" in done.stderr
    assert not hub.seen(host="storage")


def test_what_is_no_name_of_the_hub(localmoe: HubCommand) -> None:
    """A path is refused; the bundled model needs no download."""
    done = localmoe("pull", "./model.gguf")
    assert (done.returncode, "is a file" in done.stderr) == (2, True)
    done = localmoe("pull", "nano")
    assert (done.returncode, done.stdout.endswith("nano.gguf\n")) == (0, True)
    assert localmoe("pull").returncode == 2


def test_the_summary_has_rate_and_time() -> None:
    """One line: share, bytes, rate, time left; and what it is waiting for."""
    gib = 1 << 30
    running = Progress((PartProgress("a", "downloading", 22 * gib, 60 * gib),), 100 * 2**20)
    assert summary(running) == "36 % · 23.6 GB of 64.4 GB · 839 Mbit/s · 6 min 29 s left"
    silent = Progress((PartProgress("a", "downloading", 0, gib),), 0.0)
    assert summary(silent).endswith("waiting for data")
    whole = Progress((PartProgress("a", "checking", gib, gib),), 5.0)
    assert summary(whole).endswith("checking its hash")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_screen_holds_at_any_width(columns: int) -> None:
    """Parts under way have a line each, no line is wider than the screen, names are harmless."""
    gib = 1 << 30
    parts = (
        PartProgress("a-1", "done", gib, gib),
        PartProgress("a-2", "downloading", gib // 2, gib),
        PartProgress("a-3", "waiting", 0, gib),
        PartProgress("a-4", "queued", 0, gib),
    )
    out = io.StringIO()
    console = Console(file=out, width=columns, markup=False, color_system=None)
    title = "evil\x1b]52;c;AAAA\x07[/bold]\u202e · 4 parts"
    console.print(screen(title, Progress(parts, 1e8), columns))
    lines = out.getvalue().splitlines()
    assert all(len(line) <= columns for line in lines)
    assert not FORBIDDEN.search("".join(lines))
    text = " ".join(out.getvalue().split())
    assert "part 2 of 4" in text and "part 3 of 4" in text
    assert "another process" in text
    assert "part 1" not in text and "part 4" not in text


def slow_machine(folder: Path) -> str:
    """A file that describes a machine on which everything takes very long."""
    slow = rates.with_kernels(1e5)
    machine = {"ram_total": 1 << 34, "disk_free": 1 << 40, "rates": to_json(slow)}
    (folder / "slow.json").write_text(json.dumps({"machine": machine}))
    return "slow.json"


def test_a_slow_model_is_asked_about(
    hub: HubServer, real: Path, localmoe: HubCommand, tmp_path: Path
) -> None:
    """Less than 2 tok/s to be expected: refused when nobody can answer, else a question."""
    slow = slow_machine(tmp_path)
    done = localmoe("pull", REPO, "--machine", slow)
    assert done.returncode == 3
    assert "would be slow on this machine" in done.stderr and "less than 2" in done.stderr
    assert "hint: --yes downloads it anyway" in done.stderr
    child = ask(localmoe, "pull", REPO, "--machine", slow)
    child.expect(r"tok/s .* to be expected, less than 2.0")
    child.expect(r"anyway\? \[y/N\] ")
    child.send("n\r")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 3 and blobs(localmoe.cache) == {}
    assert localmoe("pull", REPO, "--machine", slow, "--min-tps", "0.001").returncode == 0


def test_min_tps(hub: HubServer, real: Path, localmoe: HubCommand) -> None:
    """What is expected is told before the download; what is too slow for who asks is refused."""
    done = localmoe("pull", REPO, "--min-tps", "1e6", "--json")
    assert done.returncode == 3
    assert "less than 1,000,000" in json.loads(done.stdout)["error"]["message"]
    assert blobs(localmoe.cache) == {}
    done = localmoe("pull", REPO, "--min-tps", "1")
    assert done.returncode == 0
    assert "tok/s" in done.stderr and "limited by" in done.stderr
