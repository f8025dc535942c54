"""Reading a prompt from stdin: closed, open, silent, slow, binary."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator

import pytest

from localmoe.errors import UsageError
from localmoe.terminal import piped_input
from localmoe.terminal.piped_input import PipedInput

Pipe = tuple[int, io.FileIO]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """The reading end as a number, the writing end as a file."""
    reader, writer = os.pipe()
    with io.FileIO(writer, "w") as file:
        yield reader, file
    os.close(reader)


def test_all_of_it(pipe: Pipe) -> None:
    """Text to the end, in any number of pieces; a byte order mark and CR LF are not text."""
    reader, writer = pipe
    writer.write(b"\xef\xbb\xbfa\xc3")
    writer.write(b"\xbc\r\nb")
    writer.close()
    assert PipedInput(reader).text() == "aü\nb"


def test_empty(pipe: Pipe) -> None:
    """End of input at once is the empty text, not a wait."""
    reader, writer = pipe
    writer.close()
    assert PipedInput(reader).text(patience=30) == ""


def test_an_open_silent_pipe_is_not_waited_for(pipe: Pipe) -> None:
    """A pipe that nobody writes to, and nobody closes, does not hang a prompt."""
    assert PipedInput(pipe[0]).text(patience=0.1) is None


def test_a_slow_writer_is_waited_for_once_it_has_begun(pipe: Pipe) -> None:
    """Half a text is never taken for all of it."""
    reader, writer = pipe
    writer.write(b"one ")
    piped = PipedInput(reader)

    def finish() -> None:
        time.sleep(0.3)
        writer.write(b"two")
        writer.close()

    threading.Thread(target=finish).start()
    assert piped.text(patience=0.1) == "one two"


def test_binary_is_refused(pipe: Pipe) -> None:
    """NUL bytes are no prompt."""
    reader, writer = pipe
    writer.write(b"\x7fELF\x00\x00")
    writer.close()
    with pytest.raises(UsageError, match="not text"):
        PipedInput(reader).text()


def test_endless_input_is_refused(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """``yes |`` ends with an error, not with all memory."""
    monkeypatch.setattr(piped_input, "STDIN_LIMIT", 1 << 20)
    reader, writer = pipe
    stop = threading.Event()

    def shout() -> None:
        while not stop.is_set():
            try:
                writer.write(b"y\n" * 4096)
            except (OSError, ValueError):
                return

    threading.Thread(target=shout, daemon=True).start()
    try:
        with pytest.raises(UsageError, match="longer than 1 MiB"):
            PipedInput(reader).text()
    finally:
        stop.set()
