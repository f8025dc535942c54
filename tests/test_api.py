"""``import localmoe``: the same engine as the command line, as objects and typed events."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest

import localmoe
from localmoe.errors import DoesNotFitError, ModelFileError, UnknownModelError, UsageError
from tests.chat import templates
from tests.cli.command import Localmoe

pytestmark = pytest.mark.process

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}}
WISHES = localmoe.Wishes(threads=1)


@pytest.fixture(scope="module")
def path(arch_file: Callable[..., Path]) -> Path:
    return arch_file("qwen3moe", template=templates.CHATML)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[localmoe.LoadedModel]:
    with localmoe.load(str(path), context=1000, wishes=WISHES) as loaded:
        yield loaded


def test_importing_costs_nothing() -> None:
    """No submodule is imported before a name is used; all names of ``__all__`` can be."""
    script = (
        "import sys, localmoe; "
        "print([m for m in sys.modules if m.startswith('localmoe.')]); "
        "print([getattr(localmoe, n) is None for n in localmoe.__all__].count(True)); "
        "print(set(localmoe.__all__) - set(dir(localmoe)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["[]", "0", "set()"]
    with pytest.raises(AttributeError, match="no_such_name"):
        localmoe.no_such_name  # type: ignore[attr-defined]  # noqa: B018


def test_an_answer_in_events(model: localmoe.LoadedModel) -> None:
    """Prefill, pieces of the answer, the end; the pieces are the answer."""
    events = list(model.chat("Hello there", temperature=0, max_tokens=12))
    assert isinstance(events[0], localmoe.PrefillProgress)
    done = events[-1]
    assert isinstance(done, localmoe.TurnDone)
    pieces = [event.text for event in events if isinstance(event, localmoe.AnswerDelta)]
    assert "".join(pieces) == done.answer != ""
    assert (done.finish_reason, done.usage.completion_tokens) == ("length", 12)


def test_the_command_line_says_the_same(
    model: localmoe.LoadedModel, path: Path, tmp_path: Path
) -> None:
    """Text for text, with a system prompt, penalties and stop texts."""
    options: dict[str, Any] = {"temperature": 0, "repeat_penalty": 1.3, "max_tokens": 30}
    done = model.chat("Hello there", system="Be brief.", **options).result()
    word = done.answer.split()[2]
    stopped = model.chat("Hello there", system="Be brief.", stop=[word], **options).result()
    arguments: tuple[str | Path, ...] = (
        "run",
        "-m",
        path,
        "-c",
        "1024",
        "-t",
        "1",
        "--temp",
        "0",
        "-n",
        "30",
    )
    arguments += ("--repeat-penalty", "1.3", "--system", "Be brief.", "Hello there")
    document = Localmoe(tmp_path).document(*arguments)
    assert document["text"] == done.answer
    assert Localmoe(tmp_path).document(*arguments, "--stop", word)["text"] == stopped.answer


def test_messages_and_conversations_are_the_same_talk(model: localmoe.LoadedModel) -> None:
    """Messages handed over give the answer of the conversation that they were said in."""
    conversation = model.begin(system="Be brief.", temperature=0, max_tokens=8)
    first = localmoe.result(conversation.ask("One"))
    second = localmoe.result(conversation.ask("Two"))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": first.answer},
        {"role": "user", "content": "Two"},
    ]
    assert model.chat(messages, temperature=0, max_tokens=8).result().answer == second.answer
    assert second.usage.reused_tokens > first.usage.prompt_tokens


def test_a_history_of_any_roles(model: localmoe.LoadedModel) -> None:
    """Each role is read, and what was read is kept: the next turn only adds to it."""
    call = {"id": "call_1", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
    messages: list[dict[str, object]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Is it blue?"}]},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "blue as ever"},
    ]
    first = model.chat(messages, temperature=0, max_tokens=4).result()
    messages += [{"role": "assistant", "content": first.answer}, {"role": "user", "content": "Ok"}]
    second = model.chat(messages, temperature=0, max_tokens=4).result()
    assert second.usage.reused_tokens >= first.usage.prompt_tokens


def test_a_history_that_nobody_can_mean(model: localmoe.LoadedModel) -> None:
    """An error before anything is read, which names the message."""
    with pytest.raises(UsageError, match=r"messages\[1\]: role is one of"):
        model.chat([{"role": "user", "content": "x"}, {"role": "owner", "content": "x"}])


def test_text_goes_on_without_a_template(model: localmoe.LoadedModel) -> None:
    """The prompt is all that the model reads."""
    prompt = "Once upon a time"
    done = model.generate(prompt, temperature=0, max_tokens=5).result()
    assert done.usage.prompt_tokens <= model.count_tokens(prompt) + 1
    assert done.answer


def test_an_answer_of_a_schema(model: localmoe.LoadedModel) -> None:
    """By template or without one; a schema that cannot be enforced is an error before anything."""
    for ask in (model.chat, model.generate):
        done = ask("Which?", schema=SCHEMA, temperature=1.2, seed=4).result()
        jsonschema.validate(json.loads(done.answer), SCHEMA)
    with pytest.raises(UsageError, match="uniqueItems"):
        model.chat("Which?", schema={"type": "array", "uniqueItems": True})


def test_files_go_along(model: localmoe.LoadedModel) -> None:
    file = localmoe.Attachment("a.txt", "alpha")
    with_file = model.chat("What?", files=[file], temperature=0, max_tokens=4).result()
    typed = model.chat("a.txt:\n```\nalpha\n```\n\nWhat?", temperature=0, max_tokens=4).result()
    assert with_file.answer == typed.answer


def test_a_stream_can_be_left(model: localmoe.LoadedModel) -> None:
    """The engine stops, and answers the next question."""
    stream = model.chat("Hello", max_tokens=1000)
    assert isinstance(next(stream), localmoe.PrefillProgress)
    stream.close()
    assert model.chat("Hello", max_tokens=2).result().finish_reason == "length"


def test_unknown_options_are_type_errors(model: localmoe.LoadedModel) -> None:
    with pytest.raises(TypeError):
        model.chat("Hello", tempreature=0)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="auto, off, low, medium, high"):
        model.chat("Hello", think="much")


def test_hints_name_arguments(model: localmoe.LoadedModel) -> None:
    """What the engine's process says of options, a program reads as arguments."""
    with pytest.raises(localmoe.ContextOverflowError) as caught:
        model.chat("Hello " * 300).result()
    assert re.fullmatch(r"shorten the prompt, or use .*context=\d+", caught.value.hint or "")


def test_a_plan_names_arguments(model: localmoe.LoadedModel) -> None:
    """What the planner says to a command line of --ctx, a program reads of ``context``."""
    (warning,) = model.plan.warnings
    assert warning.startswith("context=1000: the engine counts in steps of 256 tokens")


def test_what_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path, own_children: None
) -> None:
    """The errors of the command line; and no process is left behind."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    before = len(psutil.Process().children(recursive=True))
    with pytest.raises(UnknownModelError):
        localmoe.load("no-such-model")
    with pytest.raises(ModelFileError):
        localmoe.load(str(tmp_path / "none.gguf"))
    with pytest.raises(DoesNotFitError):
        localmoe.load(str(path), wishes=localmoe.Wishes(ram=1 << 20))
    with pytest.raises(UsageError, match=r"wishes=Wishes\(experts=99\): its layers have"):
        localmoe.load(str(path), wishes=localmoe.Wishes(experts=99))
    assert len(psutil.Process().children(recursive=True)) == before


def test_a_name_may_be_an_alias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path, own_children: None
) -> None:
    """Progress is told up to the end, and closing ends the processes."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.toml").write_text(f'[aliases]\nmine = "{path}"\n')
    before = len(psutil.Process().children(recursive=True))
    seen: list[float] = []
    loaded = localmoe.load("mine", context=512, wishes=WISHES, progress=seen.append)
    assert loaded.facts.paths == (path,)
    assert all(0 <= fraction <= 1 for fraction in seen)
    assert len(psutil.Process().children(recursive=True)) > before
    loaded.close()
    assert len(psutil.Process().children(recursive=True)) == before
