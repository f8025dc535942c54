"""Uses the expert cache at random for a while: budgets, batches, threads, prompts, interrupts.

    python scripts/fuzz_cache.py --seconds 60
    python scripts/fuzz_cache.py --seconds 60 --faults

With ``--faults`` reads go wrong too, past the page cache and through it: EIO, EINVAL, late, short.
Prints a line per round; ends with status 1 at the first that hangs, dies or says
something else than the engine without a cache (an error that tells of a read is no such thing).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.archs import generate
from tests.engine.cache_fuzz import play
from tests.systems.shims import compiled


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; they count up")
    parser.add_argument("--faults", action="store_true", help="reads go wrong too")
    options = parser.parse_args(arguments)
    seed, end = options.seed, time.monotonic() + options.seconds
    answers = evictions = 0
    with tempfile.TemporaryDirectory() as folder:
        faults = compiled("faults", Path(folder)) if options.faults else None
        while time.monotonic() < end:
            played = play(random.Random(seed), lambda name: generate(name, Path(folder)), faults)
            print(f"{seed}: {played.title}: {played.answers} answers, {played.evictions} evictions")
            if played.wrong:
                print(f"wrong: turns {played.wrong}")
                return 1
            answers, evictions = answers + played.answers, evictions + played.evictions
            seed += 1
    print(f"{seed - options.seed} rounds, {answers} answers, {evictions} evictions: all as without")
    return 0


if __name__ == "__main__":
    sys.exit(main())
