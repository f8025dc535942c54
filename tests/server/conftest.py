"""A server with the bundled model, shared by the tests of one process; its own for who ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.server.served import Served, serving


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled model, served; for tests that leave it as it is."""
    with serving(tmp_path_factory.mktemp("served"), "nano") as served:
        yield served


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """``serve("nano", "--idle", "1s")``: a server that ends with the test."""
    with ExitStack() as stack:
        yield lambda *args: stack.enter_context(serving(tmp_path, *args))
