"""A machine that counts as measured, so that forecasts of commands cost no time in tests."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

from localmoe.engine.builds import binding_version
from localmoe.facts import bandwidth, hardware
from tests.planning.rates import RATES


def seed(home: Path) -> None:
    """Invented speeds, the disk's too, for commands whose home folder that is."""
    file = home / ".cache" / "localmoe" / "rates.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        (disk,) = RATES.disk
        here = dataclasses.replace(disk, where=bandwidth.disk_of(home))
        rates = bandwidth.to_json(dataclasses.replace(RATES, disk=(here,)))
        file.write_text(json.dumps({"key": _key(), "rates": rates}))


@cache
def _key() -> str:
    return bandwidth.key_of(hardware.detect(()), binding_version())
