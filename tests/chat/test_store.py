"""Sessions on disk: private, whole lines, one writer, and back again after anything."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localmoe.chat.attachments import Attachment
from localmoe.chat.export import to_document, to_markdown
from localmoe.chat.log_lines import decode, encode, from_json, to_json
from localmoe.chat.session import (
    Change,
    Cleared,
    Message,
    ModelUsed,
    Session,
    Shortened,
    SystemText,
    Turn,
    Undone,
)
from localmoe.chat.state import Chat
from localmoe.chat.store import Store, read
from localmoe.errors import StorageError, UsageError
from tests.waiting import PATIENCE


def turn(question: str = "q", answer: str = "a", **more: str) -> Turn:
    return Turn(Message("user", question), Message("assistant", answer, **more))  # type: ignore[arg-type]


def chat_in(store: Store, name: str = "s") -> Chat:
    """A chat that is written there, without a model."""

    def ready() -> None:
        raise AssertionError("no model is needed")

    chat = Chat(ready=ready, store=store)  # type: ignore[arg-type]
    chat.open_log(store.open(name))
    return chat


def test_it_is_written_as_it_happens(tmp_path: Path) -> None:
    """Each turn is one line in the file before anything else happens; nothing before the first."""
    store = Store(tmp_path / "sessions")
    chat = chat_in(store)
    chat.session.system = "be brief"
    chat.session.use(ModelUsed("tiny", "/m/tiny.gguf"))
    assert store.path("s").read_bytes() == b""
    chat.session.add(turn("one"))
    lines = store.path("s").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["model", "system", "turn"]
    chat.session.add(turn("two"))
    assert len(store.path("s").read_text().splitlines()) == 4


def test_files_are_private(tmp_path: Path) -> None:
    """0600 in folders that are 0700, whatever the umask."""
    before = os.umask(0)
    try:
        store = Store(tmp_path / "home" / "sessions")
        chat_in(store).session.add(turn())
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.path("s").stat().st_mode) == 0o600
    for folder in (store.folder, store.folder.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_every_change_comes_back(tmp_path: Path) -> None:
    """Turns, undo, clear, system text, skipped turns, model: the same session after reading."""
    store = Store(tmp_path)
    chat = chat_in(store)
    session = chat.session
    session.use(ModelUsed("tiny", "/m"))
    session.system = "s"
    session.add(turn("forgotten"))
    session.clear()
    for text in "abcd":
        session.add(turn(text, reasoning="hm"))
    session.undo()
    session.shorten(1, "they said a")
    assert chat.log is not None
    chat.log.close()
    again = store.open("s").session
    assert again.prompt_messages() == session.prompt_messages()
    assert (again.turns, again.model) == (session.turns, session.model)


def test_a_crash_in_the_middle_of_a_line(tmp_path: Path) -> None:
    """Whole lines load, the loss is told, and the next line is a line of its own."""
    store = Store(tmp_path)
    chat = chat_in(store)
    chat.session.add(turn("one"))
    chat.session.add(turn("two"))
    assert chat.log is not None
    chat.log.close()
    path = store.path("s")
    path.write_bytes(path.read_bytes()[:-20])
    told: list[str] = []
    again = Chat(ready=chat.ready, store=store, lost=told.append)
    again.open_log(store.open("s"))
    assert [t.question.content for t in again.session.turns] == ["one"]
    assert told == ["1 line of s could not be read; the rest is here"]
    again.session.add(turn("three"))
    assert again.log is not None
    again.log.close()
    questions = [t.question.content for t in store.open("s").session.turns]
    assert questions == ["one", "three"]


@settings(max_examples=50)
@given(st.binary(max_size=300))
def test_any_bytes_are_survived(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """A file of anything at all is read, with the lines counted that made no sense."""
    store = Store(tmp_path_factory.mktemp("s"))
    store.path("x").write_bytes(data)
    log = store.open("x")
    assert log.damaged + len(log.session.turns) <= data.count(b"\n") + 1
    log.close()


@pytest.mark.parametrize(
    "line",
    ["[]", "1", '{"kind":"turn"}', '{"kind":"turn","question":1,"answer":"a"}', '{"kind":"x"}',
     '{"kind":"turn","question":"q","answer":"a","files":[{}]}', '{"kind":"shorten","turns":"1"}',
     '{"kind":"system","text":null}', "[" * 100_000],
)  # fmt: skip
def test_lines_of_the_wrong_shape(tmp_path: Path, line: str) -> None:
    """They count as damaged and stop nothing."""
    store = Store(tmp_path)
    good = json.dumps(to_json(turn("ok")))
    store.path("x").write_text(f"{line}\n{good}\n")
    log = store.open("x")
    assert (log.damaged, len(log.session.turns)) == (1, 1)


CHANGES: list[Change] = [
    turn("q\n\u2028", "a\x1b[31m", reasoning="r"),
    Turn(
        Message("user", "q", files=(Attachment("f", "text"),)),
        Message("assistant", "", "", True),
        "m", "2026-01-01T00:00:00+00:00", 5, 7,
    ),
    Undone(), Cleared(), SystemText("x"), Shortened(3, "s"), ModelUsed("n", "/p"),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_line_and_back(change: Change) -> None:
    """Nothing is lost on the way; control characters stay, escaped."""
    line = json.dumps(to_json(change))
    assert "\n" not in line and "\x1b" not in line
    assert from_json(json.loads(line)) == change


def test_one_writer(tmp_path: Path) -> None:
    """A second chat cannot open the same session, and can once the first has left."""
    store = Store(tmp_path)
    chat = chat_in(store)
    chat.session.add(turn())
    with pytest.raises(UsageError, match="open in another localmoe"):
        store.open("s")
    assert chat.log is not None
    chat.log.close()
    store.open("s").close()


def test_a_disk_that_is_full_ends_no_chat(tmp_path: Path) -> None:
    """It is told once; the conversation goes on unwritten."""
    folder = tmp_path / "gone"
    folder.write_text("a file, no folder")
    told: list[str] = []
    chat = chat_in(Store(folder / "sessions"))
    chat.lost = told.append
    chat.session.add(turn("one"))
    chat.session.add(turn("two"))
    assert len(told) == 1 and "not written down" in told[0]
    assert len(chat.session.turns) == 2


def test_newest_first_and_the_latest(tmp_path: Path) -> None:
    """By when something was said last; none at all is an error that says what to do."""
    store = Store(tmp_path)
    with pytest.raises(UsageError, match="no earlier conversation"):
        store.latest()
    for number, name in enumerate(("old", "new", "mid")):
        chat_in(store, name).session.add(turn(f"about {name}\nand more"))
        os.utime(store.path(name), (0, {"old": 1, "mid": 2, "new": 3}[name] + 0 * number))
    assert [e.name for e in store.entries()] == ["new", "mid", "old"]
    assert store.latest() == "new"
    assert store.entries()[0].title == "about new"


def test_automatic_names_are_free(tmp_path: Path) -> None:
    """Two in one minute do not meet."""
    store = Store(tmp_path)
    first, second = store.begin(), store.begin()
    assert first.name != second.name
    first.close()
    second.close()
    assert list(store.folder.iterdir()) == []


def test_unreadable(tmp_path: Path) -> None:
    """A folder in place of a file is a typed error."""
    store = Store(tmp_path)
    store.path("x").mkdir()
    with pytest.raises(StorageError):
        store.open("x")


def test_exports() -> None:
    """Questions, files, reasoning, answers and the marks of what was interrupted."""
    session = Session("be brief", [ModelUsed("tiny", "/m"), *CHANGES[:2]])
    markdown = to_markdown(session, "owls")
    for words in ("# owls", "Model: tiny", "> be brief", "> q\n", "Attached: f", "*(interrupted)*"):
        assert words in markdown
    assert "<details>" in markdown
    document = json.loads(to_document(session, "owls"))
    assert document["schema_version"] == 1
    assert document["turns"][1]["files"] == [{"name": "f", "text": "text"}]


def test_a_name_is_claimed_before_anything_is_said(tmp_path: Path) -> None:
    """Who comes second is refused at once; a chat in which nothing was said leaves no file."""
    store = Store(tmp_path)
    first = store.open("work")
    with pytest.raises(UsageError, match="open in another localmoe"):
        store.open("work")
    assert (store.names(), store.exists("work")) == ([], False)
    first.close()
    assert list(tmp_path.iterdir()) == []
    second = store.open("work")
    second.write(turn("one"))
    second.close()
    assert (store.names(), store.exists("work")) == (["work"], True)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_letter_is_noticed(tmp_path: Path, change: Change) -> None:
    """Wherever in a line: it is left out and counted, and the lines beside it stay."""
    store, line = Store(tmp_path), encode(change)
    neighbour = encode(turn("beside"))
    for at in range(len(line)):
        wrong = line[:at] + bytes([line[at] ^ 0x02]) + line[at + 1 :]
        store.path("x").write_bytes(neighbour + b"\n" + wrong + b"\n" + neighbour + b"\n")
        session, damaged = read(store.path("x"))
        assert damaged == 1, wrong
        assert [t.question.content for t in session.turns][:1] == ["beside"]


@pytest.mark.parametrize("change", CHANGES)
def test_lines_of_earlier_versions_load(change: Change) -> None:
    """They have no checksum."""
    assert decode(json.dumps(to_json(change)).encode()) == change
    assert decode(encode(change)) == change


NUMBERS = ["1e999", "-1e999", "NaN", "12.5", "true", "-1", "1" * 400, '"12"', "1e3", "null"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_numbers_that_are_none(tmp_path: Path, name: str, number: str) -> None:
    """One line is lost, not the conversation, and not the list of all of them."""
    store = Store(tmp_path)
    good = encode(turn("ok")).decode()
    bad = f'{{"kind":"turn","question":"q","answer":"a","{name}":{number}}}'
    store.path("x").write_text(f"{bad}\n{good}\n")
    log = store.open("x")
    assert (log.damaged, [t.question.content for t in log.session.turns]) == (1, ["ok"])
    assert [entry.name for entry in store.entries()] == ["x"]


def run_quietly(home: Path) -> subprocess.CompletedProcess[str]:
    """``localmoe run --session work --quiet`` with the bundled model."""
    command = ["run", "nano", "hello", "--session", "work", "--quiet", "--max-tokens", "4"]
    return subprocess.run(
        [sys.executable, "-m", "localmoe", *command],
        env={**os.environ, "LOCALMOE_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.process
def test_two_processes_begin_the_same_session(tmp_path: Path) -> None:
    """The second one ends with an error before it loads anything, however quiet; then it may."""
    store = Store(tmp_path / "data" / "sessions")
    first = store.open("work")
    refused = run_quietly(tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "the conversation work is open in another localmoe" in refused.stderr
    first.close()
    assert run_quietly(tmp_path).returncode == 0
    assert len(store.open("work").session.turns) == 1


@pytest.mark.process
def test_what_is_not_kept_is_told_however_quiet(tmp_path: Path) -> None:
    """Where no conversation can be written, the answer comes, with a line that says so."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sessions").write_text("a file, no folder")
    done = run_quietly(tmp_path)
    assert done.returncode == 0 and done.stdout.strip()
    assert "from here on the conversation is not written down" in done.stderr
