"""The wheelhouse in systems that have nothing but Python: how long until the first answer.

    python -m scripts.fresh_systems WHEELHOUSE [--roots FOLDER]

As root. Makes minimal Debian systems with debootstrap (--roots: they stay there, and are used
again). In each, without a network and a compiler: installs, asks nano, has its experts read from
the disk, and asks again with the kernels of the oldest processor alone. If the Vulkan module is
there, installs it, and the doctor says why it has no GPU. Prints the table of docs/releasing.md.
Exits with 1 if something fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from scripts.wheelhouse import OLDEST, VULKAN

SYSTEMS = (  # name, suite, packages
    ("Debian 12", "bookworm", "python3-venv"),
    ("Debian 13", "trixie", "python3-venv,libvulkan1"),  # Vulkan's loader, and no driver for it
    ("Debian testing", "testing", "python3-venv"),
)
MIRROR = "http://deb.debian.org/debian"
BIN = "/trial/venv/bin"
ASK = f"{BIN}/localmoe run -q nano"
QUESTION = "'What is a mixture of experts?'"
ENGINE = "/trial/venv/lib/python3*/site-packages/llama_cpp/lib"


class TrialError(Exception):
    """What did not work."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds, and bytes on the disk."""

    python: str
    install_s: float
    answer_s: float
    nbytes: int


def debootstrap(suite: str, packages: str, root: Path) -> None:
    """A minimal system with these packages, unless it is there."""
    if (root / "usr/bin/python3").exists():
        return
    options = ("--variant=minbase", f"--include={packages}")
    subprocess.run(["debootstrap", *options, suite, str(root), MIRROR], check=True)


class System:
    """A root folder, in which commands run with a /proc of their own and no network."""

    def __init__(self, root: Path, wheels: Path) -> None:
        self._wheels = wheels
        self._mounts = (
            f"mount --bind {shlex.quote(str(wheels))} {shlex.quote(str(root / 'trial/wheels'))} && "
            f"mount -t proc proc {shlex.quote(str(root / 'proc'))} && "
            f'exec chroot {shlex.quote(str(root))} sh -ec "$1"'
        )
        subprocess.run(["rm", "-rf", str(root / "trial")], check=True)
        (root / "trial/wheels").mkdir(parents=True)

    def has(self, wheel: str) -> bool:
        """Whether there is a wheel of such a name for it."""
        return any(self._wheels.glob(wheel))

    def run(self, command: str) -> tuple[str, float]:
        """What a shell command says, and its seconds. Raises TrialError."""
        began = time.monotonic()
        done = subprocess.run(
            [
                "unshare",
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "sh",
                "-c",
                self._mounts,
                "-",
                command,
            ],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/trial", "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise TrialError(f"{command}\n{done.stdout}{done.stderr}")
        return done.stdout.strip(), time.monotonic() - began


def trial(system: System) -> Figures:
    """Install and ask. Raises TrialError."""
    system.run("! command -v cc gcc g++ c++ clang make cmake")
    system.run("! python3 -c 'import socket; socket.create_connection((\"192.0.2.1\", 80), 1)'")
    version, _ = system.run("python3 -c 'import platform; print(platform.python_version())'")
    system.run("python3 -m venv /trial/venv")
    place = "--no-index --find-links /trial/wheels"
    _, install_s = system.run(f"{BIN}/pip install --quiet {place} localmoe")
    system.run(f"{BIN}/pip check")
    size, _ = system.run("du --summarize --bytes /trial/venv")
    first, answer_s = system.run(f"{ASK} {QUESTION}")
    expect(first, r"\bexperts\b")
    told, _ = system.run(f"{ASK} {QUESTION} --temp 0 --json --cache private --cache-ram 0.005")
    expect(told, r'"regime": "private"')
    here, _ = system.run(f"{ASK} {QUESTION} --temp 0")
    kernels = f"ls {ENGINE}/libggml-cpu-*.so"
    system.run(f"for file in $({kernels} | grep -v -- -{OLDEST}.so); do rm $file; done")
    oldest, _ = system.run(f"{ASK} {QUESTION} --temp 0")
    if oldest != here:
        raise TrialError(f"with {OLDEST} alone the answer is another:\n{oldest}\n---\n{here}")
    if system.has(f"{VULKAN}-*.whl"):
        system.run(f"{BIN}/pip install --quiet {place} 'localmoe[vulkan]' && {BIN}/pip check")
        told, _ = system.run(f"{BIN}/localmoe doctor")
        expect(told, r"vulkan module: [\s\S]*(sees no device|loader is not installed)")
    return Figures(version, install_s, answer_s, int(size.split()[0]))


def expect(text: str, pattern: str) -> None:
    """Raises TrialError."""
    if not re.search(pattern, text):
        raise TrialError(f"no {pattern} in:\n{text}")


def row(name: str, figures: Figures) -> str:
    """A row of the table."""
    return (
        f"| {name} | {figures.python} | {figures.install_s:.0f} s | {figures.answer_s:.1f} s "
        f"| {figures.nbytes / 1e6:.0f} MB |"
    )


def main() -> int:
    """Parse the command line, try each system, print; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheelhouse", type=Path)
    parser.add_argument("--roots", type=Path, metavar="FOLDER", help="of the systems")
    args = parser.parse_args()
    if os.geteuid():
        print("only root can make and enter another system", file=sys.stderr)
        return 1
    print("| system | Python | installed in | first answer after | on the disk |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, suite, packages in SYSTEMS:
            root = (args.roots or Path(scratch)).resolve() / suite
            try:
                debootstrap(suite, packages, root)
                figures = trial(System(root, args.wheelhouse.resolve()))
            except (TrialError, subprocess.CalledProcessError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
            print(row(name, figures), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
