"""Kernels, file systems and limits unlike this machine's: the same words as with ``--cache off``.

The installed command runs on a model file, with a library preloaded that behaves like such a
system, or under such a limit.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.engine.native import native_path
from localmoe.facts.model import read_model
from localmoe.planning.cache import routed_tensors
from tests.cli.command import Localmoe
from tests.systems.shims import shim
from tests.systems.system import PAGE, PROMPT, TIGHT, Answer, System

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]


# ---- pages of 16 and 64 KiB ------------------------------------------------------------------


@pytest.mark.parametrize("size", ["16384", "65536"])
@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss", "phimoe"])
def test_larger_pages(
    size: str,
    architecture: str,
    arch_file: Callable[[str], Path],
    localmoe: Localmoe,
    libraries: Path,
    tmp_path: Path,
    plain: Callable[[Path], Answer],
) -> None:
    """Private and page answer as off does, and nothing is asked of the kernel that it refuses."""
    path, refused = arch_file(architecture), tmp_path / "refused"
    system = System(localmoe, shim("pages", libraries))
    large = {"PAGES": size, "REFUSED": str(refused)}
    private = system.answer(path, "--cache", "private", "--cache-ram", "0.004", "-b", "8", **large)
    page = system.answer(path, *PAGE, **large)
    assert not refused.exists(), Counter(refused.read_text().splitlines())
    assert private.text == page.text == plain(path).text != ""
    assert (private.regime, page.regime) == ("private", "page")
    assert private.misses


# ---- direct reads that fail ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "rate"),
    [
        ("EINVAL", "100"),
        ("EINVAL", "30"),
        ("EOPNOTSUPP", "100"),
        ("EIO", "30"),
        ("short", "100"),
        ("torn", "30"),
        ("slow", "5"),
    ],
)
def test_direct_reads_that_fail(
    fault: str,
    rate: str,
    arch_file: Callable[[str], Path],
    localmoe: Localmoe,
    libraries: Path,
    tmp_path: Path,
    plain: Callable[[Path], Answer],
) -> None:
    """A file opens with O_DIRECT; its reads fail or come short: the page cache serves instead."""
    faults = tmp_path / "faults"
    cached = System(localmoe, shim("faults", libraries)).answer(
        arch_file("gpt-oss"), *TIGHT, DIRECT=fault, RATE=rate, FAULTS=str(faults)
    )
    done = Counter(faults.read_text().splitlines())
    assert done.total() > 0
    if fault in ("EINVAL", "EOPNOTSUPP") and rate == "100":
        assert done.total() == 1, "a file system that refuses direct reads is not asked again"
    assert cached.text == plain(arch_file("gpt-oss")).text != ""
    assert cached.regime == "private"
    assert cached.misses


def test_a_refusal_that_comes_late_is_said(
    arch_file: Callable[[str], Path], localmoe: Localmoe, libraries: Path
) -> None:
    """The first block can be read directly, experts cannot: the same words, and a line says so."""
    path = arch_file("gpt-oss")
    experts = min(tensor.offset for tensor in routed_tensors(read_model(path)))
    done = localmoe(
        *("run", path, PROMPT, "--plain", "-n", "4", "--json", "--no-history", *TIGHT),
        LD_PRELOAD=str(shim("faults", libraries)), DIRECT="EINVAL", FROM=str(experts),
    )  # fmt: skip
    assert done.stderr.count("the file system has no direct reads") == 1
    assert json.loads(done.stdout)["cache"]["regime"] == "private"


@pytest.mark.parametrize("fault", ["short", "torn"])
def test_reads_through_the_page_cache_that_come_short(
    fault: str,
    arch_file: Callable[[str], Path],
    localmoe: Localmoe,
    libraries: Path,
    plain: Callable[[Path], Answer],
) -> None:
    """Network file systems may give less than was asked for; it is read on."""
    cached = System(localmoe, shim("faults", libraries)).answer(
        arch_file("gpt-oss"), *TIGHT, DIRECT="EINVAL", CACHED=fault
    )
    assert (cached.text, cached.regime) == (plain(arch_file("gpt-oss")).text, "private")


@pytest.mark.parametrize("fault", ["EIO", "EINVAL"])
def test_reads_that_fail_both_ways(
    fault: str, arch_file: Callable[[str], Path], localmoe: Localmoe, libraries: Path
) -> None:
    """What cannot be read at all is an error that names file and reason, not an answer."""
    path = arch_file("gpt-oss")
    experts = min(tensor.offset for tensor in routed_tensors(read_model(path)))
    document = System(localmoe, shim("faults", libraries)).run(
        path, *TIGHT, DIRECT=fault, CACHED=fault, FROM=str(experts)
    )
    error = document["error"]
    assert error["code"] == "engine"
    assert "gpt-oss" in error["message"]
    assert ("Input/output error" if fault == "EIO" else "Invalid argument") in error["message"]
    assert error["hint"]


# ---- the helper itself -----------------------------------------------------------------------


def test_only_what_is_meant_can_be_seen_of_the_helper() -> None:
    """It is preloaded into every worker, so a name of ours must not stand in for another's."""
    helper = native_path()
    if helper is None or shutil.which("nm") is None:
        pytest.skip("no helper, or no nm to look at it with")
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", helper], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    ours = {name for name in names if name.startswith("localmoe_")}
    transfers = {"ggml_backend_tensor_get_async", "ggml_backend_tensor_set_async"}
    scheduling = {"ggml_backend_sched_reset", "ggml_backend_sched_reserve_size"}
    assert names - ours == {"mmap", "posix_madvise", "PyInit__native"} | transfers | scheduling
    assert "localmoe_experts_open" in ours
