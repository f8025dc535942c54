"""The command on a machine that a preloaded library makes another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.command import Localmoe
from tests.waiting import PATIENCE

PROMPT = "A mixture of experts has many small networks and a router. " * 2
TIGHT = ("--cache", "private", "--cache-ram", "0.002")
PAGE = ("--cache", "page", "-b", "8")
OFF = ("--cache", "off", "-b", "8")


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    regime: str
    misses: int | None


@dataclass(frozen=True, slots=True)
class System:
    """The command on a machine that a preloaded library makes another."""

    localmoe: Localmoe
    library: Path | None = None

    def run(self, path: Path, *options: str, **environment: str) -> dict[str, Any]:
        """The JSON document of a greedy answer, an error's too."""
        if self.library is not None:
            environment["LD_PRELOAD"] = str(self.library)
        done = self.localmoe(
            "run", path, PROMPT, "--plain", "--temp", "0", "-n", "12", "-t", "2", "--json",
            "--no-history", *options, timeout=PATIENCE, **environment,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def answer(self, path: Path, *options: str, **environment: str) -> Answer:
        document = self.run(path, *options, **environment)
        assert "error" not in document, document
        cache = document["cache"]
        return Answer(document["text"], cache["regime"], cache["misses"])

    def answer_without_cache(self, path: Path) -> Answer:
        return self.answer(path, *OFF)
