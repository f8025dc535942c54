"""Engine settings, said in llama.cpp's own flags."""

from __future__ import annotations

from localmoe.planning.llama_args import llama_args
from localmoe.planning.memory import EngineSettings


def test_host_only() -> None:
    """Without devices nothing is left to llama-server's own placement."""
    settings = EngineSettings(context=8192, threads=4, threads_batch=8)
    assert " ".join(llama_args(settings)) == (
        "--fit off -np 1 -c 8192 -b 512 -ub 512 -ctk f16 -ctv f16 -dev none -ngl 0 "
        "-lm mmap --no-repack -t 4 -tb 8"
    )


def test_experts_kept_in_ram() -> None:
    """Overrides, cache types, flash attention and device names are handed on as they are."""
    settings = EngineSettings(
        context=4096,
        batch=256,
        ubatch=128,
        type_k="q8_0",
        type_v="q4_0",
        flash_attention=True,
        swa_full=True,
        devices=("CUDA0", "CUDA1"),
        gpu_layers=-1,
        overrides=((r"blk\.[0-9]\.ffn_.*_exps", "CPU"),),
        load_mode="none",
        repack=True,
    )
    assert " ".join(llama_args(settings)) == (
        "--fit off -np 1 -c 4096 -b 256 -ub 128 -ctk q8_0 -ctv q4_0 -fa on --swa-full "
        r"-dev CUDA0,CUDA1 -ngl all -ot blk\.[0-9]\.ffn_.*_exps=CPU -lm none"
    )


def test_devices_of_several_workers() -> None:
    """``-dev`` counts devices over all workers, ``-ot`` within one; a worker is named once."""
    here, there = "10.0.0.2:50052", "10.0.0.3:50052"
    settings = EngineSettings(
        context=4096,
        devices=("RPC0", "RPC1", "RPC2", "CUDA0"),
        tensor_split=(1.0, 2.0, 3.0, 4.0),
        gpu_layers=-1,
        overrides=(("up", "RPC1"), ("down", "RPC2"), ("gate", "CUDA0"), ("exps", "CPU")),
        remotes=(here, here, there),
    )
    args = " ".join(llama_args(settings))
    assert f"--rpc {here},{there} -dev RPC0,RPC1,RPC2,CUDA0 -ts 1,2,3,4 " in args
    assert f"-ot up=RPC1[{here}] -ot down=RPC0[{there}] -ot gate=CUDA0 -ot exps=CPU" in args
