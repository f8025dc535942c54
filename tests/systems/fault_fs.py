"""A file system that passes a folder's files through and misbehaves: FUSE, spoken directly.

    python -m tests.systems.fault_fs FOLDER MOUNTPOINT [--no-mappings] [--direct EINVAL]

Read-only and flat. Needs root and /dev/fuse; ends when it is unmounted. ``--no-mappings``: every
open file has direct I/O, so that mapping it shared is refused with ENODEV. ``--direct`` and
``--cached``: what becomes of reads past the page cache and through it: the name of the errno with
which they end, or ``slow`` (a short answer would end the file). ``--faults FILE``: a byte for each.
``--stall FILE``: while FILE exists, no read is answered; FILE.waiting tells that one waits.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.needs import no_mount

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 14, 15, 17, 18
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT, DESTROY, BATCH_FORGET = (
    *(25, 26, 27, 28, 29),
    *(36, 38, 42),
)
DIRECT_IO, ASYNC_READ, MAX_PAGES = 1 << 0, 1 << 0, 1 << 22
ROOT = 1
WAITING = ".waiting"


class FaultFs:
    """Answers the kernel's requests, one at a time, until the file system is unmounted."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._options = options
        self._paths = sorted(path for path in folder.iterdir() if path.is_file())
        self._files = [os.open(path, os.O_RDONLY) for path in self._paths]
        self._device = os.open("/dev/fuse", os.O_RDWR)

    def mount(self, point: Path) -> None:
        how = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"fault", os.fsencode(point), b"fuse", 0, how.encode()) != 0:
            raise OSError(ctypes.get_errno(), "mount")

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 20)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                return  # ENODEV: unmounted
            _, kind, unique, node = struct.unpack_from("<IIQQ", request)
            if kind in (FORGET, BATCH_FORGET, INTERRUPT):  # they want no answer
                continue
            answer = self._answer(kind, node, request[40:])
            code, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
            with contextlib.suppress(OSError):
                os.write(self._device, struct.pack("<IiQ", 16 + len(body), code, unique) + body)

    def _answer(self, kind: int, node: int, body: bytes) -> bytes | int:
        if kind == INIT:
            known = ASYNC_READ | MAX_PAGES
            first = struct.pack("<4I2H", 7, 31, 1 << 20, known, 16, 12)
            return first + struct.pack("<2I2H8I", 4096, 1, 256, 0, *[0] * 8)
        if kind == LOOKUP:
            names = [os.fsencode(path.name) for path in self._paths]
            name = body.rstrip(b"\0")
            if name not in names:
                return errno.ENOENT
            found = names.index(name) + 2
            return struct.pack("<QQQQII", found, 0, 1, 1, 0, 0) + self._attributes(found)
        if kind == GETATTR:
            return struct.pack("<QII", 1, 0, 0) + self._attributes(node)
        if kind in (OPEN, OPENDIR):
            flags = DIRECT_IO if self._options.no_mappings and kind == OPEN else 0
            return struct.pack("<QII", 0, flags, 0)
        if kind == READ:
            return self._read(node, *struct.unpack_from("<QQIIQI", body))
        if kind == STATFS:
            return struct.pack("<5Q4I6I", *[0] * 5, 4096, 255, 4096, *[0] * 7)
        return b"" if kind in (RELEASE, RELEASEDIR, FLUSH, READDIR, DESTROY) else errno.ENOSYS

    def _read(
        self, node: int, _: int, offset: int, size: int, __: int, ___: int, flags: int
    ) -> bytes | int:
        stall: Path | None = self._options.stall
        if stall is not None and stall.exists():
            stall.with_suffix(WAITING).touch()
            while stall.exists():
                time.sleep(0.1)
        fault = self._options.direct if flags & os.O_DIRECT else self._options.cached
        if fault and self._options.faults:
            with self._options.faults.open("ab") as file:
                file.write(b".")
        if fault == "slow":
            time.sleep(0.02)
        elif fault:
            return int(getattr(errno, fault))
        return os.pread(self._files[node - 2], size, offset)

    def _attributes(self, node: int) -> bytes:
        if node == ROOT:
            size, when, mode = 0, 0, 0o40755
        else:
            info = os.fstat(self._files[node - 2])
            size, when, mode = info.st_size, int(info.st_mtime), 0o100444
        return struct.pack(
            "<6Q10I", node, size, -(-size // 512), *[when] * 3, *[0] * 3, mode, 1, 0, 0, 0, 4096, 0
        )


@contextlib.contextmanager
def mounted(folder: Path, point: Path, *options: str) -> Iterator[Path]:
    """The folder's files on such a file system; the test is skipped where it cannot be mounted."""
    point.mkdir()
    command = [sys.executable, "-m", "tests.systems.fault_fs", str(folder), str(point), *options]
    command.append("--attended")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as server:
        assert server.stdout is not None
        if server.stdout.readline() != b"mounted\n":
            server.wait()
            no_mount("no FUSE")
        try:
            yield point
        finally:
            subprocess.run(["umount", "-l", point], check=True)
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()


def _unmount_at_end(point: Path) -> None:
    sys.stdin.buffer.read()
    subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("point", type=Path)
    parser.add_argument("--no-mappings", action="store_true")
    parser.add_argument("--direct", default="")
    parser.add_argument("--cached", default="")
    parser.add_argument("--faults", type=Path)
    parser.add_argument("--stall", type=Path)
    parser.add_argument("--attended", action="store_true", help="unmount when stdin is closed")
    options = parser.parse_args()
    system = FaultFs(options.folder, options)
    system.mount(options.point)
    if options.attended:  # a test run that is killed leaves no mount behind
        threading.Thread(target=_unmount_at_end, args=(options.point,), daemon=True).start()
    print("mounted", flush=True)
    system.serve()


if __name__ == "__main__":
    main()
