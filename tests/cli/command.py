"""The real ``localmoe`` as a subprocess, with a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import localmoe
from tests import rates

COMMAND = [sys.executable, "-m", "localmoe"]
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


class Localmoe:
    """Runs commands in one folder; every run has a time limit."""

    def __init__(self, home: Path) -> None:
        self.home = home
        rates.seed(home)

    def __call__(
        self,
        *args: str | Path,
        stdin: str | int | IO[Any] = subprocess.DEVNULL,
        timeout: float = 120,
        program: Sequence[str] = COMMAND,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        text = {"input": stdin} if isinstance(stdin, str) else {"stdin": stdin}
        return subprocess.run(
            [*program, *map(str, args)],
            **text,
            capture_output=True,
            encoding="utf-8",
            cwd=self.home,
            env=environment(self.home, **env),
            timeout=timeout,
            check=False,
        )

    def script(self, name: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
        """One of our scripts, in the same home."""
        return self(*args, program=(sys.executable, str(SOURCE / "scripts" / name)))

    def shell(self, script: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
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
