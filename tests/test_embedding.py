"""The Python API inside another program: threads, tasks, clients that leave, and wrong values."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import localmoe
from localmoe.errors import ContextOverflowError, EngineBusyError, EngineError, UsageError
from tests.waiting import PATIENCE

pytestmark = pytest.mark.process

DOCS = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.fixture(scope="module")
def model() -> Iterator[localmoe.LoadedModel]:
    with localmoe.load(remember=False) as loaded:
        yield loaded


def works(model: localmoe.LoadedModel) -> bool:
    return bool(model.chat("What is a router?", max_tokens=4).result().answer)


def test_a_stream_is_stopped_from_another_thread(model: localmoe.LoadedModel) -> None:
    """The reader gets the end, the engine stops, and the next request is served."""
    stream = model.generate("Once", max_tokens=2000, temperature=1.0)
    seen, begun = [], threading.Event()

    def read() -> None:
        for event in stream:
            seen.append(event)
            begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(PATIENCE)
    stream.close()
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert works(model)
    assert not list(stream)


@pytest.mark.parametrize("leave", ["with", "drop", "close"])
def test_an_answer_that_nobody_reads_frees_the_model(
    model: localmoe.LoadedModel, leave: str
) -> None:
    """Leaving its block, dropping it half-read, and closing it twice."""
    stream = model.generate("Once", max_tokens=2000, temperature=1.0)
    if leave == "with":
        with stream:
            next(stream)
    else:
        next(stream)
        if leave == "close":
            stream.close()
            stream.close()
    del stream
    assert works(model)


def test_a_second_request_is_told_that_the_model_is_busy(model: localmoe.LoadedModel) -> None:
    """With a code to decide by; the first answer goes on."""
    with model.generate("Once", max_tokens=8) as stream:
        next(stream)
        with pytest.raises(EngineBusyError) as caught:
            model.chat("hi").result()
        assert caught.value.code == "busy"
        assert stream.result().finish_reason in ("stop", "length")


def test_a_result_can_be_asked_for_again(model: localmoe.LoadedModel) -> None:
    stream = model.chat("hi", max_tokens=8)
    assert stream.result() is stream.result() is localmoe.result(stream)


def test_the_page_for_web_apps(model: localmoe.LoadedModel) -> None:
    """Its example streams; a client that leaves half-way, or whose task is cancelled, stops it."""
    code = re.search(r"## In a web app.*?```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert code
    names: dict[str, Any] = {}
    exec(code[1], names)
    answer: Callable[..., AsyncIterator[str]] = names["answer"]

    async def visit() -> None:
        whole = "".join([text async for text in answer(model, "What is a router?")])
        assert whole == model.chat("What is a router?").result().answer
        left = answer(model, "What is an expert?")
        await anext(left)
        await left.aclose()  # type: ignore[attr-defined]

        async def read() -> None:
            async for _ in answer(model, "What is an expert?"):
                await asyncio.sleep(0)

        task = asyncio.create_task(read())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert "".join([text async for text in answer(model, "What is a router?")]) == whole

    asyncio.run(visit())


WRONG: dict[str, dict[str, Any]] = {
    "temperature is a number from 0": {"temperature": "0.5"},
    "temperature is a number": {"temperature": None},
    "temperature is": {"temperature": -1},
    "temperature is a": {"temperature": float("nan")},
    "top_p is a number from 0 to 1": {"top_p": 2},
    "top_k is a whole number": {"top_k": -5},
    "top_k is": {"top_k": 2.5},
    "seed is a whole number": {"seed": "x"},
    "max_tokens is a whole number": {"max_tokens": "5"},
    "max_tokens is a whole": {"max_tokens": 0},
    "max_tokens is": {"max_tokens": -1},
    "stop is a list of texts": {"stop": "abc"},
    "repeat_penalty is a number": {"repeat_penalty": 0},
    "files is a list of attachments": {"files": ["a.txt"]},
    "think is one of": {"think": "much"},
    "system is a text": {"system": 5},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_values_are_told(model: localmoe.LoadedModel, message: str) -> None:
    """In the command line's words, before anything is asked of the engine."""
    with pytest.raises(UsageError, match=f"^{message}"):
        model.chat("hi", **WRONG[message])


@pytest.mark.parametrize(
    "prompt", [5, ["hi"], [{"role": "user"}], [{"content": "x"}], [{"role": "user", "content": 5}],
               [{"role": "user", "content": [{"type": "image"}]}]]
)  # fmt: skip
def test_wrong_messages_are_told(model: localmoe.LoadedModel, prompt: Any) -> None:
    with pytest.raises(UsageError):
        model.chat(prompt)


def test_a_message_may_come_in_parts(model: localmoe.LoadedModel) -> None:
    """The parts together are what is asked."""
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "a router?"}]
    done = model.chat([{"role": "user", "content": parts}], max_tokens=24).result()
    assert done.answer == model.chat("What is a router?", max_tokens=24).result().answer


def test_diagnoses_are_true(model: localmoe.LoadedModel, tmp_path: Path) -> None:
    """Of a prompt that no context holds, a turn that is not there, a closed model …"""
    with pytest.raises(ContextOverflowError):
        model.chat("word " * 5_000_000).result()
    with pytest.raises(UsageError, match="nothing was asked"):
        list(model.begin().regenerate())
    with pytest.raises(UsageError, match="text is a text"):
        model.count_tokens(None)  # type: ignore[arg-type]
    assert len(repr(model)) < 200
    wrong: list[dict[str, Any]] = [{"context": "8k"}, {"wishes": {}}, {"context": 0}]
    for arguments in wrong:
        with pytest.raises(UsageError):
            localmoe.load(**arguments)
    with pytest.raises(localmoe.LocalmoeError):
        localmoe.load(tmp_path / "none.gguf")
    with localmoe.load(remember=False) as other:
        pass
    again = (lambda: other.count_tokens("hi"), lambda: list(other.bring_in()))
    for call in (lambda: other.chat("hi"), *again):
        with pytest.raises(EngineError, match="the model is closed"):
            call()


def test_what_a_conversation_and_its_files_are_given(model: localmoe.LoadedModel) -> None:
    """A later turn is checked like a first one, and a path like a name."""
    conversation = model.begin(max_tokens=2)
    for wrong in (None, 5, b"x"):
        with pytest.raises(UsageError, match="the question is a text"):
            list(conversation.ask(wrong))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="is no path"):
            localmoe.read_attachment(wrong)  # type: ignore[arg-type]
    half = localmoe.Attachment("a.txt", b"x")  # type: ignore[arg-type]
    for files in (["a.txt"], [half]):
        with pytest.raises(UsageError, match="files is a list of attachments"):
            list(conversation.ask("x", files))  # type: ignore[arg-type]
    assert localmoe.read_attachment(Path(__file__)).name == "test_embedding.py"
    assert conversation.session.turns == ()
