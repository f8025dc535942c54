"""Pictures of localmoe at work, for the README and the docs: the real program in a terminal.

    python scripts/make_screens.py              # all of them, to docs/pictures
    python scripts/make_screens.py chat help    # those whose names begin so

Everything is what the program wrote, with ``nano`` and on the machine that the script runs on. Two
things are arranged: ``answer`` shows text that is scripted, since nano writes neither code nor
tables; and the large models of ``fit`` and ``plan`` are stand-ins with a real header and a hole
for the weights. ``chat.cast`` is a recording of a chat (asciicast v2, as asciinema plays it).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import make_standin
from scripts.terminal_svg import Line, screen_of, svg, text_of, typed
from tests.cli.chat.terminal import Terminal
from tests.cli.command import environment

PICTURES = Path(__file__).resolve().parents[1] / "docs/pictures"
ROWS = 100  # of the terminal: more than any of these screens has
CAST_SIZE = (80, 24)
LARGE = "gpt-oss-120b"
LOCALMOE = ("-m", "localmoe")
QUESTION = "What is a mixture of experts?"
SCRIPTED = """\
Sum of squares, **two ways**:

1. a loop, which everybody can read
2. `numpy`, about *50 times* faster ([docs](https://numpy.org/doc/stable/))

```python
def loop(values: list[float]) -> float:
    total = 0.0
    for value in values:  # one at a time
        total += value**2
    return total
```

| way    | 1,000 values | 1,000,000 values |
|--------|-------------:|-----------------:|
| loop   |      0.06 ms |            61 ms |
| numpy  |     0.002 ms |           1.1 ms |
"""

Act = Callable[[Terminal], None]


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture per width: the command line, what is typed into it, and what is shown of it."""

    name: str
    title: str
    command: str  # as a user would type it; it stands above the picture
    arguments: Sequence[str]  # of Python
    act: Act
    columns: Sequence[int] = (80,)
    rows: int = ROWS
    start: str = ""  # the line with this text is the first that is shown
    end: str = ""  # and the line before the one with this text the last


def ended(terminal: Terminal) -> None:
    """A command that ends by itself."""
    code = terminal.exit_code()
    assert code == 0, terminal.text


def first_turn(terminal: Terminal) -> None:
    terminal.prompt()
    terminal.wait("context")
    terminal.say(QUESTION)
    terminal.turns(1)


def help_text(terminal: Terminal) -> None:
    terminal.prompt()
    terminal.wait("context")
    terminal.say("/help")
    terminal.wait("/exit")
    terminal.prompt()


def experts(terminal: Terminal) -> None:
    first_turn(terminal)
    terminal.say("/experts")
    terminal.wait("last answer:")
    terminal.prompt()


def scripted_answer(terminal: Terminal) -> None:
    terminal.prompt()
    terminal.wait("tiny")
    terminal.say("How do I sum squares?")
    terminal.turns(1)


def shots() -> list[Shot]:
    large = f"{LARGE}.gguf"
    scripted = json.dumps([[SCRIPTED[i : i + 5] for i in range(0, len(SCRIPTED), 5)]])
    wide = (40, 80, 160)

    def localmoe(line: str) -> tuple[str, tuple[str, ...]]:
        return f"localmoe {line}", (*LOCALMOE, *line.split())

    run = (*LOCALMOE, "run", QUESTION)
    return [
        Shot("chat", "A chat begins", *localmoe("chat nano"), first_turn, wide, end="$LAST"),
        Shot("help", "The commands of a chat", *localmoe("chat nano"), help_text, wide,
             start="> /help", end="$LAST"),
        Shot("experts", "Where the experts of an answer came from", *localmoe("chat nano"),
             experts, start="> /experts", end="$LAST"),
        Shot("answer", "An answer with code and a table (scripted)", "",
             ("-m", "tests.cli.chat.scripted_chat", scripted, "0.002"), scripted_answer, wide,
             start="> How do I", end="tok/s"),
        Shot("run", "One answer", f'localmoe run "{QUESTION}"', run, ended),
        Shot("fit", "Whether a model fits", *localmoe(f"fit {large}"), ended, wide),
        Shot("plan", "The placement, layer by layer",
             *localmoe(f"plan {large} --ram 32 --vram 12"), ended, (80, 160), 24,
             end="the same as llama.cpp flags"),
    ]  # fmt: skip


def picture(shot: Shot, columns: int, home: Path) -> str:
    """Play the shot and draw it."""
    terminal = Terminal(home, *shot.arguments, columns=columns, rows=shot.rows)
    try:
        shot.act(terminal)
        lines = screen_of(terminal.raw, columns, ROWS)
    finally:
        terminal.child.close(force=True)
    shown = cropped(lines, shot)
    head = typed(shot.command, columns) if shot.command and not shot.start else []
    return svg([*head, *shown], columns, shot.title)


def cropped(lines: Sequence[Line], shot: Shot) -> list[Line]:
    """From ``start`` to before ``end``; ``$LAST`` is the empty input line at the end."""
    texts = [text_of(line) for line in lines]
    first = next(i for i, text in enumerate(texts) if shot.start in text)
    last = len(texts)
    if shot.end == "$LAST":
        last -= texts[-1].strip() == ">"
    elif shot.end:
        last = next(i for i, text in enumerate(texts) if i > first and shot.end in text)
    while last > first and not texts[last - 1].strip():
        last -= 1
    return list(lines[first:last])


class Recorder(Terminal):
    """A terminal that notes when what was written."""

    def __init__(self, home: Path, *args: str) -> None:
        columns, rows = CAST_SIZE
        self.events: list[tuple[float, str, str]] = []
        self._began = time.monotonic()
        super().__init__(home, *args, columns=columns, rows=rows)

    def _read(self) -> bool:
        before = len(self.raw)
        alive = super()._read()
        if self.raw[before:]:
            now = round(time.monotonic() - self._began, 3)
            self.events.append((now, "o", self.raw[before:]))
        return alive

    def type_slowly(self, text: str) -> None:
        for letter in text:
            self.type(letter)
            end = time.monotonic() + 0.05
            while time.monotonic() < end:
                self._read()

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._read()


def recording(home: Path) -> str:
    """A chat as asciicast v2 (https://docs.asciinema.org/manual/asciicast/v2/)."""
    terminal = Recorder(home, *LOCALMOE, "chat", "nano")
    try:
        terminal.prompt()
        terminal.wait("context")
        for number, line in enumerate((QUESTION, "What is a router?"), start=1):
            terminal.type_slowly(line)
            terminal.type("\r")
            terminal.turns(number)
            terminal.pause(1.5)
        for line in ("/experts", "/context"):
            terminal.type_slowly(line)
            terminal.type("\r")
            terminal.pause(2)
        terminal.type_slowly("/exit")
        terminal.type("\r")
        terminal.exit_code()
    finally:
        terminal.child.close(force=True)
    width, height = CAST_SIZE
    header = {"version": 2, "width": width, "height": height, "title": "localmoe chat nano"}
    return "".join(f"{json.dumps(entry)}\n" for entry in (header, *terminal.events))


def measure(home: Path) -> Path:
    """Let localmoe measure this machine, in a home with a large model; where it noted the speeds.

    ``Terminal`` is made for tests: it gives a home without such a note one that is invented.
    """
    env = environment(home)  # as long as there is no folder, it gets nothing
    home.mkdir()
    make_standin.main([LARGE, "--header-only", "-o", str(home / f"{LARGE}.gguf")])
    command = [sys.executable, *LOCALMOE, "fit", f"{LARGE}.gguf", "--json"]
    subprocess.run(command, cwd=home, env=env, stdout=subprocess.DEVNULL, check=True)
    (note,) = home.rglob("rates.json")
    return note


def fresh_home(folder: Path, rates: Path) -> Path:
    """A home where nothing was run before: forecasts learn from runs."""
    home = Path(tempfile.mkdtemp(dir=folder))
    note = home / ".cache/localmoe/rates.json"
    note.parent.mkdir(parents=True)
    note.write_bytes(rates.read_bytes())
    return home


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="beginnings of names; none: all")
    parser.add_argument("-o", "--output", type=Path, default=PICTURES, metavar="FOLDER")
    options = parser.parse_args(arguments)

    def wanted(name: str) -> bool:
        return not options.names or any(name.startswith(n) for n in options.names)

    options.output.mkdir(parents=True, exist_ok=True)
    chosen = [shot for shot in shots() if wanted(shot.name)]
    with tempfile.TemporaryDirectory(prefix="localmoe-screens-") as folder:
        large = Path(folder) / "large"
        rates = measure(large)
        for shot in chosen:
            for columns in shot.columns:
                place = large if LARGE in shot.command else fresh_home(Path(folder), rates)
                path = options.output / f"{shot.name}-{columns}.svg"
                path.write_text(picture(shot, columns, place), encoding="utf-8")
                print(path)
        if wanted("cast"):
            path = options.output / "chat.cast"
            path.write_text(recording(fresh_home(Path(folder), rates)), encoding="utf-8")
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
