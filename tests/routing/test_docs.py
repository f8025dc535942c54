"""What docs/routing.md and docs/policies.md say is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np

from localmoe.routing import gating
from localmoe.routing.capacity import counts_of
from localmoe.routing.trace import read_trace
from scripts.policy_table import section
from tests.routing import traces

ROOT = Path(__file__).parents[2]
ROUTING = (ROOT / "docs/routing.md").read_text()


def test_every_family_of_the_catalog_is_in_the_table() -> None:
    """Each that has an architecture in llama.cpp, under that architecture, with a known gating."""
    rows = re.findall(r"^\| ([^|]+) \| ([\w.-]+) \|.*\|$", ROUTING, re.MULTILINE)
    told = {name.strip(): arch for names, arch in rows for name in names.split(",")}
    catalog = tomllib.loads((ROOT / "models/catalog.toml").read_text())["model"]
    checked = 0
    for entry in catalog:
        if entry.get("arch"):
            short = entry["family"].removeprefix("Mixtral ")
            known = told.get(entry["family"]) or told.get(short)
            assert known == entry["arch"], entry["family"]
            assert entry["arch"] in gating._FIXED | gating._FROM_METADATA, entry["family"]
            checked += 1
    assert checked >= 40


def test_the_policy_table_is_what_the_script_writes() -> None:
    """The real trace's part is made anew, digit by digit."""
    trace = read_trace(traces.QWEN3_TRACE)
    expected = "\n".join(section("Qwen3-30B-A3B", trace))
    assert expected in (ROOT / "docs/policies.md").read_text()


def test_layers_twelve_apart_are_alike() -> None:
    """The correlation of loads that the text states: 0.61 at distance 12, near zero below."""
    correlation = np.corrcoef(counts_of(read_trace(traces.QWEN3_TRACE)))
    mean = [float(np.diagonal(correlation, d).mean()) for d in range(13)]
    assert round(mean[12], 2) == 0.61
    assert max(map(abs, mean[1:12])) < 0.07
