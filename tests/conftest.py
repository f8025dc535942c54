"""Every test: its tier, a home of its own, and what is built once for all processes of a run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from localmoe.engine.rpc_build import build_rpc_library
from localmoe.errors import EngineError
from tests import forked_workers, rates
from tests.archs import generate
from tests.archs.rpc_server import rpc_server
from tests.needs import missing

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores it, and so would every program that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine makes any example slow.
settings.register_profile(
    "localmoe", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("localmoe")

STARTERS = {
    "localmoe",
    "nano",
    "rpc_lib",
    "serve",
    "shell",
    "spawn",
    "start",
}  # fixtures that start processes
STARTS = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
_running: list[str] = []  # the unit test under way


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process more than cores; none for a single file: that is quicker, and can be debugged."""
    places = [Path(arg.split("::")[0]) for arg in config.args]
    if len(places) == 1 and places[0].is_file():
        return 0
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return cores + 1  # some wait, for a disk or a process, while others compute


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What has no other tier is a unit test."""
    for item in items:
        if STARTERS & set(getattr(item, "fixturenames", ())):
            item.add_marker("process")
        if not any(item.iter_markers(name="process")) and not any(item.iter_markers(name="soak")):
            item.add_marker("unit")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A unit test that starts a process fails: see ``_guard``."""
    if any(item.iter_markers(name="unit")):
        _running[:] = [item.nodeid]
    try:
        return (yield)
    finally:
        _running.clear()


def _guard(event: str, _: tuple[Any, ...]) -> None:
    if _running and event in STARTS:
        raise AssertionError(f"{_running[0]} starts a process: mark it with pytest.mark.process")


sys.addaudithook(_guard)


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """This process's ``LOCALMOE_HOME``: not the developer's, and not that of a test beside."""
    home = tmp_path_factory.mktemp("home")
    rates.seed(home, home / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALMOE_HOME", str(home))
        yield home


@pytest.fixture(scope="session", autouse=True)
def workers_are_forked() -> None:
    """See ``tests.forked_workers``."""
    forked_workers.install()


@pytest.fixture
def own_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and renderers are children of this process, not forked from one that waits."""
    monkeypatch.setattr(forked_workers, "IMPORTED", {})


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder for all processes of this run. What is built there needs ``build_once``."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def model_dir(shared: Path) -> Path:
    """Where this run's generated model files are."""
    folder = shared / "models"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def arch_file(model_dir: Path) -> Callable[..., Path]:
    """``arch_file("qwen3moe", split=3)`` → the generated file (its first part)."""

    def make(architecture: str, **options: Any) -> Path:
        with FileLock(model_dir / f"{architecture}.lock"):
            return generate(architecture, model_dir, **options)

    return make


@pytest.fixture(scope="session")
def rpc_lib(shared: Path) -> Path:
    """The engine's RPC backend, for tests that need a second device; built once (seconds)."""
    try:
        with FileLock(shared / "rpc.lock"):
            return build_rpc_library()
    except EngineError as error:
        missing(f"no RPC backend: {error}")


@pytest.fixture
def rpc_endpoint(rpc_lib: Path) -> Iterator[str]:
    """A server with a device of its own, alive during one test: "127.0.0.1:PORT"."""
    with rpc_server() as endpoint:
        yield endpoint
