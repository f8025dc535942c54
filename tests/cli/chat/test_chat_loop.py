"""The chat's loop over pipes: exact streams, and every way a turn can go wrong."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyte
import pytest

from localmoe.app import documents
from localmoe.app.model import LoadedModel, settings_for
from localmoe.app.sessions import open_session
from localmoe.app.tiers import experts_sentence
from localmoe.chat.events import TurnDone
from localmoe.chat.store import Store
from localmoe.cli.arguments import Options
from localmoe.cli.chat.loop import ChatLoop
from localmoe.cli.loaded import about, conversation
from localmoe.cli.output import Output
from localmoe.cli.requests import sample_request, session_request
from localmoe.cli.run import printers
from localmoe.cli.run.command import compose
from localmoe.engine.events import Loaded, LoadProgress, PrefillProgress, Request
from localmoe.errors import (
    ContextOverflowError,
    EngineCrashError,
    InterruptedLoadError,
    ModelFileError,
    UsageError,
)
from localmoe.terminal.line_sources import Notices, PipedLines, TerminalLines
from localmoe.text import format_duration
from tests.chat.scripted import Reply, ScriptedEngine
from tests.cli.chat.scripted_model import MODEL, plan, run_chat, scripted_model
from tests.waiting import PATIENCE

pytestmark = pytest.mark.process


@dataclass
class Streams:
    code: int
    out: str
    err: str
    engine: ScriptedEngine


def chat(typed: str, *replies: Reply, quiet: bool = False) -> Streams:
    """A chat over pipes, with these lines on stdin."""
    out, err = io.StringIO(), io.StringIO()
    engine = ScriptedEngine(list(replies))
    output = Output(out=out, err=err, quiet=quiet)
    code = run_chat(engine, PipedLines(io.StringIO(typed)), output)
    return Streams(code, out.getvalue(), err.getvalue(), engine)


def test_each_line_is_a_turn_and_the_answers_alone_are_on_stdout() -> None:
    """Answers end with a newline; figures and the context meter go to stderr."""
    done = chat("one\n\ntwo", ["a", "b"], ["c\n"])
    assert done.code == 0
    assert done.out == "ab\nc\n"
    first, second = (line for line in done.err.splitlines() if "TTFT" in line)
    assert first.startswith(f"10.0 tok/s · 2 tokens · TTFT {format_duration(0.1)} · context ")
    assert first.endswith(" 5/100 (5 %) · experts in RAM")
    assert second.startswith("1 token · ")
    assert len(done.engine.requests) == 2


def test_empty_input_ends_at_once() -> None:
    """``/dev/null`` and a closed stdin are no loop."""
    done = chat("")
    assert (done.code, done.out) == (0, "")


def test_a_pipe_gets_an_answer_as_it_is() -> None:
    """To the character, markup and control characters too: `test_terminal` is about terminals."""
    pieces: list[str | BaseException] = ["[/bold] \x1b", "]52;c;eA==\x07ok\x9b31m", " **b**"]
    assert chat("x\n", pieces).out == "".join(map(str, pieces)) + "\n"


def test_thinking_is_folded() -> None:
    """A count on stderr, nothing of it on stdout."""
    done = chat("x\n", ["<think>", "one two", " three", "</think>", "\n\nyes"])
    assert done.out == "yes\n"
    assert "thought 3 words in" in done.err
    assert "two" not in done.err


def test_commands_work_in_a_pipe() -> None:
    """Their results go to stderr, and ``/exit`` leaves."""
    done = chat("/set temp 0\n/system Be brief.\nhi\n/exit\nnever", ["x"])
    assert done.out == "x\n"
    assert done.engine.requests[0].sampling.temperature == 0
    assert "system\nBe brief." in done.engine.requests[0].prompt
    assert len(done.engine.requests) == 1


def test_a_wrong_command_is_an_error_line_and_no_turn() -> None:
    """The nearest command is named; the chat goes on, and ends with the code of a wrong usage."""
    done = chat("/exti\nhi\n", ["x"])
    assert done.code == 2
    assert "error: no command /exti. Did you mean /exit?" in done.err
    assert done.out == "x\n"


def test_a_prompt_that_does_not_fit_changes_nothing() -> None:
    """The counts are shown and the next, shorter message is answered; the exit code tells it."""
    error = ContextOverflowError("the prompt has 700 tokens, the context 100", hint="shorten")
    done = chat("long\nshort\n", [error], ["ok"])
    assert done.code == 1
    assert "error: the prompt has 700 tokens, the context 100" in done.err
    assert done.out == "ok\n"
    assert "long" not in done.engine.requests[1].prompt


def test_a_crash_keeps_the_chat() -> None:
    """The cause is told, what was said stays, and the next message starts the engine again.

    A pipe ends with 1 all the same: one of its turns has failed.
    """
    crash = EngineCrashError("the engine process died: killed, most likely because memory ran out")
    done = chat("a\nb\nc\n", ["one"], ["tw", crash], ["three"])
    assert done.code == 1
    assert done.out == "one\ntw\nthree\n"
    assert "error: the engine process died: killed" in done.err
    assert done.engine.loads == 2
    assert "assistant\none" in done.engine.requests[2].prompt
    assert "assistant\ntw" in done.engine.requests[2].prompt


def test_quiet_leaves_the_answers() -> None:
    """``--quiet`` drops figures and notes, not errors."""
    done = chat("hi\n/nonsense\n", ["x"], quiet=True)
    assert done.out == "x\n"
    assert done.err.startswith("error: no command /nonsense")
    assert "tiny" not in done.err and "tok/s" not in done.err


class PressesCtrlC(ScriptedEngine):
    """An engine whose user presses Ctrl-C when it has said one word."""

    def generate(self, request: Request):  # type: ignore[no-untyped-def]
        for event in super().generate(request):
            yield event
            if getattr(event, "tokens", 0) == 1:
                signal.raise_signal(signal.SIGINT)


def test_ctrl_c_keeps_the_partial_answer() -> None:
    """The answer stops, is kept and marked; the chat goes on; Ctrl-C works as before after it."""
    before = signal.getsignal(signal.SIGINT)
    out, err = io.StringIO(), io.StringIO()
    engine = PressesCtrlC([["one ", "two"], ["three"]])
    lines = PipedLines(io.StringIO("a\nb\n"))
    assert run_chat(engine, lines, Output(out=out, err=err)) == 0
    assert out.getvalue() == "one \nthree\n"
    assert "interrupted; what is there is kept" in err.getvalue()
    assert "assistant\none <|im_end|>" in engine.requests[1].prompt
    assert signal.getsignal(signal.SIGINT) is before


class IsStuck(ScriptedEngine):
    """An engine in the middle of something long: only its end stops it."""

    def generate(self, request: Request):  # type: ignore[no-untyped-def]
        if self.loads == 1:
            yield PrefillProgress(0, 9, 0)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second Ctrl-C did nothing")
        yield from super().generate(request)

    def cancel(self) -> None:
        """It does not hear."""


def test_ctrl_c_twice_in_an_answer_leaves() -> None:
    """An engine that does not hear is ended, and the chat with it: exit 130."""
    out, err = io.StringIO(), io.StringIO()
    engine = IsStuck([["fine"]])
    lines = PipedLines(io.StringIO("a\nb\n"))
    assert run_chat(engine, lines, Output(out=out, err=err)) == 130
    assert not engine.alive
    assert out.getvalue() == ""


class Keys(TerminalLines):
    """A terminal at which these keys are pressed: a line, or an exception for Ctrl-C.

    What is asked in between is answered with ``answer``; ``drafts`` is what lay on the input line.
    """

    def __init__(self, *keys: str | type[BaseException], answer: str = "") -> None:
        super().__init__(io.StringIO(), io.StringIO())
        self._keys = list(keys)
        self._answer = answer
        self.questions: list[str] = []
        self.drafts: list[str] = []

    def read(self, default: str = "") -> str:
        self.drafts.append(default)
        if not self._keys:
            raise EOFError
        key = self._keys.pop(0)
        if isinstance(key, str):
            return key
        raise key

    def choose(self, question: str) -> str:
        self.questions.append(question)
        return self._answer


def type_in(
    engine: ScriptedEngine, keys: Keys, options: Options | None = None, **how: Any
) -> Streams:
    """The chat with these keys."""
    out, err = io.StringIO(), io.StringIO()
    code = run_chat(engine, keys, Output(out=out, err=err), options, **how)
    return Streams(code, out.getvalue(), err.getvalue(), engine)


def test_ctrl_c_twice_at_the_prompt_leaves() -> None:
    """Once warns, a message in between forgives, twice is exit 130."""
    interrupt = KeyboardInterrupt
    done = type_in(ScriptedEngine([["x"]]), Keys(interrupt, "hi", interrupt, interrupt))
    assert done.code == 130
    assert done.out == "x\n"
    assert done.err.count("once more") == 2


def test_the_context_is_changed_in_the_chat() -> None:
    """``/set ctx``: the model is loaded again with so many tokens, and the conversation goes on."""
    asked_for: list[int | None] = []
    engine = ScriptedEngine([["one"], ["two"]])
    err = io.StringIO()
    output, notices = Output(out=io.StringIO(), err=err), Notices()

    @contextmanager
    def open_model(name: str | None, options: Options) -> Iterator[LoadedModel]:
        asked_for.append(options.context)
        with scripted_model(engine) as model:
            yield model

    loop = ChatLoop(open_model, Options(command="chat", context=4096), output, notices)
    code = loop.run("tiny", Keys("hi", "/set ctx 16k", "/set ctx", "/set ctx 0", "more"))
    assert code == 0
    assert asked_for == [4096, 16384]
    assert "the conversation goes on, 1 turn so far" in err.getvalue()
    assert "error: ctx is a number of tokens" in err.getvalue()
    assert "assistant\none" in engine.requests[1].prompt
    assert ("/set ctx", 3) in [(f"/set {word}", size) for word, size in loop.propose("/set ctx")]


def test_regen_replaces_and_undo_takes_back() -> None:
    """Both change what the next prompt has."""
    keys = Keys("count", "/regen", "more", "/undo", "else")
    done = type_in(ScriptedEngine([["one"], ["two"], ["three"], ["four"]]), keys)
    prompts = [request.prompt for request in done.engine.requests]
    assert prompts[0] == prompts[1]
    assert "assistant\ntwo" in prompts[2] and "one" not in prompts[2]
    assert "more" not in prompts[3] and "assistant\ntwo" in prompts[3]


def test_files_go_with_one_message(tmp_path: Path) -> None:
    """``-f`` and ``/read``: in the next prompt once; kept when that could not be sent."""
    (tmp_path / "n.txt").write_text("the notes")
    crash = EngineCrashError("gone")
    keys = Keys(f"/read {tmp_path}/n.txt", "sum up", "sum up", "thanks")
    done = type_in(ScriptedEngine([[crash], ["ok"], ["bye"]]), keys)
    first, second, third = (request.prompt for request in done.engine.requests)
    assert "n.txt:\n```\nthe notes\n```\n\nsum up" in first
    assert first == second
    assert third.count("the notes") == 1
    assert "n.txt · 5 tokens" in done.err


def test_edit_asks_the_changed_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last message in $EDITOR replaces its turn; ``new`` writes one; no change, no turn."""
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "%s, edited" "$(cat "$1")" > "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    done = type_in(ScriptedEngine([["1"], ["2"], ["3"]]), Keys("hello", "/edit", "/edit new"))
    prompts = [request.prompt for request in done.engine.requests]
    assert "hello, edited<|im_end|>" in prompts[1] and "assistant\n1" not in prompts[1]
    assert "user\n, edited<|im_end|>" in prompts[2]
    assert "> hello, edited\n" in done.err and "> , edited\n" in done.err
    monkeypatch.setenv("VISUAL", "true")
    assert (
        "not sent: the text is unchanged"
        in type_in(ScriptedEngine([["1"]]), Keys("hello", "/edit")).err
    )
    monkeypatch.setenv("VISUAL", "false")
    assert "ended with 1" in type_in(ScriptedEngine([["1"]]), Keys("hello", "/edit")).err


class StoppedAtOnce(ScriptedEngine):
    """An engine whose user presses Ctrl-C while the second prompt is read."""

    def generate(self, request: Request):  # type: ignore[no-untyped-def]
        for event in super().generate(request):
            yield event
            if isinstance(event, PrefillProgress) and len(self.requests) == 2:
                signal.raise_signal(signal.SIGINT)


def test_an_edit_that_is_stopped_before_the_first_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The turn is as it was with its file, and the changed message is back on the input line."""
    (tmp_path / "n.txt").write_text("the notes")
    (tmp_path / "m.txt").write_text("the others")
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "changed" > "$1"\n')
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(editor))
    keys = Keys(
        f"/read {tmp_path}/n.txt", "hello", f"/read {tmp_path}/m.txt", "/edit", "next", "last"
    )
    done = type_in(StoppedAtOnce([["1"], ["2"], ["3"], ["4"]]), keys)
    assert keys.drafts[4] == "changed"
    third, fourth = (request.prompt for request in done.engine.requests[2:])
    assert "the notes" in third and "assistant\n1" in third and "changed" not in third
    assert third.count("the others") == fourth.count("the others") == 1


LONG = "word " * 30


class Roomy(ScriptedEngine):
    """An engine with a context of 400 tokens."""

    def load(self) -> Iterator[LoadProgress | Loaded]:
        for event in super().load():
            yield replace(event, context=400) if isinstance(event, Loaded) else event


class TestFull:
    """A context of 100 tokens, 32 of them for the answer."""

    def full(self, *keys: str, answer: str = "", overflow: str | None = None) -> Streams:
        engine = ScriptedEngine([["a"], ["b"], ["c"], ["d"], ["e"]])
        lines = Keys(LONG, LONG, *keys, answer=answer)
        options = Options(command="chat", overflow=overflow)
        done = type_in(engine, lines, options)
        self.lines = lines
        return done

    def test_dropping(self) -> None:
        """Asked, with the numbers; the oldest turns go, are told of, and are not sent."""
        done = self.full("next " * 30, answer="d")
        assert "the next turn does not fit: 10" in done.err
        assert self.lines.questions == [
            "the 2 oldest turns: [d]rop, [s]ummarise, or [Enter] to stop? "
        ]
        assert "the 2 oldest turns are not sent any more" in done.err
        assert "word" not in done.engine.requests[2].prompt

    def test_stopping(self) -> None:
        """Enter stops: nothing is sent or lost, the message is back on the input line."""
        done = self.full("next " * 30)
        assert len(done.engine.requests) == 2
        assert "not sent" in done.err
        assert self.lines.drafts[-1] == "next " * 30

    def test_summarising(self) -> None:
        """The model sums up, and its words are sent in place of the turns."""
        engine = Roomy([["a"], ["b"], ["c"], ["d"]])
        keys = Keys("word " * 120, "word " * 120, "next " * 120, answer="s")
        done = type_in(engine, keys)
        assert keys.questions == ["the 2 oldest turns: [d]rop, [s]ummarise, or [Enter] to stop? "]
        assert "Summarise our conversation" in done.engine.requests[2].prompt
        prompt = done.engine.requests[3].prompt
        assert "word" not in prompt and "Summary of the conversation so far:\nc" in prompt
        assert "the 2 oldest turns are sent as a summary" in done.err

    def test_a_stated_choice_is_not_asked_for(self) -> None:
        """``--overflow drop`` and ``/set overflow drop``."""
        for done in (
            self.full("next " * 30, overflow="drop"),
            self.full("/set overflow drop", "next " * 30),
        ):
            assert self.lines.questions == []
            assert "oldest turns are not sent any more" in done.err
            assert len(done.engine.requests) == 3

    def test_a_pipe_stops(self) -> None:
        """Nobody can be asked: refused with the numbers, the next line is answered, exit code 1."""
        done = chat(f"{LONG}\n{LONG}\n{'next ' * 30}\n/clear\nhi\n", ["a"], ["b"], ["c"])
        assert "error: the next turn does not fit: " in done.err and "not sent" in done.err
        assert "hint: --overflow drop" in done.err
        assert (done.out, done.code) == ("a\nb\nc\n", 1)

    @pytest.mark.parametrize("typed", [f"{LONG}\n{LONG}\n{'next ' * 30}\n", "next " * 200])
    def test_quiet_says_what_failed(self, typed: str) -> None:
        """With ``-q`` and exit code 1 there is one line: the error, and its hint."""
        done = chat(typed, ["a"], ["b"], quiet=True)
        assert done.code == 1
        assert done.err.startswith("error: the next turn does not fit: ")
        assert done.err.count("error: ") == done.err.count("hint: ") == 1
        assert len(done.err.splitlines()) == 2

    def test_too_long_by_itself(self) -> None:
        """No turn is given up for a message that would not fit anyway."""
        done = self.full("next " * 200, answer="d")
        assert "even alone it is too long" in done.err
        assert self.lines.questions == []


class TestSessions:
    def test_a_conversation_goes_on(self, tmp_path: Path) -> None:
        """What was said before is in the prompt, with the system text of that time."""
        store = Store(tmp_path)
        first = Keys("/system be brief", "first")
        type_in(ScriptedEngine([["a"]]), first, store=store, log=store.open("s"))
        done = type_in(ScriptedEngine([["b"]]), Keys("second"), store=store, log=store.open("s"))
        assert "system\nbe brief" in done.engine.requests[0].prompt
        assert "user\nfirst" in done.engine.requests[0].prompt
        assert "s · 1 turn · tiny\n> first\n  a" in done.err

    def test_what_was_read_is_kept_and_taken_up(self, tmp_path: Path) -> None:
        """On leaving and on switching sessions, under the session's name; not for a word or two."""
        store = Store(tmp_path)

        def keeping(*keys: str, log: str) -> ScriptedEngine:
            engine = ScriptedEngine([["x"]] * 3)
            type_in(engine, Keys(*keys), store=store, log=store.open(log))
            return engine

        assert keeping("hi", log="short").kept == []
        assert keeping("word " * 62, log="long").kept == ["long"]
        assert keeping("/load long", "again", log="short").resumed == ["short", "long"]
        switched = keeping("word " * 62, "/load long", log="other")
        assert switched.kept == ["other"]

    def test_no_history_leaves_no_trace(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No file at all, and no conversation to go on with."""
        monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
        options = Options(command="chat", no_history=True)
        store, log = open_session(session_request(options))
        type_in(ScriptedEngine([["x"]]), Keys("secret", "/clear"), options, store=store, log=log)
        assert not (tmp_path / "home").exists()
        for more in ({"resume": True}, {"session": "x"}):
            with pytest.raises(UsageError, match="--no-history"):
                open_session(session_request(replace(options, **more)))


class FailsToLoad(ScriptedEngine):
    """A model that is found out to be broken when it is loaded."""

    def load(self):  # type: ignore[no-untyped-def]
        yield LoadProgress(0.5)
        raise ModelFileError("the file is damaged")


def test_a_model_that_cannot_be_loaded_ends_the_chat() -> None:
    """With its own error, for a pipe and for a terminal."""
    for lines in (PipedLines(io.StringIO("hi\n")), Keys("hi")):
        with pytest.raises(ModelFileError, match="damaged"):
            run_chat(FailsToLoad([]), lines, Output(out=io.StringIO(), err=io.StringIO()))


class StoppedInLoad(ScriptedEngine):
    """An engine whose user presses Ctrl-C while it is loaded."""

    def load(self) -> Iterator[LoadProgress | Loaded]:
        yield LoadProgress(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        assert self.cancelled.wait(PATIENCE)
        raise InterruptedLoadError("loading was interrupted")


class StoppedInClose(ScriptedEngine):
    """An engine whose user presses Ctrl-C while it is ended: nobody listens for it just then."""

    def close(self) -> None:
        super().close()
        if self.loads == 1:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ScriptedEngine([["a"], ["b"]]), StoppedInLoad([])),
        (StoppedInClose([["a"], ["b"]]), ScriptedEngine([["c"]])),
    ],
    ids=["in-load", "in-close"],
)
def test_ctrl_c_while_another_model_is_loaded(
    first: ScriptedEngine,
    second: ScriptedEngine,
    arch_file: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``/model`` is given up: the model before comes back, and the conversation is as it was."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    path = arch_file("qwen3moe")
    err = io.StringIO()
    output, notices = Output(out=io.StringIO(), err=err), Notices()

    @contextmanager
    def open_model(name: str | None, options: Options) -> Iterator[LoadedModel]:
        engine = second if name == str(path) else first
        with closing(engine), scripted_model(engine) as model:
            yield model

    loop = ChatLoop(open_model, Options(command="chat"), output, notices)
    assert loop.run("tiny", Keys("hello", f"/model {path}", "again")) == 0
    assert "stopped: the model before is loaded again" in err.getvalue()
    assert (first.loads, len(first.requests)) == (2, 2)
    assert "hello" in first.requests[1].prompt


class Broken(io.StringIO):
    """A stream that takes nothing."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_an_unwritable_stderr_costs_no_answer() -> None:
    """Notes and figures are lost, the answer is not, and the exit code still tells of an error."""
    out = io.StringIO()
    engine = ScriptedEngine([["<think>hm</think>", "fine"]])
    lines = PipedLines(io.StringIO("hi\n/stats\n/nonsense\n"))
    assert run_chat(engine, lines, Output(out=out, err=Broken())) == 2
    assert out.getvalue() == "fine\n"


class Window(io.StringIO):
    """What a terminal is sent."""

    def isatty(self) -> bool:
        return True


class TestRun:
    def document(self, engine: ScriptedEngine) -> dict[str, object]:
        output = Output(out=io.StringIO(), err=io.StringIO())
        with scripted_model(engine) as model:
            *_, done = conversation(model, Options(), output).ask("hi")
            assert isinstance(done, TurnDone)
            assert model.loaded
            return documents.run_document("tiny", done, model.loaded, model.plan, {"layers": []})

    def test_document(self) -> None:
        """The names of the command line contract; text is there as the model wrote it."""
        document = self.document(ScriptedEngine([["<think>hm</think>", "a\x1b[0m"]]))
        assert document == {
            "text": "a\x1b[0m",
            "reasoning": "hm",
            "tool_calls": [],
            "finish_reason": "stop",
            "no_answer": None,
            "model": "tiny",
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "reused_tokens": 0},
            "timings": {"load_s": 0.01, "ttft_s": 0.1, "prefill_tps": 50.0, "decode_tps": 10.0},
            "cache": {
                "regime": "resident",
                "hits": None,
                "misses": None,
                "hit_rate": None,
                "bytes_read": None,
            },
            "plan": {"layers": []},
        }

    def test_text(self) -> None:
        """The answer alone on stdout; reasoning and figures on stderr."""
        out, err = io.StringIO(), io.StringIO()
        output = Output(out=out, err=err)
        with scripted_model(ScriptedEngine([["<think>hm</think>", "a", "\x1b[31mb"]])) as model:
            asked = conversation(model, Options(), output)
            assert model.loaded
            with printers.TextPrinter(model, model.loaded, output) as printer:
                for event in asked.ask("hi"):
                    printer.show(event)
        assert out.getvalue() == "a\x1b[31mb\n"
        assert err.getvalue().startswith("hm\n")
        assert "tok/s" in err.getvalue()

    def test_text_in_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Markdown, no word broken at the edge; what was thought stands behind a bar."""
        monkeypatch.setenv("COLUMNS", "40")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        out, err = Window(), Window()
        output = Output(out=out, err=err)
        answer = "**bold** and then " + "several words " * 8
        with scripted_model(ScriptedEngine([["<think>hm", "</think>", *answer]])) as model:
            asked = conversation(model, Options(), output)
            assert model.loaded
            with printers.TextPrinter(model, model.loaded, output) as printer:
                for event in asked.ask("hi"):
                    printer.show(event)
        screen = pyte.Screen(40, 20)
        pyte.Stream(screen).feed(out.getvalue().replace("\n", "\r\n"))
        lines = [line.rstrip() for line in screen.display if line.strip()]
        assert " ".join(lines) == answer.replace("**", "").strip()
        assert screen.buffer[0][0].bold and not screen.buffer[0][5].bold
        assert "│ " in err.getvalue() and "hm" in err.getvalue()

    def test_events(self) -> None:
        """``--jsonl``: one document per event, the last the same as ``--json``."""
        out = io.StringIO()
        output = Output(out=out, err=io.StringIO(), lines=True)
        with scripted_model(ScriptedEngine([["<think>hm</think>", "a"]])) as model:
            asked = conversation(model, Options(), output)
            assert model.loaded
            with printers.EventPrinter(model, model.loaded, output) as printer:
                for event in asked.ask("hi"):
                    printer.show(event)
        lines = [json.loads(line) for line in out.getvalue().splitlines()]
        assert [line.get("event") for line in lines] == [
            "load",
            "loaded",
            "prefill",
            "reasoning",
            "answer",
            "done",
        ]
        assert lines[-1]["text"] == lines[-2]["text"] == "a"
        assert {line["schema_version"] for line in lines} == {1}


@pytest.mark.parametrize(
    ("words", "piped", "prompt"),
    [
        (("a", "b"), None, "a b"),
        (("a",), "x\n", "a\n\nx"),
        ((), "x\ny\n", "x\ny"),
        (("-",), "x\n", "x"),
        (("before", "-", "after"), "x\n", "before x after"),
        (("a",), "", "a"),
    ],
)
def test_prompt_and_stdin_are_joined(
    words: tuple[str, ...], piped: str | None, prompt: str
) -> None:
    """Words first, stdin after them or where ``-`` stands; the last newline is not part of it."""
    assert compose(words, piped, Output(err=io.StringIO())) == prompt


@pytest.mark.parametrize(("words", "piped"), [((), ""), ((), None), (("-",), " \n"), ((" ",), "")])
def test_no_prompt_is_a_usage_error(words: tuple[str, ...], piped: str | None) -> None:
    """Exit 2 with what to type, not an empty request."""
    with pytest.raises(UsageError, match="no prompt"):
        compose(words, piped, Output(err=io.StringIO()))


def test_where_the_experts_live() -> None:
    """The first line of a chat names the tier, or each of them."""
    assert experts_sentence(plan("ram", "ram", None)) == "experts in RAM"
    assert experts_sentence(plan(None)) == "no experts (dense)"
    mixed = experts_sentence(plan("gpu", "ram", "ram", "disk"))
    assert mixed == "experts of 1 layer on the GPU, of 2 in RAM, of 1 on disk"
    first_line = about(MODEL, plan("ram"), 100)
    assert first_line == "tiny · experts in RAM · context of 100 tokens"


def test_settings_come_from_the_file_then_the_command_line() -> None:
    """``--temp`` wins over ``general.sampling.temp``, which wins over the plain value."""
    assert settings_for(MODEL.metadata, sample_request(Options())).sampling.temperature == 0.6
    options = Options(temperature=0.0, seed=3, max_tokens=9, think="low")
    chosen = settings_for(MODEL.metadata, sample_request(options))
    assert (chosen.sampling.temperature, chosen.sampling.seed) == (0.0, 3)
    assert (chosen.max_tokens, chosen.think.value) == (9, "low")
