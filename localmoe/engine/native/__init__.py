"""Where the compiled native helper is, if it was built, and whether it is of these sources."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

FOLDER = Path(__file__).parent


def native_path() -> Path | None:
    """The library's file; None if there is none, or if LOCALMOE_NO_NATIVE says to do without."""
    if os.environ.get("LOCALMOE_NO_NATIVE"):
        return None
    # One that was built before it had the same name for every Python has a longer one.
    return min(FOLDER.glob("_native*.so"), key=lambda path: len(path.name), default=None)


def fingerprint() -> str:
    """What tells these C++ sources from any others; "" where only the library is installed.

    ``setup.py`` compiles it into the library. The structures that cross from Python are declared
    on both sides, so a library of other sources would read one where another was written.
    """
    sources = sorted(path for path in FOLDER.iterdir() if path.suffix in (".cpp", ".h"))
    whole = b"".join(path.name.encode() + b"\0" + path.read_bytes() + b"\0" for path in sources)
    return f"{zlib.crc32(whole):08x}" if sources else ""
