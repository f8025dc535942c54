"""What a user names to be written never destroys what is read, nor a file of another kind."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.app.outputs import PAGE, PICTURE, TRACE, check_output
from localmoe.cli.option import FILES
from localmoe.cli.options import OPTIONS
from localmoe.errors import UsageError
from localmoe.routing import profile
from localmoe.routing.profile import Profile
from tests.archs import generate
from tests.cli.command import Localmoe, assert_clear_error


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model of its own for each test: it may be destroyed."""
    return generate("qwen3moe", tmp_path)


@pytest.fixture
def trace(localmoe: Localmoe, model: Path) -> Path:
    path = model.with_name("m.trace")
    done = localmoe("experts", "record", model, "hi", "-n", "2", "-o", path)
    assert done.returncode == 0, done.stderr
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def linked(path: Path) -> Path:
    link = path.with_name("link")
    link.symlink_to(path)
    return link


def hard_linked(path: Path) -> Path:
    link = path.with_name("hard")
    os.link(path, link)
    return link


@pytest.mark.parametrize("named", [lambda path: path, linked, hard_linked])
def test_a_trace_is_not_written_over_its_model(
    localmoe: Localmoe, model: Path, named: Callable[[Path], Path]
) -> None:
    """By no name of the model: neither `run --trace` nor `experts record -o`; it stays as it is."""
    before, target = digest(model), named(model)
    for command in (
        ("run", model, "hi", "--trace", target),
        ("experts", "record", model, "hi", "-o", target),
    ):
        assert_clear_error(localmoe(*command), 2, "read by this command")
    assert digest(model) == before


def test_what_is_no_trace_is_not_replaced(localmoe: Localmoe, model: Path) -> None:
    """Another model, a text, an attached file stay; an empty file and an older trace may go."""
    other = generate("qwen3moe", model.parent, seed=1)
    notes = model.with_name("notes.txt")
    notes.write_text("my notes")
    for target in (other, notes):
        before = digest(target)
        record = localmoe("experts", "record", model, "hi", "-o", target)
        assert_clear_error(record, 2, "no routing trace")
        assert digest(target) == before
    asked = localmoe("run", model, "hi", "-f", notes, "--trace", notes)
    assert_clear_error(asked, 2, "read by this command")
    empty = model.with_name("empty")
    empty.touch()
    for _ in range(2):
        assert localmoe("experts", "record", model, "hi", "-n", "2", "-o", empty).returncode == 0


def test_a_report_does_not_eat_its_traces(localmoe: Localmoe, trace: Path) -> None:
    """Neither under their own name, nor is a page of somebody else's replaced."""
    before = digest(trace)
    assert_clear_error(localmoe("experts", "report", trace, "-o", trace), 2, "read by this command")
    assert digest(trace) == before
    page = trace.with_name("page.html")
    page.write_text("<!doctype html>\n<p>mine")
    assert_clear_error(localmoe("experts", "report", trace, "-o", page), 2, "is no page")
    page.unlink()
    for _ in range(2):  # its own page it may write again
        assert localmoe("experts", "report", trace, "-o", page).returncode == 0


def test_a_log_of_runs_is_no_other_file(localmoe: Localmoe, model: Path, trace: Path) -> None:
    """One line without an end is what a crash leaves of a log, and what notes look like."""
    notes = model.with_name("notes.txt")
    notes.write_text("my notes")
    for target, words in (
        (model, "read by this command"),
        (trace, "read by this command"),
        (notes, "is no log of"),
        (model.parent, "is a folder"),
    ):
        asked = ("bench", model, "--log", target, "--replay", trace, "--runs", "1")
        assert_clear_error(localmoe(*asked), 2, words)
    assert notes.read_text() == "my notes"


def test_the_page_names_every_option_that_writes() -> None:
    """docs/files.md has them all: an option that takes a file and is none that is read."""
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text("utf-8")
    read = {"file", "machine", "schema", "replay", "tools", "api-key-file"}
    takes = {option.name for option in OPTIONS if option.proposes == FILES} - read
    assert takes == {"trace", "output", "png", "log"}
    for name in takes:
        assert f"--{name} F" in page


def test_nothing_to_record_is_said_before_the_load(localmoe: Localmoe, tmp_path: Path) -> None:
    """A dense model has no routing: an error, and no file that says nothing."""
    dense = generate("llama-dense", tmp_path)
    out = tmp_path / "x.trace"
    assert_clear_error(localmoe("run", dense, "hi", "--trace", out), 2, "no experts")
    assert_clear_error(localmoe("experts", "record", dense, "hi", "-o", out), 2, "no experts")
    assert not out.exists()


def test_a_flipped_trace_is_damaged_and_no_crash(localmoe: Localmoe, trace: Path) -> None:
    """Whatever byte is changed: the trace is read, or it is said to be damaged, in one line."""
    whole = trace.read_bytes()
    step = max(1, len(whole) // 12)
    for at in range(0, len(whole), step):
        trace.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
        done = localmoe("experts", "show", trace, "--json")
        assert done.returncode in (0, 1, 2, 4), done.stdout
        assert "internal error" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", [TRACE, PAGE, PICTURE])
def test_folders_and_devices(kind: object, tmp_path: Path) -> None:
    """A folder is refused; a device, which holds nothing, is written to."""
    assert kind in (TRACE, PAGE, PICTURE)
    with pytest.raises(UsageError, match="folder"):
        check_output(tmp_path, TRACE, ())
    check_output(Path(os.devnull), TRACE, ())
    check_output(tmp_path / "new", TRACE, (tmp_path / "other",))
    with pytest.raises(UsageError, match="read by this command"):
        check_output(tmp_path / "new", TRACE, (tmp_path / "." / "new",))


def test_a_newer_profile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A localmoe that cannot read a newer one's profile begins its own beside it."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    path = profile.path_of("m")
    path.parent.mkdir(parents=True)
    newer = json.dumps({"version": profile.VERSION + 1, "what": "ever"})
    path.write_text(newer)
    mine = Profile("m", {0: (1.0, 2.0)}, 3.0, ((0.5, 0.5),), 3.0, None, 1)
    profile.learn("m", mine)
    assert profile.load("m") is not None
    assert [p.read_text() for p in path.parent.glob("m.v*.json")] == [newer]
