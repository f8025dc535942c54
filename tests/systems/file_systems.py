"""File systems made for a test: each of a kind that model files are on, with a folder in it.

Needs root, and for some kinds their programs (Debian: xfsprogs, btrfs-progs, squashfs-tools,
bindfs).
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.needs import missing, no_mount
from tests.systems import fault_fs

IMAGE = 400 << 20  # bytes of a disk image, a hole at first; XFS takes no less than 300 MiB


@dataclass(frozen=True, slots=True)
class Kind:
    """``mounted(files, place)``: a context in which the files of a folder are on it."""

    name: str
    mounted: Callable[[Path, Path], AbstractContextManager[Path]]


def _ran(*command: str | Path) -> None:
    """Run a program; the test is skipped where it is missing, or the system refuses the mount."""
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        missing(f"no {words[0]}", expected=False)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        no_mount(f"{' '.join(words[:2])}: {done.stderr.strip()}")


@contextlib.contextmanager
def _mount(point: Path, *options: str | Path) -> Iterator[Path]:
    point.mkdir()
    _ran("mount", *options, point)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def _disk(kind: str, *options: str, make: tuple[str, ...] = ()) -> Kind:
    """A disk image with this file system in it."""

    @contextlib.contextmanager
    def mounted(files: Path, place: Path) -> Iterator[Path]:
        image = place / "image"
        with image.open("wb") as file:
            file.truncate(IMAGE)
        _ran(f"mkfs.{kind}", *make, image)
        with _mount(place / "mount", "-o", ",".join(("loop", *options)), image) as point:
            shutil.copytree(files, point / "models")
            # Written and read anew, so that a file is where such a file system puts it.
            subprocess.run(["sync", "-f", point], check=True)
            subprocess.run(["mount", "-o", "remount,ro", point], check=False)
            yield point / "models"

    return Kind(" ".join((kind, *options, *make)), mounted)


@contextlib.contextmanager
def _tmpfs(files: Path, place: Path) -> Iterator[Path]:
    with _mount(place / "mount", "-t", "tmpfs", "none") as point:
        shutil.copytree(files, point / "models")
        yield point / "models"


@contextlib.contextmanager
def _squashfs(files: Path, place: Path) -> Iterator[Path]:
    image = place / "image"
    _ran("mksquashfs", files, image, "-quiet")
    with _mount(place / "mount", "-o", "loop", image) as point:
        yield point


@contextlib.contextmanager
def _overlay(files: Path, place: Path) -> Iterator[Path]:
    with ExitStack() as stack:  # the upper folder may not be on an overlay itself
        upper = stack.enter_context(_mount(place / "upper", "-t", "tmpfs", "none"))
        for name in ("changes", "work"):
            (upper / name).mkdir()
        how = f"lowerdir={files},upperdir={upper / 'changes'},workdir={upper / 'work'}"
        yield stack.enter_context(_mount(place / "mount", "-t", "overlay", "-o", how, "none"))


@contextlib.contextmanager
def _bindfs(files: Path, place: Path) -> Iterator[Path]:
    point = place / "mount"
    point.mkdir()
    _ran("bindfs", "-r", files, point)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


def _fuse(files: Path, place: Path) -> AbstractContextManager[Path]:
    return fault_fs.mounted(files, place / "mount")


KINDS = (
    _disk("ext4"),
    _disk("ext4", "data=journal"),
    _disk("ext4", make=("-b", "1024")),
    _disk("xfs"),
    _disk("btrfs"),
    _disk("btrfs", "compress-force=zstd"),
    Kind("tmpfs", _tmpfs),
    Kind("squashfs", _squashfs),
    Kind("overlay", _overlay),
    Kind("FUSE", _fuse),
    Kind("bindfs", _bindfs),
)
