"""The terminal's settings during a chat and after it; $EDITOR; the clipboard."""

from __future__ import annotations

import base64
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from localmoe.errors import UsageError
from localmoe.terminal.console import is_dumb
from localmoe.terminal.watchdog import RESET

HUNG_UP = 128 + signal.SIGHUP
OSC52_LIMIT = 74_994  # bytes of text; what xterm and tmux take at once


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """The terminal's settings are restored when the block ends, after a signal too.

    SIGHUP, unless it is ignored, ends the program by SystemExit with exit code 129.
    """
    before = None
    with contextlib.suppress(termios.error, ValueError, OSError):
        before = termios.tcgetattr(sys.stdin.fileno())
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    if not ignored:
        signal.signal(signal.SIGHUP, _hang_up)
    try:
        yield
    except BaseException:
        if before is not None:
            _write_to_terminal(RESET)
        raise
    finally:
        if before is not None:
            with contextlib.suppress(termios.error, ValueError, OSError):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Within the block typed keys are not echoed; they wait for the next input line.

    Ctrl-C works as ever. Ctrl-Z gives the shell its terminal back as it was; after ``fg`` keys are
    not echoed again. Does nothing where there is no editor: line by line, echo is wanted.
    """
    before = None
    if sys.stdin.isatty() and sys.stdout.isatty() and not is_dumb():
        with contextlib.suppress(termios.error, ValueError, OSError):
            before = termios.tcgetattr(sys.stdin.fileno())
    if before is None:
        yield
        return
    quiet = [*before]
    quiet[0] &= ~termios.ICRNL  # else Enter would reach the editor as Ctrl-J
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    _set(quiet)
    try:
        with _stops(lambda: _set(before), lambda: _set(quiet)):
            yield
    finally:
        _set(before)


@contextlib.contextmanager
def spoken() -> Iterator[None]:
    """Within the block, inside ``hushed``, keys are echoed and lines edited as a shell does it: for
    questions and for other programs.
    """
    quiet = None
    if sys.stdin.isatty():
        with contextlib.suppress(termios.error, ValueError, OSError):
            quiet = termios.tcgetattr(sys.stdin.fileno())
    if quiet is None or quiet[3] & termios.ICANON:
        yield
        return
    usual = [*quiet]
    usual[0] |= termios.ICRNL
    usual[3] |= termios.ECHO | termios.ICANON
    _set(usual)
    try:
        yield
    finally:
        _set(quiet)


def _set(attributes: Any) -> None:
    with contextlib.suppress(termios.error, ValueError, OSError):
        termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, attributes)


@contextlib.contextmanager
def _stops(before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    """Ctrl-Z stops the program as ever; ``before`` is called first, ``after`` when it goes on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        before()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # here the program stops
        signal.signal(signal.SIGTSTP, stop)
        after()

    usual = signal.getsignal(signal.SIGTSTP)
    if usual is not signal.SIG_IGN:
        signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, usual)


def _hang_up(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(HUNG_UP)


def _write_to_terminal(text: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty() and not is_dumb():
            with contextlib.suppress(OSError):
                stream.write(text)
                stream.flush()
            return


def edit(text: str) -> str:
    """``text`` after the user has changed it in $VISUAL or $EDITOR.

    The file is private and deleted afterwards. Raises ``UsageError`` when there is no editor, or
    when it fails.
    """
    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "")
    if not command:
        command = [name for name in ("nano", "vim", "vi") if shutil.which(name)][:1]
    if not command:
        raise UsageError("no editor is known", hint="set EDITOR, such as: export EDITOR=nano")
    with tempfile.TemporaryDirectory(prefix="localmoe-") as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            with spoken():
                status = subprocess.run([*command, str(path)], check=False).returncode
        except OSError as error:
            raise UsageError(
                f"cannot start the editor {command[0]}: {error.strerror}", hint="set EDITOR"
            ) from error
        if status:
            raise UsageError(f"the editor {command[0]} ended with {status}; nothing is changed")
        return path.read_text(encoding="utf-8", errors="replace").strip("\n")


CLIPBOARDS = (  # (environment variable that must be set, command)
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
    ("", ("pbcopy",)),
    ("WSL_DISTRO_NAME", ("clip.exe",)),
)


def copy(text: str, terminal: IO[str]) -> str:
    """Put ``text``, which must be clean, into the clipboard; returns by which way.

    Without a program for it the terminal itself is asked (OSC 52), which works over ssh too.
    Raises UsageError if neither is there, or the text is too long.
    """
    remote = bool(os.environ.get("SSH_CONNECTION"))
    for variable, command in CLIPBOARDS:
        if remote or (variable and not os.environ.get(variable)) or not shutil.which(command[0]):
            continue
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                command,
                input=text.encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=3,
                check=True,
            )
            return f"by {command[0]}"
    data = text.encode()
    if not terminal.isatty() or is_dumb():
        raise UsageError("there is no clipboard here", hint="/save FILE.md writes it to a file")
    if len(data) > OSC52_LIMIT:
        raise UsageError(
            f"too long for the terminal's clipboard: {len(data):,} bytes",
            hint="/save FILE.md writes it to a file",
        )
    sequence = f"\x1b]52;c;{base64.b64encode(data).decode()}\x07"
    if os.environ.get("TMUX"):
        inner = sequence.replace("\x1b", "\x1b\x1b")
        sequence = f"\x1bPtmux;{inner}\x1b\\"
    terminal.write(sequence)
    terminal.flush()
    return "by the terminal"
