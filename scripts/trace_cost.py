"""What watching the routers costs: decode speed with and without, by turns.

    python scripts/trace_cost.py MODEL [--tokens N] [--rounds N]

Four engines have the model loaded at the same time and answer by turns: plain, counting uses for
the profile (every run and chat does), recording a trace, and recording logits too. Printed: median
tokens per second, and the median over the rounds of what each lost against the plain one.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Request, Sampling
from localmoe.facts.catalog import resolve
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings

PROMPT = "A router sends each token to a few experts. Tell me more of it: "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    model = read_model(resolve(options.model))
    threads = os.cpu_count() or 1
    plain = EngineSettings(context=1024, threads=threads, threads_batch=threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["LOCALMOE_HOME"] = str(folder)  # the profile of a measurement is not kept
        ways = {
            "plain": (plain, False),
            "counting": (plain, True),
            "recording": (dataclasses.replace(plain, record=str(folder / "a.trace")), True),
            "with logits": (
                dataclasses.replace(plain, record=str(folder / "b.trace"), record_logits=True),
                True,
            ),
        }
        engines = {}
        for name, (settings, remember) in ways.items():
            engine = stack.enter_context(Engine(model, settings, remember=remember))
            list(engine.load())
            engines[name] = engine
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(options.rounds + 1):
            order = list(engines.items())
            for name, engine in order if number % 2 else reversed(order):
                speed = answer(engine, options.tokens)
                if number:  # the first round warms up
                    speeds[name].append(speed)
        size = {name: path.stat().st_size for name in "ab" if (path := folder / f"{name}.trace")}
    tokens = (options.rounds + 1) * (options.tokens - 1)
    for name, found in speeds.items():
        lost = statistics.median(
            1 - speed / other for speed, other in zip(found, speeds["plain"], strict=True)
        )
        print(f"{name:12} {statistics.median(found):8.1f} tok/s  {100 * lost:+6.2f} %")
    print(f"bytes per token {size['a'] / tokens:.0f}, with logits {size['b'] / tokens:.0f}")


def answer(engine: Engine, tokens: int) -> float:
    request = Request(PROMPT, max_tokens=tokens, sampling=Sampling(temperature=0), ignore_end=True)
    *_, done = engine.generate(request)
    if not isinstance(done, Finished) or not done.decode_tps:
        raise SystemExit("no answer")
    return done.decode_tps


if __name__ == "__main__":
    main()
