"""What localmoe's worker, pipe, events and detokenizing cost: decode speed against a plain loop.

    python scripts/make_standin.py qwen3-30b-a3b --layers 4 -o standin.gguf
    python scripts/bench_engine.py standin.gguf

Both sides are the same llama.cpp with the same settings (mapping, no repacking, threads, context,
batch); the plain one is nothing but load, decode and greedy sampling in one process. They run
alternately, each in a fresh process, after one run that is not counted. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Loaded, Request, Sampling
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings

PROMPT = "A mixture of experts is"
Figures = dict[str, float]


def through_localmoe(path: Path, tokens: int, threads: int) -> Figures:
    """Load and decode as ``localmoe run`` does."""
    settings = EngineSettings(
        context=2048, batch=512, ubatch=512, threads=threads, threads_batch=threads
    )
    with Engine(read_model(path), settings) as engine:
        loaded = list(engine.load())[-1]
        request = Request(PROMPT, max_tokens=tokens, sampling=Sampling(temperature=0))
        done = list(engine.generate(request))[-1]
    assert isinstance(loaded, Loaded) and isinstance(done, Finished)
    if done.completion_tokens < tokens or done.decode_tps is None:
        raise SystemExit("the model stopped early: take one with random weights")
    return {"decode_tps": done.decode_tps, "load_s": loaded.load_s}


def plain(path: Path, tokens: int, threads: int) -> Figures:
    """The same, in a process of its own (``--plain`` below)."""
    child = subprocess.run(
        [sys.executable, __file__, str(path), "--plain", "-n", str(tokens), "-t", str(threads)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    figures: Figures = json.loads(child.stdout)
    return figures


def plain_loop(path: Path, tokens: int, threads: int) -> Figures:
    """Load, prefill, then sample and decode, by llama.cpp's functions alone."""
    from llama_cpp import llama_cpp as llama

    llama.llama_backend_init()
    started = time.perf_counter()
    model_params = llama.llama_model_default_params()
    model_params.use_extra_bufts = False
    model_params.load_mode = 1
    model_params.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(str(path).encode(), model_params)
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 2048, 512, 512
    params.n_threads = params.n_threads_batch = threads
    params.swa_full = False
    params.no_perf = True
    ctx = llama.llama_init_from_model(model, params)
    load_s = time.perf_counter() - started
    text = PROMPT.encode()
    prompt = (ctypes.c_int32 * (len(text) + 8))()
    vocab = llama.llama_model_get_vocab(model)
    count = llama.llama_tokenize(vocab, text, len(text), prompt, len(prompt), True, True)
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_greedy())
    llama.llama_decode(ctx, llama.llama_batch_get_one(prompt, count))
    one = (ctypes.c_int32 * 1)()
    first = last = 0.0
    for _ in range(tokens):
        one[0] = llama.llama_sampler_sample(chain, ctx, -1)
        last = time.perf_counter()
        first = first or last
        llama.llama_decode(ctx, llama.llama_batch_get_one(one, 1))
    return {"decode_tps": (tokens - 1) / (last - first), "load_s": load_s}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("-n", "--tokens", type=int, default=128, help="decoded per run (128)")
    parser.add_argument("-t", "--threads", type=int, default=2, help="threads of both sides (2)")
    parser.add_argument("-r", "--runs", type=int, default=5, help="counted runs of each side (5)")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        print(json.dumps(plain_loop(args.model, args.tokens, args.threads)))
        return
    sides = {"localmoe": through_localmoe, "plain": plain}
    results: dict[str, list[Figures]] = {name: [] for name in sides}
    for run in range(args.runs + 1):
        for name, side in sides.items():
            figures = side(args.model, args.tokens, args.threads)
            if run:  # the first brings the file into the page cache
                results[name].append(figures)
    size = args.model.stat().st_size / 1e9
    print(f"{args.model.name}: {size:.2f} GB, {args.tokens} tokens, {args.runs} alternating runs")
    for figure, better in (("decode_tps", "tok/s"), ("load_s", "s")):
        medians = {}
        for name, runs in results.items():
            values = [run[figure] for run in runs]
            medians[name] = statistics.median(values)
            print(
                f"  {figure:10} {name:9} {medians[name]:8.3f} {better} "
                f"({min(values):.3f}–{max(values):.3f})"
            )
        print(f"  {figure:10} ratio     {medians['localmoe'] / medians['plain']:8.3f}")


if __name__ == "__main__":
    main()
