"""Two engines on one model, by turns: how fast each reads a prompt and writes.

    python scripts/make_standin.py qwen3-30b-a3b --layers 4 -o standin.gguf
    python -m scripts.compare_engines standin.gguf PYTHON_A PYTHON_B [--rounds 5] [--cache-ram 0.6]

Each Python is one of an environment that has the same localmoe, installed, and its engine: this
checkout is not used. Once with all in memory, once with the private cache; one run of each is not
counted. On a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

PROMPT = "The experts of a layer are small networks, and a router chooses among them. " * 12
KINDS = ("prefill_tps", "decode_tps")


def speeds(python: str, model: Path, tokens: int, options: Sequence[str]) -> dict[str, float]:
    """Tokens per second of one run."""
    command = (
        python,
        "-P",
        "-m",
        "localmoe",
        "run",
        str(model),
        "--json",
        "--plain",
        "--temp",
        "0",
    )
    done = subprocess.run(
        [*command, "-n", str(tokens), *options, PROMPT], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr + done.stdout)
    timings = json.loads(done.stdout)["timings"]
    return {kind: timings[kind] for kind in KINDS}


def main() -> None:
    """Parse the command line, measure, print the rows of a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("pythons", nargs=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-n", "--tokens", type=int, default=48)
    parser.add_argument("--cache-ram", default="0.6", metavar="GIB")
    args = parser.parse_args()
    print("| where | what | A | B | B ÷ A |\n|---|---|---|---|---|")
    private = ("--cache", "private", "--cache-ram", args.cache_ram)
    for where, options in (("in memory", ()), ("private cache", private)):
        runs: list[list[dict[str, float]]] = [[], []]
        for turn in range(args.rounds + 1):
            for python, done in zip(args.pythons, runs, strict=True):
                figures = speeds(python, args.model, args.tokens, options)
                if turn:
                    done.append(figures)
        for kind in KINDS:
            a, b = (statistics.median(each[kind] for each in done) for done in runs)
            print(f"| {where} | {kind} | {a:.1f} | {b:.1f} | {b / a:.3f} |", flush=True)


if __name__ == "__main__":
    main()
