"""Modules: a real backend of ggml in a file, loaded by its path, that may crash or hang."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localmoe import storage
from localmoe.app import rates
from localmoe.app.diagnosis import diagnose
from localmoe.app.engine_builds import install_file
from localmoe.app.listener import Silent
from localmoe.app.requests import PlanRequest
from localmoe.engine import modules, timing
from localmoe.engine.devices import engine_info
from localmoe.engine.process import WorkerProcess
from localmoe.engine.rpc_serving import Server
from localmoe.errors import EngineCrashError, UsageError
from localmoe.facts import hardware
from tests import rates as invented
from tests.archs.rpc_server import HOST, free_port
from tests.cli.command import Localmoe, assert_clear_error
from tests.engine.small_modules import compiled

pytestmark = pytest.mark.process


class Heard(Silent):
    """Keeps what a command would print."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="session")
def built(shared: Path) -> Path:
    """The tiny backend, compiled against the installed engine."""
    return compiled("tiny_module", shared)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    invented.seed(tmp_path, storage.cache_dir())
    rates._device.cache_clear()
    rates._processor.cache_clear()
    return tmp_path


@pytest.fixture
def tiny(built: Path, home: Path) -> Iterator[Path]:
    """The tiny backend, installed."""
    install_file(built)
    yield modules.path_of("cuda")
    assert modules.remove("cuda") == modules.path_of("cuda")
    assert engine_info().modules == {}


def test_its_device_is_the_engines(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver there is none, and one line says so; removed, nothing is left."""
    assert engine_info().modules == {"cuda": ""}
    found = [f for f in diagnose(PlanRequest(), Heard()).findings if "cuda module" in f.text]
    (finding,) = found
    assert "sees no device" in finding.text and "engine remove cuda" in (finding.fix or "")

    monkeypatch.setenv("TINY", "works")
    info = engine_info()
    assert info.backends == ("CPU", "CUDA")
    assert [(gpu.device, gpu.total, gpu.backend) for gpu in info.gpus] == [
        ("Tiny0", 1 << 30, "cuda")
    ]


@pytest.mark.parametrize(
    ("how", "limit", "word"), [("load-crash", 300.0, "internal check"), ("load-hang", 2.0, "2 s")]
)
def test_one_that_fails_when_it_is_loaded_costs_one_command(
    how: str, limit: float, word: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out from then on, until it is installed again; doctor says why."""
    monkeypatch.setenv("TINY", how)
    monkeypatch.setattr(modules, "START_LIMIT", limit)
    with pytest.raises(EngineCrashError, match=r"cuda module.* left out from now on") as caught:
        engine_info()
    assert word in caught.value.message and "engine install cuda" in (caught.value.hint or "")
    monkeypatch.setattr(modules, "START_LIMIT", 300.0)  # the next one waits for nothing
    info = engine_info()
    assert word in info.modules["cuda"] and info.gpus == ()
    texts = [f.text for f in diagnose(PlanRequest(), Heard()).findings]
    assert any("cuda module: not in use" in text and word in text for text in texts)
    monkeypatch.setenv("TINY", "works")
    modules.pardon("cuda")
    assert engine_info().modules == {"cuda": ""}


@pytest.mark.parametrize(
    ("how", "limit", "word"), [("time-crash", 300.0, "internal check"), ("time-hang", 2.0, "2 s")]
)
def test_a_device_that_fails_while_it_is_timed_is_tried_once(
    how: str, limit: float, word: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once, remembered for later commands, and tried again when it is asked for."""
    monkeypatch.setenv("TINY", how)
    monkeypatch.setattr(timing, "DEVICE_LIMIT", limit)
    machine = hardware.detect(engine_info().gpus)
    first, second = Heard(), Heard()
    found = rates.machine_rates(machine, first)
    assert found is not None and found.on_device("Tiny0") is None
    (note,) = first.notes
    assert "Tiny0 is not known" in note and word in note
    rates._device.cache_clear()  # as in another process
    rates._processor.cache_clear()
    monkeypatch.setattr(timing, "DEVICE_LIMIT", 300.0)
    assert rates.machine_rates(machine, second) is not None
    assert second.notes == []
    texts = [(f.text, f.fix) for f in diagnose(PlanRequest(), second).findings]
    assert any("Tiny0 was not timed" in text and "--measure" in (fix or "") for text, fix in texts)


def test_a_worker_that_stops_while_it_is_timed_is_not_waited_for_again(
    rpc_lib: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine elsewhere may come back: it is asked again after some minutes, not at once."""
    monkeypatch.setattr(timing, "DEVICE_LIMIT", 2.0)
    with Server(HOST, free_port(), 1, 1 << 30) as server:
        machine = hardware.detect(engine_info((server.endpoint,)).gpus)

        class Stopping(WorkerProcess):
            """The server stops once the worker is about to time it."""

            def ask(self, op: str, **fields: Any) -> dict[str, Any]:
                super().ask("info", remotes=fields["remotes"])
                os.kill(server.pid, signal.SIGSTOP)
                return super().ask(op, **fields)

        monkeypatch.setattr(timing, "WorkerProcess", Stopping)
        notes = []
        for _ in range(2):
            heard = Heard()
            rates._device.cache_clear()
            rates._rates(machine, home, ["RPC0"], (server.endpoint,), heard)
            notes.append(heard.notes)
        os.kill(server.pid, signal.SIGCONT)
    assert [server.endpoint in note and "2 s" in note for note in notes[0]] == [True]
    assert notes[1] == []


def test_a_library_that_is_missing_is_said(home: Path, tmp_path: Path) -> None:
    """As on a machine without NVIDIA's driver."""
    stub, target = tmp_path / "libcuda.so.1", tmp_path / modules.file_name("cuda")
    compile_it = ["g++", "-shared", "-fPIC", "-x", "c++", os.devnull]
    subprocess.run([*compile_it, "-Wl,-soname,libcuda.so.1", "-o", str(stub)], check=True)
    subprocess.run(
        [*compile_it, "-x", "none", "-Wl,--no-as-needed", str(stub), "-o", str(target)], check=True
    )
    stub.unlink()
    install_file(target)
    problem = engine_info().modules["cuda"]
    assert problem.startswith("NVIDIA's driver is not installed")
    (finding,) = [f for f in diagnose(PlanRequest(), Heard()).findings if "cuda module" in f.text]
    assert "NVIDIA's driver" in finding.text and "install cuda" not in (finding.fix or "")


def test_a_file_is_installed_and_removed(built: Path, tmp_path: Path) -> None:
    """As it is typed where there is no network."""
    localmoe = Localmoe(tmp_path)
    document = localmoe.document("engine", "install", str(built))
    assert document["backend"] == "cuda" and document["modules"] == {"cuda": ""}
    assert "cuda module" in localmoe("engine").stdout
    assert document["kept_builds"] == ["cuda", *(["rpc"] if document["rpc"] else [])]
    removed = localmoe.document("engine", "remove", "cuda")["removed"]
    assert str(tmp_path) in removed and not Path(removed).exists()
    assert_clear_error(localmoe("engine", "remove", "cuda"), 1, "no cuda module", "localmoe engine")
    other = tmp_path / "ggml-cuda-0.0.1.so"
    other.write_bytes(built.read_bytes())
    assert_clear_error(localmoe("engine", "install", str(other)), 2, "no module", "it is called")


def test_what_is_no_module_is_no_backend(home: Path, tmp_path: Path) -> None:
    """Of another engine, or nothing of the kind."""
    path = tmp_path / modules.file_name("vulkan")
    path.write_text("no library")
    install_file(path)
    assert "vulkan" in engine_info().modules and engine_info().modules["vulkan"] != ""
    with pytest.raises(UsageError):
        install_file(tmp_path / "ggml-vulkan.so")
