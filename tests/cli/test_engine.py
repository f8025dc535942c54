"""``engine``, ``worker`` and the line about an idle GPU, as a user meets them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from localmoe.app.addresses import is_loopback, warning_for
from localmoe.app.diagnosis import engine_findings
from localmoe.app.idle_gpus import idle_gpus, idle_line
from localmoe.cli import placement_options
from localmoe.engine.devices import EngineInfo, once_per_card
from localmoe.facts.hardware import Gpu
from tests.cli.command import Localmoe, assert_clear_error
from tests.planning.invented import GIB, machine


def test_how_the_engine_was_built(localmoe: Localmoe) -> None:
    """Version, backends and processor features, for people and as JSON."""
    document = localmoe.document("engine")
    assert document["binding"].startswith("0.3.")
    assert document["backends"][0] == "CPU"
    assert isinstance(document["cpu_features"], list) and isinstance(document["rpc"], bool)
    done = localmoe("engine")
    for word in ("llama.cpp", "CPU", "localmoe engine install cuda", *document["cpu_features"][:2]):
        assert word in done.stdout


def test_repacking_crashes_on_no_processor(localmoe: Localmoe) -> None:
    """With copies for AMX llama.cpp's own defaults do; there it is left aside, which is said."""
    for_amx = any(name.startswith("AMX") for name in localmoe.document("engine")["cpu_features"])
    done = localmoe("run", "nano", "--repack", "on", "-n", "4", "Hello")
    assert done.returncode == 0 and done.stdout
    assert ("--repack is left aside" in done.stderr) == for_amx


def test_a_dry_run_prints_the_commands_and_does_nothing(localmoe: Localmoe) -> None:
    """What is missing is named; nothing is written."""
    document = localmoe.document("engine", "install", "cpu", "--dry-run")
    assert document["backend"] == "cpu" and document["kept"] is None
    assert "pip wheel" in document["commands"][0]
    assert "pip install" in document["commands"][1]
    assert 0 < document["expected_seconds"] <= 432
    assert not list(localmoe.home.rglob("engines"))


@pytest.mark.parametrize("words", [["instal", "cuda"], ["install"], ["install", "cudda"]])
def test_what_is_not_understood(localmoe: Localmoe, words: list[str]) -> None:
    assert_clear_error(localmoe("engine", *words), 2, "not understood", "install cpu|cuda")


def test_adding_rpc_is_done_once(localmoe: Localmoe, rpc_lib: Path) -> None:
    """The RPC backend is beside the engine already: nothing is compiled again."""
    before = rpc_lib.stat().st_mtime_ns
    document = localmoe.document("engine", "install", "rpc")
    assert document["kept"] == str(rpc_lib)
    assert rpc_lib.stat().st_mtime_ns == before
    assert localmoe.document("engine")["rpc"] is True


def test_doctor_tells_how_to_get_rpc() -> None:
    info = EngineInfo("x", ("CPU",), (), True, (), rpc=False)
    texts = [finding.text for finding in engine_findings(info, None, "1")]
    assert any("no RPC in this engine build (localmoe engine install rpc)" in t for t in texts)
    texts = [finding.text for finding in engine_findings(replace(info, rpc=True), None, "1")]
    assert not any("install rpc" in text for text in texts)


IDLE = Gpu("RTX 4060", 8 * GIB, 8 * GIB, False, None, "cuda")


def test_the_line_about_an_idle_gpu() -> None:
    """The words of the contract; an integrated GPU beside a card is no news."""
    assert idle_line(IDLE) == (
        "GPU idle: RTX 4060 is not in this engine build. Fix: localmoe engine install cuda"
    )
    integrated = replace(IDLE, name="UHD", backend="vulkan", unified=True)
    assert idle_gpus(replace(machine(16), gpus=(integrated,))) == [integrated]
    assert idle_gpus(replace(machine(16), gpus=(IDLE, integrated))) == [IDLE]
    assert idle_gpus(machine(16, 8)) == []


def entry(name: str, kind: str, backend: str, card: str | None) -> dict[str, object]:
    return {"name": name, "kind": kind, "backend": backend, "card": card}


def test_one_card_seen_by_two_backends_counts_once() -> None:
    """By its address; integrated GPUs without one by their first backend."""
    cuda = entry("CUDA0", "gpu", "CUDA", "0000:01:00.0")
    same = entry("Vulkan0", "gpu", "Vulkan", "0000:01:00.0")
    other = entry("Vulkan1", "gpu", "Vulkan", "0000:02:00.0")
    assert once_per_card([entry("CPU", "cpu", "CPU", None), cuda, same, other]) == [cuda, other]
    first, again = entry("Vulkan0", "igpu", "Vulkan", None), entry("SYCL0", "igpu", "SYCL", None)
    assert once_per_card([first, again]) == [first]
    workers = [entry(f"RPC{i}", "gpu", "RPC", None) for i in range(2)]
    assert once_per_card(workers) == workers


@pytest.mark.parametrize(
    ("host", "safe"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("127.9.9.9", True),
        ("0.0.0.0", False),
        ("192.168.1.5", False),
        ("box.local", False),
    ],
)
def test_a_warning_when_others_can_connect(host: str, safe: bool) -> None:
    """The protocol has no password: told with the SSH line that does without."""
    assert is_loopback(host) is safe
    warning = warning_for(host, 50052)
    assert (warning is None) is safe
    if warning is not None:
        assert "no password" in warning and "ssh -N -L 50052:127.0.0.1:50052" in warning


def test_places_as_people_write_them() -> None:
    assert placement_options.experts_on("gpu") == ("gpu", ())
    assert placement_options.experts_on("ram:0-11,15") == ("ram", ((0, 11), (15, 15)))
    assert placement_options.override(r"blk\.3\..*=CPU,exps=CUDA0") == [
        (r"blk\.3\..*", "CPU"),
        ("exps", "CUDA0"),
    ]
    assert placement_options.remote("box,10.0.0.2:7,:9") == [
        "box:50052",
        "10.0.0.2:7",
        "127.0.0.1:9",
    ]


@pytest.mark.parametrize(
    ("parse", "bad"),
    [
        *(
            (placement_options.experts_on, text)
            for text in ("", "vram", "ram:", "ram:3-1", "ram:x", "gpu:²")
        ),
        *((placement_options.override, text) for text in ("exps", "=CPU", "exps=", "(=CPU")),
        *(
            (placement_options.remote, text)
            for text in ("a:b", "a:0", "a:99999", "a b:1", "u@h:1", "a:-1")
        ),
    ],
)
def test_places_that_are_none(parse: object, bad: str) -> None:
    assert callable(parse)
    with pytest.raises(argparse.ArgumentTypeError):
        parse(bad)
