"""``run`` beyond a prompt: files, schemas, stop texts, conversations that go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.chat import templates
from tests.cli.command import Localmoe, assert_clear_error

GREEDY = ("--temp", "0", "-n", "12")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def model(arch_file: Callable[..., Path]) -> Path:
    return arch_file("qwen3moe", template=templates.CHATML)


@pytest.fixture
def schema(localmoe: Localmoe) -> Path:
    path = localmoe.home / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def test_an_answer_follows_a_schema(localmoe: Localmoe, model: Path, schema: Path) -> None:
    """stdout is one JSON value that validates; ``--json`` has it parsed, too."""
    hot = ("--temp", "1.5", "--seed", "3", "--schema", schema)
    done = localmoe("run", "-t", "1", "-m", model, *hot, "Who?")
    assert done.returncode == 0, done.stderr
    jsonschema.validate(json.loads(done.stdout), SCHEMA)
    document = localmoe.document("run", "-t", "1", "-m", model, *hot, "Who?")
    assert document["data"] == json.loads(document["text"]) == json.loads(done.stdout)
    assert "data" not in localmoe.document("run", "-t", "1", "-m", model, *GREEDY, "Who?")


@pytest.mark.parametrize(
    "template", [templates.OPENS_THINKING, templates.SWITCHED, templates.EFFORT]
)
def test_a_model_that_thinks_may_do_so_first(
    localmoe: Localmoe, arch_file: Callable[..., Path], schema: Path, template: str
) -> None:
    """Whatever comes before it, the answer is of the schema and the thinking is no part of it."""
    path = arch_file("qwen3moe", template=template)
    arguments = ("--temp", "1", "--seed", "1", "--schema", schema, "-n", "300", "--json")
    done = localmoe("run", "-t", "1", "-m", path, *arguments, "Who?")
    document = json.loads(done.stdout)
    if document["finish_reason"] == "stop":
        assert done.returncode == 0
        jsonschema.validate(document["data"], SCHEMA)
    else:  # random weights do not end a thought that the template has opened
        assert template == templates.OPENS_THINKING
        assert (done.returncode, document["data"], document["text"]) == (1, None, "")
        assert document["reasoning"]


def test_json_that_is_cut_off_is_a_failure(localmoe: Localmoe, model: Path, schema: Path) -> None:
    """What there is is shown, the exit code is 1 and it is said."""
    done = localmoe("run", "-t", "1", "-m", model, "-n", "3", "--schema", schema, "Who?")
    assert (done.returncode, bool(done.stdout)) == (1, True)
    assert "error: the answer is not whole" in done.stderr
    quiet = localmoe("run", "-q", "-t", "1", "-m", model, "-n", "3", "--schema", schema, "Who?")
    assert quiet.returncode == 1
    assert quiet.stderr.startswith("error: the answer is not whole") and "hint: " in quiet.stderr
    assert (
        localmoe.document(
            "run", "-t", "1", "-m", model, "-n", "3", "--schema", schema, "Who?", code=1
        )["data"]
        is None
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"const": NaN}', "NaN is no number"),
        ('{"type": "array", "uniqueItems": true}', "#/uniqueItems"),
        ("[" * 100_000, "is not JSON"),
        ("\0", "not text"),
    ],
)
def test_a_schema_of_no_use_is_told_before_the_load(
    localmoe: Localmoe, text: str, message: str
) -> None:
    """No model is touched: there is none of that name."""
    (localmoe.home / "x.json").write_text(text)
    assert_clear_error(
        localmoe("run", "-t", "1", "-m", "none.gguf", "--schema", "x.json", "hi"), 2, message
    )


def test_a_schema_that_is_not_there(localmoe: Localmoe) -> None:
    assert_clear_error(
        localmoe("run", "-t", "1", "-m", "none.gguf", "--schema", "x.json", "hi"),
        2,
        "cannot read",
        hint=False,
    )


def test_files_go_along_with_their_token_count(localmoe: Localmoe, model: Path) -> None:
    """The model reads them before the question, as if they had been typed."""
    (localmoe.home / "a.txt").write_text("alpha beta\n")
    (localmoe.home / "b.txt").write_text("gamma")
    done = localmoe("run", "-t", "1", "-m", model, *GREEDY, "-f", "a.txt", "-f", "b.txt", "Which?")
    document = localmoe.document(
        "run", "-t", "1", "-m", model, *GREEDY, "-f", "a.txt", "-f", "b.txt", "Which?"
    )
    typed = "a.txt:\n```\nalpha beta\n```\n\nb.txt:\n```\ngamma\n```\n\nWhich?"
    assert done.stdout == localmoe("run", "-t", "1", "-m", model, *GREEDY, typed).stdout
    assert [entry["name"] for entry in document["files"]] == ["a.txt", "b.txt"]
    for entry in document["files"]:
        assert entry["tokens"] > 0 and f"{entry['name']} · {entry['tokens']} tokens" in done.stderr


def test_a_file_that_cannot_go_along(localmoe: Localmoe, model: Path) -> None:
    """Told before the load: missing, a folder, binary."""
    (localmoe.home / "binary").write_bytes(b"\0\1")
    for name in ("nothing", ".", "binary"):
        done = localmoe("run", "-t", "1", "-m", "none.gguf", "-f", name, "hi")
        assert (done.returncode, done.stdout) == (2, "")


def test_stop_ends_the_answer_before_the_text(localmoe: Localmoe, model: Path) -> None:
    """What would have followed, and the text itself, are left out."""
    whole = localmoe.document("run", "-t", "1", "-m", model, "--temp", "0", "-n", "40", "hello")[
        "text"
    ]
    word = whole.split()[3]
    cut = localmoe.document(
        "run", "-t", "1", "-m", model, "--temp", "0", "-n", "40", "-r", word, "hello"
    )
    assert cut["text"].rstrip() == whole[: whole.index(word)].rstrip()
    assert cut["finish_reason"] == "stop"


def test_penalties_change_the_answer(localmoe: Localmoe, model: Path) -> None:
    """Each of them, greedy: the likeliest token changes once tokens count against themselves."""

    def text(*options: str) -> Any:
        how = ("--temp", "0", "-n", "60", *options)
        return localmoe.document("run", "-t", "1", "-m", model, *how, "hello")["text"]

    plain = text()
    assert text("--repeat-penalty", "1.0", "--repeat-last-n", "9") == plain
    assert text("--repeat-penalty", "2") != plain
    assert text("--repeat-penalty", "2", "--repeat-last-n", "0") == plain
    assert text("--presence-penalty", "2") != plain
    assert text("--frequency-penalty", "2") != plain


def test_a_conversation_goes_on(localmoe: Localmoe, model: Path) -> None:
    """``--session`` begins it, ``--continue`` takes it up: its model, nothing is read again."""
    long = "word " * 40
    first = localmoe.document("run", "-t", "1", "-m", model, *GREEDY, "--session", "s", long)
    second = localmoe.document("run", "-t", "1", *GREEDY, "--continue", "And then?")
    assert (first["session"], second["session"], second["model"]) == ("s", "s", model.stem)
    assert second["usage"]["reused_tokens"] >= first["usage"]["prompt_tokens"] - 8
    lines = (localmoe.home / ".local/share/localmoe/sessions/s.jsonl").read_text().splitlines()
    questions = [json.loads(line).get("question") for line in lines]
    assert [q for q in questions if q] == [long, "And then?"]
    third = localmoe("run", "-t", "1", *GREEDY, "--session", "s", "Go on.")
    assert "s: 2 turns so far" in third.stderr
    alone = localmoe("run", "-t", "1", "-m", model, *GREEDY, "--session", "t", "Go on.")
    assert third.stdout != alone.stdout


def test_a_run_alone_leaves_no_conversation(localmoe: Localmoe, model: Path) -> None:
    localmoe("run", "-t", "1", "-m", model, *GREEDY, "hello")
    assert not (localmoe.home / ".local/share/localmoe/sessions").exists()
    assert not (localmoe.home / ".cache/localmoe/kv").exists()
    assert_clear_error(
        localmoe("run", "-t", "1", *GREEDY, "--continue", "hi"), 2, "no earlier conversation"
    )


def test_no_history_and_a_session_contradict_each_other(localmoe: Localmoe, model: Path) -> None:
    done = localmoe("run", "-t", "1", "-m", model, "--no-history", "--session", "s", "hi")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_full_conversation_is_not_cut_silently(localmoe: Localmoe, model: Path) -> None:
    """It is refused with the counts, or shortened as ``--overflow`` says, and that is told."""
    arguments = (
        "run",
        "-t",
        "1",
        "-m",
        model,
        "-c",
        "512",
        "--temp",
        "0",
        "-n",
        "32",
        "--session",
        "s",
    )
    for _ in range(3):
        localmoe(*arguments, "word " * 120)
    refused = localmoe(*arguments, "word " * 120)
    assert_clear_error(refused, 1, "the next turn does not fit", "--overflow drop")
    dropped = localmoe(*arguments, "--overflow", "drop", "word " * 120)
    assert dropped.returncode == 0
    assert "not sent any more:" in dropped.stderr
    localmoe(*arguments, "word " * 120)
    summed_up = localmoe(*arguments, "--overflow", "summarise", "word " * 120)
    assert (summed_up.returncode, bool(summed_up.stdout)) == (0, True)
    assert "sent as a summary from now on" in summed_up.stderr
    alone = localmoe(*arguments, "--overflow", "drop", "word " * 900)
    assert_clear_error(alone, 1, "the next turn does not fit", "even alone it is too long")


def test_no_history_leaves_no_file(localmoe: Localmoe, model: Path) -> None:
    """Not the name of the model, nor the experts in use; without the option both are noted."""

    def files() -> set[str]:
        found = (path for path in localmoe.home.rglob("*") if path.is_file())
        return {str(path.relative_to(localmoe.home)) for path in found}

    (localmoe.home / "a.txt").write_text("alpha " * 100)
    localmoe("--version")  # the home folder of a test comes with the speeds of a machine
    before = files()
    quiet = ("run", "-t", "1", "-m", model, *GREEDY, "-n", "40", "-f", "a.txt", "--no-history")
    assert localmoe(*quiet, "secret").returncode == 0
    assert files() == before
    assert localmoe(*quiet[:-1], "secret").returncode == 0
    noted = " ".join(files() - before)
    assert "last-model" in noted and "secret" not in noted


def test_stdin_that_is_not_utf8_is_said_once(localmoe: Localmoe, model: Path) -> None:
    done = localmoe.shell(f"printf 'caf\\351' | localmoe run -t 1 -m {model} --temp 0 -n 3")
    assert (done.returncode, done.stderr.count("not UTF-8")) == (0, 1)
