"""How experts are read: past the page cache, unless that is slow on this file system."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from localmoe.bench.cold_start import forget
from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Request, Sampling
from localmoe.facts.model import read_model
from tests.engine.cache_matrix import BASE
from tests.engine.cached import planned
from tests.needs import missing

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]
PROMPT = "A mixture of experts has many small networks and a router, 0123456789. " * 3

# Makes large reads of one kind slow, on a busy machine too, and notes each: "d" for direct, "c" for
# the page cache.
WATCH = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

ssize_t pread(int fd, void * target, size_t bytes, off_t at) {
    ssize_t (*real)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread");
    if (bytes >= 1 << 17) {
        const char * kind = fcntl(fd, F_GETFL) & O_DIRECT ? "d" : "c";
        int log = open(getenv("READS"), O_WRONLY | O_APPEND);
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        ssize_t done = real(fd, target, bytes, at);
        clock_gettime(CLOCK_MONOTONIC, &to);
        long took = (to.tv_sec - from.tv_sec) * 1000000 + (to.tv_nsec - from.tv_nsec) / 1000;
        if (write(log, kind, 1) == 1 && *kind == *getenv("SLOW")) usleep(20000 + 5 * took);
        close(log);
        return done;
    }
    return real(fd, target, bytes, at);
}

ssize_t pread64(int fd, void * target, size_t bytes, off_t at) {
    return pread(fd, target, bytes, at);
}
"""


@pytest.mark.parametrize("slow", ["d", "c"])
def test_the_quicker_way_is_found(
    slow: str, medium_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first prompt tries both; once memory is full, all that follows goes the quicker way."""
    library, reads = tmp_path / "watch.so", tmp_path / "reads"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(command, input=WATCH.encode(), check=True)
    model = read_model(medium_file)
    base = dataclasses.replace(BASE, context=512, batch=256, ubatch=256)
    settings = planned(medium_file, base, "private", model.expert_bytes // 2)
    if forget([medium_file]) > 0:
        missing("the file stays in the page cache")
    others = os.environ.get("LD_PRELOAD")
    preload = f"{others}:{library}" if others else str(library)
    for name, value in (("LD_PRELOAD", preload), ("READS", str(reads)), ("SLOW", slow)):
        monkeypatch.setenv(name, value)
    with Engine(model, settings, remember=False) as engine:
        list(engine.load())
        seen = []
        for prompt in (PROMPT, PROMPT[::-1]):
            reads.write_text("")
            request = Request(prompt, max_tokens=2, sampling=Sampling(temperature=0))
            done = list(engine.generate(request))[-1]
            assert isinstance(done, Finished) and done.cache is not None
            assert done.cache.bytes_read > model.expert_bytes // 4
            seen.append(reads.read_text())
    first, second = seen
    assert "c" in first and "d" in first
    if slow == "d":
        assert "d" not in second and len(second) > 100
    else:
        assert "c" not in second
