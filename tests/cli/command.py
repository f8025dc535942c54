"""The real ``localmoe`` as a subprocess, with a home of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import localmoe
from tests import rates
from tests.forked import forker
from tests.waiting import PATIENCE

COMMAND = [sys.executable, "-m", "localmoe"]
AT_START = ("LD_", "LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING", "GLIBC_", "MALLOC_")
SOURCE = Path(localmoe.__file__).parents[1]


def environment(home: Path, **extra: str) -> dict[str, str]:
    """The caller's environment without what changes answers: caches, colours, widths, speeds."""
    if home.is_dir():
        rates.seed(home)
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("XDG_", "HF_", "HUGGINGFACE_", "LOCALMOE_"))
        and key not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "PYTHONPATH")
    }
    return env | {"HOME": str(home), "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1"} | extra


def run(
    args: Sequence[str | Path],
    env: Mapping[str, str],
    folder: Path,
    stdin: str | int | IO[Any] = subprocess.DEVNULL,
    timeout: float = PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run`` returns for the command.

    It is forked (see ``tests.forked``), unless ``env`` has something that counts when a program
    starts.
    """
    words = [str(arg) for arg in args]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
        _readable(stdin) as file,
    ):
        if any(key.startswith(AT_START) and env[key] != os.environ.get(key) for key in env):
            code = subprocess.run(
                [*COMMAND, *words],
                stdin=file,
                stdout=out,
                stderr=err,
                env=env,
                cwd=folder,
                timeout=timeout,
                check=False,
            ).returncode
        else:
            descriptors = (file.fileno(), out.fileno(), err.fileno())
            code = forker("tests.cli.forked_command").run(words, env, folder, descriptors, timeout)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(args, code, out.read(), err.read())


@contextlib.contextmanager
def _readable(stdin: str | int | IO[Any]) -> Iterator[IO[Any]]:
    """An open file from which a command can read that."""
    if isinstance(stdin, str):
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as file:
            with os.fdopen(writer, "wb") as other:
                other.write(stdin.encode())  # fits into the pipe
            yield file
    elif stdin == subprocess.DEVNULL:
        with Path(os.devnull).open("rb") as file:
            yield file
    else:
        with (
            os.fdopen(os.dup(stdin), "rb")
            if isinstance(stdin, int)
            else contextlib.nullcontext(stdin) as file
        ):
            yield file


class Localmoe:
    """Runs commands in one folder; every run has a time limit."""

    def __init__(self, home: Path) -> None:
        self.home = home
        rates.seed(home)

    def __call__(
        self,
        *args: str | Path,
        stdin: str | int | IO[Any] = subprocess.DEVNULL,
        timeout: float = PATIENCE,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        return run(args, environment(self.home, **env), self.home, stdin, timeout)

    def script(self, name: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """One of our scripts, in the same home."""
        return subprocess.run(
            [sys.executable, str(SOURCE / "scripts" / name), *map(str, args)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            cwd=self.home,
            env=environment(self.home),
            timeout=PATIENCE,
            check=False,
        )

    def shell(self, script: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """A bash line in which ``localmoe`` is the command under test."""
        function = 'localmoe() { "$PYTHON_UNDER_TEST" -m localmoe "$@"; }\n'
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", function + script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            cwd=self.home,
            env=environment(self.home, PYTHON_UNDER_TEST=sys.executable),
            timeout=timeout,
            check=False,
        )

    def document(self, *args: str | Path, code: int = 0, **how: Any) -> dict[str, Any]:
        """The JSON document on stdout of a command that ends with ``code``."""
        done = self(*args, "--json", **how)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        document = json.loads(done.stdout)
        assert document["schema_version"] == 1
        assert isinstance(document, dict)
        return document


def assert_clear_error(
    done: subprocess.CompletedProcess[str], code: int, *fragments: str, hint: bool = True
) -> None:
    """One error line that says what happened, a hint, the exit code; no traceback, no answer."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for fragment in fragments:
        assert fragment.lower() in done.stderr.lower()
    assert ("hint: " in done.stderr) or not hint
