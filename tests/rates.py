"""A machine that counts as measured, so that forecasts of commands cost no time in tests."""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

from localmoe.engine.package import binding_version
from localmoe.facts import bandwidth, hardware
from localmoe.facts.bandwidth import Rates, TypeRate
from tests.planning.rates import RATES

QUICK = 5e10  # of everything that is multiplied: a large model answers without haste


def with_kernels(figure: float) -> Rates:
    """Invented rates of a machine whose kernels all reach ``figure``."""
    kind = TypeRate(**{field.name: ((1.0, figure),) for field in dataclasses.fields(TypeRate)})
    return dataclasses.replace(RATES, types=dict.fromkeys(RATES.types, kind))


def seed(home: Path, cache: Path | None = None) -> None:
    """Invented speeds, the disk's too, for commands whose home folder that is.

    ``cache``: where the cache folder is, if not below ``home`` as usual.
    """
    file = (cache or home / ".cache" / "localmoe") / "rates.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        rates = with_kernels(QUICK)
        (disk,) = rates.disk
        here = dataclasses.replace(disk, where=bandwidth.disk_of(home))
        document = bandwidth.to_json(dataclasses.replace(rates, disk=(here,)))
        file.write_text(json.dumps({"key": _key(), "rates": document}))


@cache
def _key() -> str:
    return bandwidth.key_of(hardware.detect(()), binding_version())
