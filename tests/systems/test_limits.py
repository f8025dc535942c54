"""Limits of the system: memory mappings, address space, files that cannot be mapped."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.make_standin import make_standin
from tests.archs import qwen
from tests.archs.families import Q8_0, Family
from tests.archs.recipe import Dims
from tests.cli.command import COMMAND, Localmoe, environment
from tests.needs import no_mount
from tests.systems.fault_fs import mounted
from tests.systems.shims import shim
from tests.systems.system import OFF, PAGE, PROMPT, TIGHT, Answer, System
from tests.waiting import PATIENCE

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]


# ---- mappings --------------------------------------------------------------------------------


@pytest.mark.parametrize("places", ["17", "40"])
def test_no_more_mappings_are_to_be_had(
    places: str,
    arch_file: Callable[[str], Path],
    localmoe: Localmoe,
    libraries: Path,
    tmp_path: Path,
    plain: Callable[[Path], Answer],
) -> None:
    """Where the system refuses another mapping, the place of an expert that is there is reused."""
    refused = tmp_path / "refused"
    cached = System(localmoe, shim("mappings", libraries)).answer(
        arch_file("qwen3moe"),
        *("--cache", "private", "--cache-ram", "0.006", "-b", "8"),
        PLACES=places,
        REFUSED=str(refused),
    )
    assert (cached.text, cached.regime) == (plain(arch_file("qwen3moe")).text, "private")
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
            timeout=PATIENCE,
        )
        if "unshare" in done.stderr or "mount:" in done.stderr:
            no_mount(done.stderr.strip())
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


# ---- address space ---------------------------------------------------------------------------


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 0.1 GB, nearly all of it experts."""
    dims = Dims(layers=4, embd=512, heads=4, experts=32, used=4, expert_ff=512, context=1024)
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    return make_standin(Family(qwen.qwen3moe, dims, Q8_0), path, uniform=True)


def test_little_address_space(wide: Path, localmoe: Localmoe) -> None:
    """``ulimit -v``: another regime with the same words, or an error that names the limit.

    How little is too little for each regime differs from machine to machine.
    """
    ask = ("--plain", "--temp", "0", "-n", "6", "-c", "512", "-b", "4", "-t", "1", "--no-history")
    private = ("--cache", "private", "--cache-ram", "0.03")
    plain = json.loads(localmoe("run", wide, PROMPT, *ask, "--cache", "off", "--json").stdout)

    def regime(kib: int) -> str:
        """The regime under that limit; "" where it ends with an error."""
        command = [*COMMAND, "run", str(wide), PROMPT, *ask, *private, "--json"]
        done = subprocess.run(
            ["sh", "-c", f'ulimit -v {kib} && exec "$@"', "sh", *command],
            capture_output=True,
            text=True,
            env=environment(localmoe.home),
            timeout=PATIENCE,
        )
        assert "Traceback" not in done.stderr
        document = json.loads(done.stdout)
        if "error" in document:
            assert "ulimit -v" in document["error"]["hint"]
            assert document["error"]["code"] in ("engine", "engine_memory")
            return ""
        assert document["text"] == plain["text"]
        ways = ("through the page cache", "copied into memory")
        fell_back = any(way in done.stderr for way in ways)
        assert (document["cache"]["regime"] == "private") != fell_back
        return str(document["cache"]["regime"])

    assert (regime(1_500_000), regime(200_000)) == ("private", "")
    between = range(1_000_000, 200_000, -60_000)
    assert any(regime(kib) in ("page", "off") for kib in between)


# ---- threads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", ["0", "1"])
def test_no_more_threads(
    threads: str, arch_file: Callable[[str], Path], localmoe: Localmoe, libraries: Path
) -> None:
    """Where readers cannot be started, or not all of them, the file's mapping serves: said once."""
    plain = System(localmoe).answer(arch_file("qwen3moe"), *OFF)
    system = System(localmoe, shim("threads", libraries))
    answer = system.answer(arch_file("qwen3moe"), *TIGHT, THREADS=threads)
    assert (answer.text, answer.regime) == (plain.text, "off")


# ---- file systems ----------------------------------------------------------------------------


@pytest.fixture
def folder(arch_file: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder with one model in it."""
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy2(arch_file("gpt-oss"), folder / "model.gguf")
    return folder


@pytest.mark.parametrize("options", [("--direct", "EINVAL"), ("--direct", "EIO"), ()])
def test_a_file_system_with_odd_reads(
    options: tuple[str, ...],
    folder: Path,
    arch_file: Callable[[str], Path],
    localmoe: Localmoe,
    tmp_path: Path,
    plain: Callable[[Path], Answer],
) -> None:
    """FUSE that refuses direct reads, or fails them: the same words."""
    with mounted(folder, tmp_path / "mount", *options) as point:
        private = System(localmoe).answer(point / "model.gguf", *TIGHT)
        page = System(localmoe).answer(point / "model.gguf", *PAGE)
    assert private.text == page.text == plain(arch_file("gpt-oss")).text != ""
    assert private.regime == "private"


def test_a_file_system_without_mappings(
    folder: Path,
    arch_file: Callable[[str], Path],
    localmoe: Localmoe,
    tmp_path: Path,
    plain: Callable[[Path], Answer],
) -> None:
    """What fits is read into memory, whatever was planned: the same words, and said once."""
    text = plain(arch_file("gpt-oss")).text
    with mounted(folder, tmp_path / "mount", "--no-mappings") as point:
        for options in (OFF, TIGHT):
            assert System(localmoe).answer(point / "model.gguf", *options).text == text != ""
