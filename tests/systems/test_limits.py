"""Limits of the system: memory mappings, address space, files that cannot be mapped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.make_standin import make_standin
from tests.archs import qwen
from tests.archs.families import Q8_0, Family
from tests.archs.recipe import Dims
from tests.cli.command import COMMAND, Localmoe, environment
from tests.systems.shims import shim
from tests.systems.test_reads_and_pages import OFF, PROMPT, System

pytestmark = pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux")


# ---- mappings --------------------------------------------------------------------------------


@pytest.mark.parametrize("places", ["17", "40"])
def test_no_more_mappings_are_to_be_had(
    places: str, arch_file: Callable[[str], Path], localmoe: Localmoe, libraries: Path, tmp_path: Path
) -> None:
    """Where the system refuses another mapping, the place of an expert that is there is reused."""
    refused = tmp_path / "refused"
    plain = System(localmoe).answer(arch_file("qwen3moe"), *OFF)
    cached = System(localmoe, shim("mappings", libraries)).answer(
        arch_file("qwen3moe"),
        *("--cache", "private", "--cache-ram", "0.006", "-b", "8"),
        PLACES=places,
        REFUSED=str(refused),
    )
    assert (cached.text, cached.regime) == (plain.text, "private")
    assert Counter(refused.read_text().splitlines())["mmap"] > 0


def test_a_low_limit_of_mappings_is_planned_for(tmp_path: Path) -> None:
    """More experts than the limit allows: fewer are kept in memory, the plan says why, and the
    answer is that of ``--cache off``."""
    dims = Dims(
        layers=12, embd=64, heads=2, head_dim=32, experts=1024, used=8, expert_ff=32, context=1024
    )
    path = make_standin(Family(qwen.qwen3moe, dims, Q8_0), tmp_path / "many.gguf", uniform=True)
    limit = tmp_path / "max_map_count"
    limit.write_text("7000\n")

    def limited(*options: str) -> dict[str, dict[str, str]]:
        command = [*COMMAND, *map(str, options), "--json"]
        script = f'mount --bind {limit} /proc/sys/vm/max_map_count && exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *command],
            capture_output=True,
            text=True,
            env=environment(tmp_path),
            timeout=240,
        )
        if "unshare" in done.stderr or "mount:" in done.stderr:
            pytest.skip(f"no mounts of our own: {done.stderr.strip()}")
        document: dict[str, dict[str, str]] = json.loads(done.stdout)
        return document

    private = ("--cache", "private", "--cache-ram", "1", "-b", "64", "-c", "512")
    plan = limited("plan", str(path), *private)
    assert "max_map_count" in plan["cache"]["why"]
    ask = (PROMPT, "--plain", "--temp", "0", "-n", "12", "-t", "1", "--no-history")
    cached = limited("run", str(path), *ask, *private)
    plain = limited("run", str(path), *ask, "--cache", "off", "-b", "64", "-c", "512")
    assert cached["cache"]["regime"] == "private"
    assert cached["text"] == plain["text"]
