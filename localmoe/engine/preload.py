"""The native helper is preloaded into a worker: llama.cpp maps files through its ``mmap``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from localmoe.engine.native import native_path


def worker_environment(helper: int | None) -> dict[str, str]:
    """Ours, with the native helper preloaded from an open file: see ``mmap`` in ``native.cpp``.

    Not by its path: the linker takes a blank or a colon in LD_PRELOAD for the end of a name.
    """
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # or a failed check starts a debugger
    if helper is not None:
        others = environment.get("LD_PRELOAD")
        ours = f"/proc/self/fd/{helper}"
        environment["LD_PRELOAD"] = f"{ours}:{others}" if others else ours
    return environment


@contextlib.contextmanager
def open_helper() -> Iterator[int | None]:
    """A descriptor of the native helper, where it can be preloaded; else None.

    LOCALMOE_STOCK_MMAP leaves llama.cpp's mapping as it is: the baseline of measurements.
    """
    path = native_path()
    stock = bool(os.environ.get("LOCALMOE_STOCK_MMAP"))
    if path is None or stock or not sys.platform.startswith("linux"):
        yield None
        return
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)
