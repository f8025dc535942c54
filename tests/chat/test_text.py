"""Text is text: a model that says a fixed script, through the real engine and the Python API."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import localmoe
from localmoe.chat.events import TurnDone
from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Request, Sampling, Token
from tests.archs import parrot
from tests.archs.parrot import Word, control, user_defined
from tests.archs.vocabulary import CHATML

pytestmark = pytest.mark.process

OPENED = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
THINK = (control("<think>"), control("</think>"))
TAGS = (user_defined("<think>"), user_defined("</think>"))

Say = Callable[..., TurnDone]


@pytest.fixture
def say(tmp_path: Path) -> Say:
    """``say(script, **options of the model)`` → the turn."""

    def say(script: Sequence[Word], schema: object = None, **options: object) -> TurnDone:
        path = parrot.write(tmp_path / "model.gguf", script, **options)  # type: ignore[arg-type]
        with localmoe.load(str(path), remember=False) as model:
            return model.chat("hi", temperature=0, schema=schema).result()

    return say


def test_an_answer_may_spell_control_tokens(say: Say) -> None:
    """``<s>``, ``[INST]``, ``<|im_end|>`` and the like are text where they are written as text."""
    script = ["`<s>", "old", "</s>`", " [INST] ", "<bos> <", "|im_end", "|> <eos>", "<|x|>"]
    done = say(script)
    assert done.answer == "`<s>old</s>` [INST] <bos> <|im_end|> <eos><|x|>"


def test_control_tokens_of_any_name_are_not_shown(say: Say) -> None:
    """By their type, not by a list of names; a token set apart that is text is shown."""
    script = ["A desk", control("<unused6226>"), " and", control("[gMASK]"), " a", control("FOO"),
              " chair", user_defined("<table>"), "."]  # fmt: skip
    assert say(script).answer == "A desk and a chair<table>."


def test_an_answer_in_a_form_keeps_what_it_spells(say: Say) -> None:
    """An enum of ``"<s>x</s>"`` is whole, also where a control token spells a part of it."""
    schema = {"enum": ["<s>x</s>"]}
    assert json.loads(say(['"<', "s>x", "</", 's>"'], schema).answer) == "<s>x</s>"
    done = say(['"', control("<s>"), "x", control("</s>"), '" '], schema)
    assert json.loads(done.answer) == "<s>x</s>"


@pytest.mark.parametrize("marks", [THINK, TAGS], ids=["control", "set apart"])
def test_a_quoted_mark_does_not_end_the_thinking(say: Say, marks: tuple[Word, ...]) -> None:
    """Where the vocabulary has the mark, only its token counts; with a schema as well."""
    quoted = ["I write `</", "think", ">` ", "here", marks[1], "\n\n"]
    for answer, schema in (("Yes", None), ('"Yes"', {"enum": ["Yes"]})):
        done = say([*quoted, answer], schema, template=OPENED, specials=marks)
        assert (done.reasoning, done.answer) == ("I write `</think>` here", answer)


def test_an_end_without_a_start(say: Say) -> None:
    """A control token that ends thinking makes thinking of all that came before it."""
    done = say(["Let me see", THINK[1], "Paris."], specials=THINK)
    assert (done.reasoning, done.answer) == ("Let me see", "Paris.")


@pytest.mark.parametrize("script", [["Let me", " see"], ["all thought", THINK[1]]])
def test_an_answer_that_never_came_is_said(say: Say, script: list[Word]) -> None:
    """Thinking that does not end, or after which nothing comes."""
    done = say(script, template=OPENED, specials=THINK)
    assert done.answer == ""
    assert done.no_answer is not None
    assert done.no_answer.exit_code == 1
    assert "no answer came" in done.no_answer.message
    assert say(["Yes"], specials=THINK).no_answer is None


@contextlib.contextmanager
def loaded(path: Path) -> Iterator[Engine]:
    with localmoe.load(str(path), remember=False) as model:
        assert isinstance(model.engine, Engine)
        yield model.engine


def test_events_carry_tokens(tmp_path: Path) -> None:
    """One for each token: number, kind, whole characters, and on request how likely it was."""
    script = ["caf", control("<x>"), "\u20ac"]
    path = parrot.write(tmp_path / "m.gguf", script)
    request = Request("\n", sampling=Sampling(temperature=0), top_logprobs=2)
    with loaded(path) as engine:
        *events, done = [e for e in engine.generate(request) if isinstance(e, Token | Finished)]
        plain = [e for e in engine.generate(Request("\n", max_tokens=1)) if isinstance(e, Token)]
    tokens = [event for event in events if isinstance(event, Token)]
    assert isinstance(done, Finished) and done.completion_tokens == len(tokens) == 3
    assert [(t.text, t.special, t.control) for t in tokens] == [
        ("caf", False, False), ("<x>", True, True), ("\u20ac", False, False)
    ]  # fmt: skip
    for token in tokens:
        first, second = token.top
        assert (first.token, first.text, first.logprob) == (token.token, token.text, token.logprob)
        assert second.logprob < first.logprob <= 0
    assert plain[0].logprob is None


def test_a_pipe_gets_the_answer_as_it_is(tmp_path: Path) -> None:
    """Soft hyphens, marks of direction, form feeds, CR and emoji tags are on stdout, to the byte;
    so is JSON that a schema asked for. An answer that never came: exit code 1 and a word.
    """
    script = [
        "a\u00adb",
        "[\u200f]",
        "[\u200b]\x0c",
        "\r\n",
        "\U000e0067",
        "\x1b[31mred",
        "\ufeff.",
    ]
    path = parrot.write(tmp_path / "m.gguf", script)
    assert run(path).stdout == "".join([*script, "\n"]).encode()
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"enum": ["a\u00ad\u200fb"]}))
    path = parrot.write(tmp_path / "n.gguf", ['"a', "\u00ad", "\u200f", 'b"'])
    assert json.loads(run(path, "--schema", str(schema)).stdout) == "a\u00ad\u200fb"
    path = parrot.write(tmp_path / "o.gguf", ["Let me", " see"], template=OPENED, specials=THINK)
    silent = run(path)
    assert (silent.returncode, silent.stdout) == (1, b"")
    assert b"no answer came" in silent.stderr


def run(path: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "localmoe", "run", "-q", "--no-history", "--temp", "0"]
    return subprocess.run([*command, *options, "-m", str(path), "hi"], capture_output=True)
