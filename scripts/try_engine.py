"""Another version of llama-cpp-python: which parts of localmoe break with it.

    python -m scripts.try_engine VERSION [--keep FOLDER] [--limit MINUTES] [--skip LINES]

Makes an environment that is thrown away (--keep: that stays, and is used again), compiles the
engine there, and runs the tests that docs/engine-upgrade.md lists, line by line. Where no test ends
within the limit the line is ended, with all that it started. Exits with 1 if one fails or hangs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/engine-upgrade.md"
PACKAGE = "llama-cpp-python"
TEST = re.compile(r"`(tests/[\w/.]+(?:::\w+)?)`( \(soak\))?")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the page: what localmoe rests on, and the tests that guard it."""

    what: str
    tests: tuple[str, ...]


def lines(page: str) -> Iterator[Line]:
    """The lines of the page's table."""
    for row in page.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        if row.startswith("| ") and len(cells) == 3 and (found := TEST.findall(cells[2])):
            yield Line(cells[0].removeprefix("| "), tuple(test for test, _ in found))


def requirements() -> list[str]:
    """What localmoe and its tests need, the engine excepted."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [need for need in needed if not need.startswith(PACKAGE)]


def prepared(folder: Path, version: str) -> Path:
    """The Python of an environment with that engine and this source. Raises CalledProcessError."""
    python = folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    for what in (
        requirements(),
        [f"{PACKAGE}=={version}"],
        ["--no-deps", "--editable", str(ROOT)],
    ):
        subprocess.run([*pip, *what], check=True)
    return python


def failures(python: Path, tests: Sequence[str], limit: float) -> list[str]:
    """What is wrong with tests of which each may take ``limit`` seconds; see ``verdict``."""
    command = [str(python), "-m", "pytest", "-n", "0", "-m", "", "-vv", "--tb=no", *tests]
    with tempfile.TemporaryFile("w+") as output:
        running = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        code, said, since = None, 0, time.monotonic()
        while code is None and time.monotonic() - since < limit:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = running.wait(1)
            if (size := os.fstat(output.fileno()).st_size) != said:
                said, since = size, time.monotonic()
        if code is None:
            end_all(running.pid)
            running.wait()
        output.seek(0)
        return verdict(code, output.read().splitlines())


def verdict(code: int | None, said: Sequence[str]) -> list[str]:
    """What pytest says of tests that fail; of tests that cannot even begin, its last words.

    ``code`` is its exit status; None: it was ended, and one test was under way.
    """
    if code == 0:
        return []
    if code is None:
        under_way = next((line for line in reversed(said) if "::" in line), "nothing yet")
        failed = [f"FAILED {line.split()[0]}" for line in said if " FAILED" in line]
        return [*failed, f"HANGS  {under_way.split()[0]}"]
    return [line for line in said if line.startswith(("FAILED", "ERROR"))] or list(said[-3:])


def end_all(pid: int) -> None:
    """Kill a process and all that it started: what has a session of its own is found, too."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for each in [top, *top.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def main() -> int:
    """Parse the command line, install, test, print; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", help="of llama-cpp-python, such as 0.3.35")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="of the environment")
    parser.add_argument(
        "--limit", type=float, default=15, metavar="MINUTES", help="for each test; 15 by default"
    )
    parser.add_argument("--skip", type=int, default=0, metavar="LINES", help="of the table")
    args = parser.parse_args()
    broken = 0
    with tempfile.TemporaryDirectory() as scratch:
        try:
            python = prepared(args.keep or Path(scratch) / "venv", args.version)
        except subprocess.CalledProcessError as error:
            print(f"{PACKAGE} {args.version} cannot be installed: {error}", file=sys.stderr)
            return 1
        for line in list(lines(PAGE.read_text("utf-8")))[args.skip :]:
            failed = failures(python, line.tests, 60 * args.limit)
            broken += bool(failed)
            print(f"{'BREAKS' if failed else 'holds '} {line.what}", flush=True)
            for text in failed:
                print(f"         {text}", flush=True)
    print(f"{PACKAGE} {args.version}: {broken} lines break")
    return int(broken > 0)


if __name__ == "__main__":
    raise SystemExit(main())
