"""A read-only file system of one file; the process that serves it can be stopped, like a disk.

As a program: ``python -m tests.systems.fuse FILE FOLDER FLAGS`` serves until it is killed.
Source of the messages: linux/fuse.h. Mounting needs root and /dev/fuse.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT, ENTRY = 1, 2  # node ids
LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 14, 15, 17, 18
FLUSH, INIT, OPENDIR, RELEASEDIR, ACCESS = 25, 26, 27, 29, 34
INTERRUPT, DESTROY, BATCH_FORGET = 36, 38, 42
UNANSWERED = (FORGET, INTERRUPT, DESTROY, BATCH_FORGET)
DIRECT_IO = 1  # no page cache, and so no shared mapping
READ_ONLY = 1 | 2 | 4  # MS_RDONLY, MS_NOSUID, MS_NODEV
DELAY = 0.0005  # seconds before each read: an answer lasts long enough to be disturbed


class Served:
    """The messages of one mount."""

    def __init__(self, file: Path, flags: int) -> None:
        self._flags = flags
        self._name = file.name.encode()
        self._file = os.open(file, os.O_RDONLY)
        self._status = os.fstat(self._file)

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | int:
        """What a request gets: bytes, or an error number."""
        if opcode == INIT:
            return struct.pack("<4I2H2I2HI7I", 7, 31, 0, 0, 8, 6, 4096, 1, 1, 0, 0, *(0,) * 7)
        if opcode == LOOKUP:
            if body.rstrip(b"\0") != self._name:
                return errno.ENOENT
            return struct.pack("<4Q2I", ENTRY, 0, 1, 1, 0, 0) + self._attributes(ENTRY)
        if opcode == GETATTR:
            return struct.pack("<Q2I", 1, 0, 0) + self._attributes(node)
        if opcode in (OPEN, OPENDIR):
            return struct.pack("<Q2I", 0, self._flags if opcode == OPEN else 0, 0)
        if opcode == READ:
            _, offset, size = struct.unpack_from("<2QI", body)
            time.sleep(DELAY)
            return os.pread(self._file, size, offset)
        if opcode == STATFS:
            return struct.pack("<5Q4I6I", 0, 0, 0, 0, 0, 4096, 255, 4096, 0, *(0,) * 6)
        return b"" if opcode in (RELEASE, RELEASEDIR, FLUSH, ACCESS) else errno.ENOSYS

    def _attributes(self, node: int) -> bytes:
        size = self._status.st_size if node == ENTRY else 0
        mode = stat.S_IFREG | 0o644 if node == ENTRY else stat.S_IFDIR | 0o755
        times = (int(self._status.st_mtime),) * 3
        return struct.pack(
            "<6Q10I", node, size, -(-size // 512), *times, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
        )


def serve(file: Path, folder: Path, flags: int) -> None:
    """Mount, say "ready", and answer until the end."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (b"one-file", os.fsencode(folder), b"fuse", READ_ONLY, options)
    if libc.mount(*(ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    print("ready", flush=True)
    served = Served(file, flags)
    while True:
        request = os.read(device, 1 << 20)
        _, opcode, unique, node = struct.unpack_from("<2I2Q", request)
        if opcode in UNANSWERED:
            continue
        found = served.answer(opcode, node, request[40:])
        error, body = (0, found) if isinstance(found, bytes) else (-found, b"")
        with contextlib.suppress(FileNotFoundError):  # whoever asked is gone
            os.write(device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)


@contextlib.contextmanager
def mounted(file: Path, folder: Path, flags: int = 0) -> Iterator[subprocess.Popen[str]]:
    """``file`` in ``folder`` under its name, and the process that serves it.

    ``flags``: of each opened file, as DIRECT_IO. The test is skipped where nothing can be mounted,
    but fails under CI: there it may not go missing unseen.
    """
    folder.mkdir()
    command = [sys.executable, "-m", "tests.systems.fuse", str(file), str(folder), str(flags)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            if process.stdout.readline() != "ready\n":
                why = process.stderr.read().strip().rpartition("\n")[2]
                (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no FUSE: {why}")
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            subprocess.run(["umount", "-l", folder], capture_output=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
