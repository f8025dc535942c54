"""How long a person waits: for a start, for the input line of a chat, and after Ctrl-C.

    python scripts/bench_startup.py                    # a small generated model
    python scripts/bench_startup.py big.gguf --runs 3  # a model of yours

Medians of fresh processes. A chat runs in a pseudo-terminal; its time ends when the prompt is on
the screen. Ctrl-C is pressed while the model loads, reads a long prompt, and answers; then twice,
which must leave with 130 and the terminal's settings as they were.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pexpect

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.archs import generate
from tests.chat.templates import CHATML
from tests.cli.command import environment

LOCALMOE = (sys.executable, "-m", "localmoe")
PROMPT = re.compile(r"\x1b\[\?2004h(?:(?!\x1b\[\?2004l).)*>", re.DOTALL)
CTRL_C = b"\x03"
LIMIT = 30.0  # seconds for anything
LEAST_IMPORT = 4000  # microseconds


class Failed(Exception):  # noqa: N818 - a measurement that did not come about
    """What was waited for did not come."""


class Chat:
    """``localmoe chat`` in a terminal, watched closely."""

    def __init__(self, home: Path, *args: str, python: Sequence[str] = ()) -> None:
        env = environment(home, TERM="xterm-256color")
        command = [sys.executable, *python, "-m", "localmoe", "chat", *args]
        self.began = time.monotonic()
        self._child = pexpect.spawn(
            command[0], command[1:], env=env, cwd=str(home), dimensions=(24, 80)
        )
        self.raw = ""
        self._seen = 0  # of raw, when a key was pressed last
        self._modes = termios.tcgetattr(self._child.child_fd)

    def wait(self, pattern: str | re.Pattern[str]) -> float:
        """The moment when it shows this, after the last key."""
        end = time.monotonic() + LIMIT
        while not re.search(pattern, self.raw[self._seen :]):
            if time.monotonic() > end or not self._read(end):
                raise Failed(f"no {pattern!r} in:\n{self.raw[self._seen :]}")
        return time.monotonic()

    def press(self, keys: bytes) -> float:
        self._seen = len(self.raw)
        os.write(self._child.child_fd, keys)
        return time.monotonic()

    def exit_code(self) -> int:
        while self._read(time.monotonic() + LIMIT):
            pass
        self._child.wait()
        return int(self._child.exitstatus if self._child.exitstatus is not None else -1)

    @property
    def restored(self) -> bool:
        """Whether the terminal has the settings of the beginning."""
        return termios.tcgetattr(self._child.child_fd) == self._modes

    def close(self) -> None:
        self._child.close(force=True)

    def _read(self, end: float) -> bool:
        ready, _, _ = select.select([self._child.child_fd], [], [], max(0, end - time.monotonic()))
        try:
            data = os.read(self._child.child_fd, 65536) if ready else b""
        except OSError:  # the other end is closed
            data = b""
        self.raw += data.decode(errors="replace")
        return bool(data)


@contextmanager
def chat(home: Path, *args: str, python: Sequence[str] = ()) -> Iterator[Chat]:
    running = Chat(home, *args, python=python)
    try:
        yield running
    finally:
        running.close()


@dataclass(frozen=True, slots=True)
class Bench:
    """One model, in a home of its own."""

    home: Path
    model: str
    document: Path  # a text that takes long to read

    def start(self, option: str) -> float:
        """Seconds from the command to its end."""
        began = time.monotonic()
        subprocess.run(
            [*LOCALMOE, option], env=environment(self.home), stdout=subprocess.DEVNULL, check=True
        )
        return time.monotonic() - began

    def input_line(self) -> float:
        """Seconds until the input line is there."""
        with chat(self.home, self.model) as running:
            return running.wait(PROMPT) - running.began

    def cancel(self, under_way: str, *args: str, told: str) -> float:
        """Seconds from Ctrl-C to the next prompt; pressed when the screen shows ``under_way``."""
        with chat(self.home, self.model, *args) as running:
            running.wait(PROMPT if under_way == LOADING else ATTACHED if args else CARD)
            running.press(b"Write a long story.\r")
            running.wait(under_way)
            pressed = running.press(CTRL_C)
            running.wait(told)
            return running.wait(PROMPT) - pressed

    def load(self) -> float:
        return self.cancel(LOADING, told="begins it again")

    def prefill(self) -> float:
        return self.cancel("reading ·", "-f", str(self.document), told="interrupted")

    def decode(self) -> float:
        return self.cancel(ANSWERING, told="what is there is kept")

    def leave(self) -> float:
        """Seconds from the second Ctrl-C in an answer to the end."""
        with chat(self.home, self.model) as running:
            running.wait(CARD)
            running.press(b"Write a long story.\r")
            running.wait(ANSWERING)
            running.press(CTRL_C)
            time.sleep(0.05)  # sooner than a hand, and not so soon that two signals become one
            pressed = running.press(CTRL_C)
            code = running.exit_code()
            took = time.monotonic() - pressed
            if code != 130 or not running.restored:
                raise Failed(f"exit code {code}, terminal restored: {running.restored}")
            return took

    def imports(self, *args: str) -> list[tuple[float, str]]:
        """(milliseconds by itself, module) of a fresh start, the slowest first."""
        if args == ("chat",):
            with chat(self.home, self.model, python=("-X", "importtime")) as running:
                running.wait(PROMPT)
                text = running.raw
        else:
            command = [sys.executable, "-X", "importtime", "-m", "localmoe", *args]
            text = subprocess.run(
                command, env=environment(self.home), capture_output=True, text=True, check=True
            ).stderr
        found = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", text)
        slow = [(int(own) / 1000, name) for own, name in found if int(own) >= LEAST_IMPORT]
        return sorted(slow, reverse=True)


LOADING = "planning|loading"
ANSWERING = "\x1b7"  # the cursor is saved before the word under way
BACK = r"(?s:.*)\x1b\[\?2004h(?s:.*?)>"  # and then the input line again
CARD, ATTACHED = f"Ctrl-D leaves{BACK}", f"goes with your next message{BACK}"
GOALS = {  # milliseconds
    "--version": 100,
    "--help": 200,
    "input line of a chat": 500,
    "Ctrl-C during load": 300,
    "Ctrl-C during prefill": 300,
    "Ctrl-C during decode": 300,
    "Ctrl-C twice, to the end": 300,
}


def measurements(bench: Bench) -> dict[str, Callable[[], float]]:
    actions = (
        lambda: bench.start("--version"),
        lambda: bench.start("--help"),
        bench.input_line,
        bench.load,
        bench.prefill,
        bench.decode,
        bench.leave,
    )
    return dict(zip(GOALS, actions, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", nargs="?", help="a model (default: a small generated one)")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--only", default="", metavar="TEXT", help="lines that have this text")
    parser.add_argument("--imports", action="store_true", help="list the slowest imports too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="localmoe-startup-") as folder:
        home = Path(folder)
        document = home / "long.txt"
        model = options.model or str(generate("qwen3moe", home, template=CHATML))
        document.write_text("A sentence that is here to be read. " * 400, encoding="utf-8")
        model = str(Path(model).absolute()) if Path(model).exists() else model
        bench = Bench(home, model, document)
        bench.start("--help")  # the bytecode is written
        print(f"{'':<26}{'median':>8}{'least':>8}{'most':>8}{'goal':>8}  ms, {options.runs} runs")
        for name, measure in measurements(bench).items():
            if options.only not in name:
                continue
            times = [1000 * measure() for _ in range(options.runs)]
            row = (statistics.median(times), min(times), max(times), float(GOALS[name]))
            print(f"{name:<26}" + "".join(f"{value:>8.0f}" for value in row), flush=True)
        for args in (("--version",), ("--help",), ("chat",)) if options.imports else ():
            print(f"\nimports of {' '.join(args)}, from {LEAST_IMPORT / 1000:.0f} ms on")
            for own, name in bench.imports(*args):
                print(f"  {own:>6.1f}  {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
