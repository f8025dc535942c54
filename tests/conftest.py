"""Fixtures for every test: generated model files, written once per session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localmoe.engine.rpc_build import build_rpc_library
from localmoe.errors import EngineError
from tests.archs import generate
from tests.archs.rpc_server import rpc_server

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores it, and so would every program that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's generated model files are."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def arch_file(model_dir: Path) -> Callable[..., Path]:
    """``arch_file("qwen3moe", split=3)`` → the generated file (its first part)."""

    def make(architecture: str, **options: Any) -> Path:
        return generate(architecture, model_dir, **options)

    return make


@pytest.fixture(scope="session")
def rpc_lib() -> Path:
    """The engine's RPC backend, for tests that need a second device; built once (seconds)."""
    try:
        return build_rpc_library()
    except EngineError as error:
        if os.environ.get("CI"):  # there these tests may not go missing unseen
            raise
        pytest.skip(f"no RPC backend: {error}")


@pytest.fixture
def rpc_endpoint(rpc_lib: Path) -> Iterator[str]:
    """A server with a device of its own, alive during one test: "127.0.0.1:PORT"."""
    with rpc_server() as endpoint:
        yield endpoint
