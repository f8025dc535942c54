"""Fixtures: a local Hub, and localmoe pointed at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.hub import standins
from tests.hub.command import HubCommand
from tests.hub.server import HubServer


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """Two hosts, no repositories yet."""
    with HubServer() as server:
        yield server


@pytest.fixture
def hf(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process talks to ``hub``, without a token; the (empty) cache folder."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "hf"
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
    # huggingface_hub reads its environment once, when it is imported.
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    huggingface_hub.close_session()
    return home / "hub"


@pytest.fixture(scope="session")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """Twenty quantizations of a 30B model with a vocabulary of 152k tokens; BF16 in three parts."""
    return list(standins.twenty(tmp_path_factory.mktemp("twenty")))


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """Four of them with a vocabulary of 20k tokens, where its size does not matter."""
    return list(standins.few(tmp_path_factory.mktemp("few")))


@pytest.fixture
def localmoe(hub: HubServer, tmp_path: Path) -> HubCommand:
    """The command, in an empty home folder."""
    return HubCommand(hub, tmp_path)
