"""How fast a model arrives: ``localmoe pull`` against ``curl`` followed by ``sha256sum``.

    python scripts/bench_download.py --gib 2 --runs 5

Both fetch the same file from the same server on the loopback (the Hub's protocol, in a process of
its own) onto the same disk, alternately, after one run each that is not counted. Every time is that
of whole processes, from start to end; ``localmoe`` also writes the file through to the disk before
it gives it its name. Ratios are of medians; above 1 means that localmoe is faster.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
REPO = "bench/repo"
FILE = "model-Q4_K_M.gguf"
BLOCK = 16 << 20


def write_model(path: Path, size: int) -> str:
    """Random bytes; their sha256."""
    path.parent.mkdir(parents=True)
    digest, source = hashlib.sha256(), random.Random(0)
    with path.open("wb") as file:
        for _ in range(size // BLOCK):
            block = source.randbytes(BLOCK)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def start_server(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The server, and its address."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.hub.server", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert server.stdout is not None
    return server, server.stdout.readline().strip().partition("=")[2]


def plain(url: str, target: Path, expected: str) -> float:
    """Seconds of curl, then sha256sum."""
    file = target / FILE
    started = time.perf_counter()
    address = f"{url}/{REPO}/resolve/main/{FILE}"
    subprocess.run(["curl", "--noproxy", "*", "-sfL", "-o", str(file), address], check=True)
    done = subprocess.run(["sha256sum", str(file)], check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    assert done.stdout.startswith(expected)
    return seconds


def ours(url: str, target: Path, expected: str) -> float:
    """Seconds of ``localmoe pull``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "LOCALMOE_"))}
    env = kept | {"HF_ENDPOINT": url, "HF_HOME": str(target), "PYTHONPATH": str(ROOT)}
    env |= {"NO_PROXY": "127.0.0.1,127.0.0.2", "LOCALMOE_HOME": str(target / "home")}
    command = [sys.executable, "-m", "localmoe", "pull", REPO, "--yes", "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    seconds = time.perf_counter() - started
    assert Path(json.loads(done.stdout)["path"]).resolve().name == expected
    return seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--gib", type=float, default=1.0, help="size of the file")
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each")
    parser.add_argument("--folder", type=Path, help="where to download to (its disk counts)")
    asked = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="bench-") as name:
        folder = Path(name)
        size = int(asked.gib * (1 << 30)) // BLOCK * BLOCK
        expected = write_model(folder / "hub" / REPO / FILE, size)
        server, url = start_server(folder / "hub")
        try:
            seconds: dict[str, list[float]] = {"curl + sha256sum": [], "localmoe pull": []}
            for run in range(asked.runs + 1):
                for way, taken in seconds.items():
                    target = folder / "target"
                    target.mkdir()
                    if way == "localmoe pull":
                        result = ours(url, target, expected)
                    else:
                        result = plain(url, target, expected)
                    shutil.rmtree(target)
                    if run:
                        taken.append(result)
                    print(f"{way}: {result:.2f} s", file=sys.stderr)
        finally:
            server.kill()
            server.wait()
    medians = {way: statistics.median(taken) for way, taken in seconds.items()}
    plain_s, ours_s = medians.values()
    figures = {
        "bytes": size,
        "seconds": {way: [round(t, 3) for t in taken] for way, taken in seconds.items()},
        "median_mb_per_s": {way: round(size / 1e6 / median) for way, median in medians.items()},
        "ratio": round(plain_s / ours_s, 3),
        "load_average": os.getloadavg()[0],
        "cpus": os.cpu_count(),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
