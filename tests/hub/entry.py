"""``localmoe`` with the commands ``pull`` and ``rm``, wherever the entry point lacks them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields

from localmoe.cli import arguments
from localmoe.cli import main as entry
from localmoe.cli.arguments import Options


@dataclass(frozen=True, slots=True)
class Asked(Options):
    yes: bool = False


def parse(argv: Sequence[str]) -> Options:
    """As ``fit`` is parsed, with ``--yes``."""
    words = [word for word in argv if word != "--yes"]
    command = words[0]
    options = arguments.parse(["fit", *words[1:]])
    given = {field.name: getattr(options, field.name) for field in fields(options)}
    return Asked(**given | {"command": command}, yes="--yes" in argv)


if __name__ == "__main__":
    if "pull" not in entry.HANDLERS:
        entry.HANDLERS["pull"] = ("localmoe.cli.pull", "pull_command")
        entry.HANDLERS["rm"] = ("localmoe.cli.rm", "rm_command")
        vars(entry)["parse"] = parse
    sys.exit(entry.main())
