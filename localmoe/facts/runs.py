"""What real runs showed of speed: measured ÷ forecast, one line per run in a small file of ours.

Names of models and ratios only; nothing of what was asked or answered.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from localmoe import kept, storage

MOST = 300  # runs that are kept, the newest
MAX_FILE = 1 << 20  # bytes; one of 300 runs has about 60 KB
PATIENCE = 2.0  # seconds to wait for another process that writes


@dataclass(frozen=True, slots=True)
class Ran:
    """One answer. ``decode`` and ``prefill`` are measured ÷ forecast seconds.

    None where too few tokens were computed to tell.
    """

    machine: str  # ``bandwidth.key_of``
    model: str  # ``model_key``
    regime: str  # how its experts were served, and where it was placed
    decode: float | None
    prefill: float | None


def path() -> Path:
    """The file in which runs are kept."""
    return storage.state_dir() / "speeds.jsonl"


def load(machine: str) -> list[Ran]:
    """The runs kept for a machine (``bandwidth.key_of``), oldest first, but for damaged lines."""
    try:
        with path().open("rb") as file:
            lines = file.read(MAX_FILE).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(*kept.DAMAGED):
            ran = _from_json(kept.parse(line))
            if ran.machine == machine:
                found.append(ran)
    return found


def add(ran: Ran) -> None:
    """Keep one more run. Raises StorageError, or Timeout when another process has the file."""
    storage.private_dir(path().parent)
    with FileLock(f"{path()}.lock", timeout=PATIENCE):
        try:
            lines = path().read_bytes()[-MAX_FILE:].splitlines()[1 - MOST :]
        except OSError:
            lines = []
        lines.append(json.dumps(asdict(ran), separators=(",", ":")).encode())
        storage.atomic_write(path(), b"\n".join(lines) + b"\n")


def ratios(runs: Sequence[Ran], what: str) -> list[float]:
    """The known ratios of ``runs``; ``what`` is "decode" or "prefill"."""
    return [value for ran in runs if (value := getattr(ran, what)) is not None]


def _from_json(document: Any) -> Ran:
    return Ran(
        machine=kept.text(document["machine"], 80),
        model=kept.text(document["model"], 200),
        regime=kept.text(document["regime"], 400),
        decode=_ratio(document["decode"]),
        prefill=_ratio(document["prefill"]),
    )


def _ratio(value: Any) -> float | None:
    if value is None:
        return None
    ratio = kept.number(value)
    if not 0 < ratio < 1e6:
        raise ValueError(value)
    return ratio
