"""A server with the bundled model, shared by the tests of one process; its own for who ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.server.served import Served, serving
from tests.waiting import PATIENCE

if TYPE_CHECKING:  # seconds of processor time, for tests that use them alone
    import anthropic
    import openai


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled model, served; for tests that leave it as it is."""
    with serving(tmp_path_factory.mktemp("served"), "nano") as served:
        yield served


@pytest.fixture
def of_openai(nano: Served) -> openai.OpenAI:
    """OpenAI's library at ``nano``."""
    import openai

    return openai.OpenAI(base_url=f"{nano.url}/v1", api_key="x", max_retries=0, timeout=PATIENCE)


@pytest.fixture
def of_anthropic(nano: Served) -> anthropic.Anthropic:
    """Anthropic's library at ``nano``."""
    import anthropic

    return anthropic.Anthropic(base_url=nano.url, api_key="x", max_retries=0, timeout=PATIENCE)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """``serve("nano", "--idle", "1s")``: a server that ends with the test."""
    with ExitStack() as stack:
        yield lambda *args: stack.enter_context(serving(tmp_path, *args))
