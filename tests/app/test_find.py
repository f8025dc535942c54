"""From a name to a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.app.find import header_of
from localmoe.app.listener import Silent
from localmoe.app.requests import PlanRequest
from localmoe.facts import catalog


def test_an_error_of_the_block_is_its_own(
    arch_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is asked when the model is not here, not when the block raises the same error."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--Repo-GGUF" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "tiny-Q8_0.gguf").symlink_to(arch_file("qwen3moe"))
    error = catalog.NotHereError("another model is not here")
    with (
        pytest.raises(catalog.NotHereError) as caught,
        header_of("some/Repo-GGUF:Q8_0", PlanRequest(), Silent()) as (model, paths),
    ):
        assert model.paths == paths
        raise error
    assert caught.value is error
