"""The chat's loop over pipes: exact streams, and every way a turn can go wrong."""

from __future__ import annotations

import io
import json
import signal
from dataclasses import dataclass

import pytest

from localmoe.chat.conversation import TurnDone
from localmoe.cli import run as run_module
from localmoe.cli.arguments import Options
from localmoe.cli.lines import PipedLines, TerminalLines
from localmoe.cli.output import Output
from localmoe.cli.talk import about, experts_home, settings
from localmoe.engine.events import PrefillProgress, Request
from localmoe.errors import ContextOverflowError, EngineCrashError, UsageError
from localmoe.text import format_duration
from tests.chat import room
from tests.chat.scripted import Reply, ScriptedEngine


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
    code = room.run_chat(engine, PipedLines(io.StringIO(typed)), output)
    return Streams(code, out.getvalue(), err.getvalue(), engine)


def test_each_line_is_a_turn_and_the_answers_alone_are_on_stdout() -> None:
    """Answers end with a newline; figures and the context meter go to stderr."""
    done = chat("one\n\ntwo", ["a", "b"], ["c\n"])
    assert done.code == 0
    assert done.out == "ab\nc\n"
    first = (
        f"2 tokens written · 10.0 tok/s · first after {format_duration(0.1)} · context 5/100 (5 %)"
    )
    assert done.err.splitlines()[0] == first
    assert len(done.engine.requests) == 2


def test_empty_input_ends_at_once() -> None:
    """``/dev/null`` and a closed stdin are no loop."""
    done = chat("")
    assert (done.code, done.out) == (0, "")


def test_markup_and_control_characters_are_only_text() -> None:
    """Nothing in an answer acts on the terminal, however it is cut."""
    done = chat("x\n", ["[/bold] \x1b", "]52;c;eA==\x07ok\x9b31m", " **b**"])
    assert done.out == "[/bold] ok **b**\n"


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
    """The nearest command is named; the chat goes on."""
    done = chat("/exti\nhi\n", ["x"])
    assert "error: no command /exti. Did you mean /exit?" in done.err
    assert done.out == "x\n"


def test_a_prompt_that_does_not_fit_changes_nothing() -> None:
    """The counts are shown and the next, shorter message is answered."""
    error = ContextOverflowError("the prompt has 700 tokens, the context 100", hint="shorten")
    done = chat("long\nshort\n", [error], ["ok"])
    assert done.code == 0
    assert "error: the prompt has 700 tokens, the context 100" in done.err
    assert done.out == "ok\n"
    assert "long" not in done.engine.requests[1].prompt


def test_a_crash_keeps_the_chat() -> None:
    """The cause is told, what was said stays, and the next message starts the engine again."""
    crash = EngineCrashError("the engine process died: killed, most likely because memory ran out")
    done = chat("a\nb\nc\n", ["one"], ["tw", crash], ["three"])
    assert done.code == 0
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
    assert room.run_chat(engine, lines, Output(out=out, err=err)) == 0
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


def test_ctrl_c_twice_in_an_answer_ends_the_engine() -> None:
    """An engine that does not stop is ended; the chat goes on with a new one."""
    out, err = io.StringIO(), io.StringIO()
    engine = IsStuck([["fine"]])
    lines = PipedLines(io.StringIO("a\nb\n"))
    assert room.run_chat(engine, lines, Output(out=out, err=err)) == 0
    assert out.getvalue() == "fine\n"
    assert "starting the engine again" in err.getvalue()
    assert engine.loads == 2


class Keys(TerminalLines):
    """A terminal at which these keys are pressed: a line, or an exception for Ctrl-C."""

    def __init__(self, *keys: str | type[BaseException]) -> None:
        super().__init__(io.StringIO(), io.StringIO())
        self._keys = list(keys)

    def read(self) -> str:
        key = self._keys.pop(0)
        if isinstance(key, str):
            return key
        raise key


def test_ctrl_c_twice_at_the_prompt_leaves() -> None:
    """Once warns, a message in between forgives, twice is exit 130."""
    interrupt = KeyboardInterrupt
    engine = ScriptedEngine([["x"]])
    out, err = io.StringIO(), io.StringIO()
    keys = Keys(interrupt, "hi", interrupt, interrupt)
    assert room.run_chat(engine, keys, Output(out=out, err=err)) == 130
    assert out.getvalue() == "x\n"
    assert err.getvalue().count("once more") == 2


class TestRun:
    def document(self, engine: ScriptedEngine) -> dict[str, object]:
        output = Output(out=io.StringIO(), err=io.StringIO())
        with room.talk(engine, output) as talk:
            *_, done = talk.conversation(Options()).ask("hi")
            assert isinstance(done, TurnDone)
            assert talk.loaded
            return run_module.run_document("tiny", done, talk.loaded, talk.plan, {"layers": []})

    def test_document(self) -> None:
        """The names of the command line contract; text is there as the model wrote it."""
        document = self.document(ScriptedEngine([["<think>hm</think>", "a\x1b[0m"]]))
        assert document == {
            "text": "a\x1b[0m",
            "reasoning": "hm",
            "finish_reason": "stop",
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
        with room.talk(ScriptedEngine([["<think>hm</think>", "a", "\x1b[31mb"]]), output) as talk:
            conversation = talk.conversation(Options())
            assert talk.loaded
            with run_module.TextPrinter(talk, talk.loaded, output) as printer:
                for event in conversation.ask("hi"):
                    printer.show(event)
        assert out.getvalue() == "ab\n"
        assert err.getvalue().startswith("hm\n")
        assert "tok/s" in err.getvalue()

    def test_events(self) -> None:
        """``--jsonl``: one document per event, the last the same as ``--json``."""
        out = io.StringIO()
        output = Output(out=out, err=io.StringIO(), lines=True)
        with room.talk(ScriptedEngine([["<think>hm</think>", "a"]]), output) as talk:
            conversation = talk.conversation(Options())
            assert talk.loaded
            with run_module.EventPrinter(talk, talk.loaded, output) as printer:
                for event in conversation.ask("hi"):
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
    assert run_module.compose(words, piped, Output(err=io.StringIO())) == prompt


@pytest.mark.parametrize(("words", "piped"), [((), ""), ((), None), (("-",), " \n"), ((" ",), "")])
def test_no_prompt_is_a_usage_error(words: tuple[str, ...], piped: str | None) -> None:
    """Exit 2 with what to type, not an empty request."""
    with pytest.raises(UsageError, match="no prompt"):
        run_module.compose(words, piped, Output(err=io.StringIO()))


def test_where_the_experts_live() -> None:
    """The first line of a chat names the tier, or each of them."""
    assert experts_home(room.plan("ram", "ram", None)) == "experts in RAM"
    assert experts_home(room.plan(None)) == "no experts (dense)"
    mixed = experts_home(room.plan("gpu", "ram", "ram", "disk"))
    assert mixed == "experts of 1 layer on the GPU, of 2 in RAM, of 1 on disk"
    first_line = about(room.MODEL, room.plan("ram"), 100)
    assert first_line == "tiny · experts in RAM · context of 100 tokens"


def test_settings_come_from_the_file_then_the_command_line() -> None:
    """``--temp`` wins over ``general.sampling.temp``, which wins over the plain value."""
    assert settings(Options(), room.MODEL).sampling.temperature == 0.6
    chosen = settings(Options(temperature=0.0, seed=3, max_tokens=9, think="low"), room.MODEL)
    assert (chosen.sampling.temperature, chosen.sampling.seed) == (0.0, 3)
    assert (chosen.max_tokens, chosen.think.value) == (9, "low")
