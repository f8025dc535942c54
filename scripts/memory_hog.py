"""What happens to an answer when another program takes memory: the promise that it gets some back.

    python scripts/memory_hog.py MODEL --limit 4 --ram 3.5 --hog 1.2

A worker runs in a memory group of ``--limit`` GiB, planned with ``--ram``. It answers, then another
process of the group takes ``--hog`` GiB and keeps it, and it answers twice more: once while the
memory is taken, and once when that is settled. Beside it stands a run that was planned with the
smaller memory from the start. With ``--grow`` there is no ``--ram``: the run begins beside the hog,
which then ends. With ``--swap`` the group may use the machine's swap. Figures of speed mean
something on a quiet machine alone; needs root.

Prints JSON: for each answer tok/s, the cache's budget, the mapped weights in memory, major faults
and bytes read per token, swapped bytes; and the quotient of the last speed and the other run's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.bench.cold_start import forget
from localmoe.bench.limits import Box, Group, memory_box
from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Request, Sampling
from localmoe.engine.oracle import Oracle
from localmoe.facts import hardware
from localmoe.facts.model import Model, read_model
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Plan, Wishes

GIB = 1 << 30
PROMPT = "A mixture of experts has many small networks and a router."
HOG = """
import sys
room = bytearray(int(sys.argv[1]))
room[::4096] = b"x" * len(room[::4096])
print("there", flush=True)
input()
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", type=float, required=True, help="GiB of the memory group")
    parser.add_argument("--ram", type=float, help="GiB that the run is planned with")
    parser.add_argument("--hog", type=float, required=True, help="GiB that another process takes")
    parser.add_argument("--grow", action="store_true", help="the hog is there first, and ends")
    parser.add_argument("--swap", action="store_true", help="the group may swap")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--experts", type=int, help="per token, fewer than the model's own")
    parser.add_argument("--replay", default="", help="a recorded routing to impose")
    options = parser.parse_args(arguments)
    limit, hog = int(options.limit * GIB), int(options.hog * GIB)
    model = read_model(options.model)
    if options.grow:
        answers = run(model, plan(model, limit - hog, None, options), limit, hog, options)
        before = run(model, plan(model, limit, None, options), limit, 0, options)
    else:
        ram = int((options.ram or options.limit) * GIB)
        answers = run(model, plan(model, limit, ram, options), limit, hog, options)
        before = run(model, plan(model, limit, ram - hog, options), limit, 0, options)
    ratio = answers[-1]["tok_per_s"] / before[-1]["tok_per_s"]
    result = {"answers": answers, "planned so from the start": before, "ratio": round(ratio, 3)}
    print(json.dumps(result, indent=1))
    return 0


def plan(model: Model, free: int, ram: int | None, options: argparse.Namespace) -> Plan:
    """As on a machine with ``free`` bytes in a memory group; ``ram`` is ``--ram``."""
    here = dataclasses.replace(
        hardware.detect(), ram_total=free, ram_available=free, ram_limited_by="cgroup"
    )
    wishes = Wishes(context=options.context, ram=ram, experts=options.experts)
    with Oracle(model) as measure:
        return make_plan(model, here, wishes, measure)


def run(
    model: Model, plan: Plan, limit: int, hog: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The answers of one worker; the hog comes after the first, or ends then (``--grow``)."""
    settings = dataclasses.replace(plan.settings, replay=options.replay)
    forget(model.paths)
    with memory_box(limit) as box, Engine(model, settings, remember=False) as engine:
        if options.swap:
            assert isinstance(box, Group)
            box.let_swap()
        box.admit(engine.pid)
        taken = _take(box, hog) if hog and options.grow else None
        list(engine.load())
        answers = [_answer(engine, options.tokens) for _ in range(2)][1:]
        if hog:
            if taken is not None:
                _end(taken)
            else:
                taken = _take(box, hog)
            answers += [_answer(engine, options.tokens) for _ in range(2)]
            if not options.grow:
                _end(taken)
        answers[-1] |= {"kills": box.kills(), "peak_mib": (box.peak() or 0) >> 20}
    return answers


def _take(box: Box, size: int) -> subprocess.Popen[bytes]:
    wait = 'read go; exec "$@"'  # so that it takes nothing before it is in the group
    hog = subprocess.Popen(
        ["sh", "-c", wait, "sh", sys.executable, "-c", HOG, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert hog.stdin is not None and hog.stdout is not None
    box.admit(hog.pid)
    hog.stdin.write(b"go\n")
    hog.stdin.flush()
    hog.stdout.readline()
    return hog


def _end(hog: subprocess.Popen[bytes]) -> None:
    hog.kill()
    hog.communicate()


def _answer(engine: Engine, tokens: int) -> dict[str, Any]:
    faults = _major_faults(engine.pid)
    request = Request(
        PROMPT, max_tokens=tokens, sampling=Sampling(temperature=1, seed=1), ignore_end=True
    )
    done = list(engine.generate(request))[-1]
    assert isinstance(done, Finished)
    memory, cache = psutil.Process(engine.pid).memory_full_info(), done.cache
    per_token = (_major_faults(engine.pid) - faults) / max(1, done.completion_tokens)
    return {
        "tok_per_s": round(done.decode_tps or 0.0, 3),
        "budget_mib": cache.budget >> 20 if cache else None,
        "resident_mib": cache.resident_bytes >> 20 if cache else None,
        "read_mib_per_token": round((cache.bytes_read >> 20) / tokens, 2) if cache else None,
        "mapped_mib": int(memory.shared) >> 20,
        "swapped_mib": int(memory.swap) >> 20,
        "major_faults_per_token": round(per_token, 1),
    }


def _major_faults(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[9])


if __name__ == "__main__":
    sys.exit(main())
