"""A second device without a GPU: built from the engine's sources, served by another process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.engine.rpc_build import build_rpc_library
from localmoe.errors import EngineError
from tests.archs.plain import PlainRunError, plain_greedy

ArchFile = Callable[..., Path]
PROMPT = "The first question is"


def test_layers_on_the_second_device(rpc_lib: Path, rpc_endpoint: str, arch_file: ArchFile) -> None:
    """With all layers offloaded the weights live in the server and the tokens are the same."""
    path = arch_file("qwen3moe")
    here = plain_greedy(path, PROMPT, 12)
    there = plain_greedy(
        path,
        PROMPT,
        12,
        n_gpu_layers=99,
        rpc_library=str(rpc_lib),
        rpc_endpoint=rpc_endpoint,
    )
    assert there.devices == ["CPU", "RPC0"]
    assert there.buffers[f"RPC0[{rpc_endpoint}]"] > 7
    assert here.devices == ["CPU"] and "CPU_Mapped" in here.buffers
    assert there.tokens == here.tokens


def test_experts_stay_in_host_memory(rpc_lib: Path, rpc_endpoint: str, arch_file: ArchFile) -> None:
    """A buffer override keeps the named experts here while the rest is on the device."""
    answer = plain_greedy(
        arch_file("qwen3moe"),
        PROMPT,
        4,
        n_gpu_layers=99,
        experts_on_cpu=r"blk\.[0-2]\.ffn_.*_exps",
        rpc_library=str(rpc_lib),
        rpc_endpoint=rpc_endpoint,
    )
    assert answer.buffers["CPU_Mapped"] > 5
    assert 1 < answer.buffers[f"RPC0[{rpc_endpoint}]"] < 4


def test_dead_server_is_an_error(rpc_lib: Path, arch_file: ArchFile) -> None:
    """No server at the endpoint: the run fails, it does not fall back silently."""
    with pytest.raises(PlainRunError):
        plain_greedy(
            arch_file("qwen3moe"),
            PROMPT,
            1,
            rpc_library=str(rpc_lib),
            rpc_endpoint="127.0.0.1:1",
        )


def test_sources_without_the_backend_are_refused(rpc_lib: Path, tmp_path: Path) -> None:
    """A folder that is not the engine's source gives a clear error and changes no library."""
    before = rpc_lib.read_bytes()
    (tmp_path / "empty").mkdir()
    with pytest.raises(EngineError, match=r"no sources of llama\.cpp in it"):
        build_rpc_library(tmp_path / "empty", anew=True)
    assert rpc_lib.read_bytes() == before
