"""What is uploaded of a release: the source package, from what the tag has and nothing else.

    python -m scripts.release [--out dist]

Refuses unless the tag vVERSION is what is checked out, with the version of localmoe/__init__.py,
CHANGELOG.md has a section for it, and the package has every file that an installation needs. Prints
the SHA-256 of what it wrote.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
NEEDED = re.compile(r"localmoe/.*|models/.*(?<!\.md)|setup\.py|pyproject\.toml|README\.md|LICENSE")


class ReleaseError(Exception):
    """Why this is no release."""


def version_of(root: Path) -> str:
    """The version, which stands in one place."""
    text = (root / "localmoe/__init__.py").read_text("utf-8")
    found = re.search(r'^__version__ = "(\d+\.\d+\.\d+)"$', text, re.M)
    if not found:
        raise ReleaseError("localmoe/__init__.py has no version of three numbers")
    return found[1]


def check_changelog(text: str, version: str) -> None:
    """A dated section for the version comes right after the one for what is to come."""
    heads = re.findall(r"^## \[([^]]+)\](?: - (\d{4}-\d{2}-\d{2}))?$", text, re.M)
    if heads[:1] != [("Unreleased", "")] or not [h for h in heads[1:2] if h[0] == version and h[1]]:
        raise ReleaseError(f"CHANGELOG.md has no section [{version}] - DATE after [Unreleased]")


def check_package(archive: Path, tracked: Iterable[str]) -> None:
    """Every tracked file of an installation is in the archive."""
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    if lacking := sorted({name for name in tracked if NEEDED.fullmatch(name)} - names):
        raise ReleaseError(f"{archive.name} lacks {', '.join(lacking)}")


def git(root: Path, *words: str) -> list[str]:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.splitlines()


def release(root: Path, out: Path) -> Path:
    """Write the source package of the tag that is checked out. Raises ReleaseError."""
    version = version_of(root)
    if f"v{version}" not in git(root, "tag", "--points-at", "HEAD"):
        raise ReleaseError(f"the commit that is checked out does not have the tag v{version}")
    check_changelog((root / "CHANGELOG.md").read_text("utf-8"), version)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        clean = Path(scratch) / "source"
        git(root, "clone", "--quiet", str(root), str(clean))
        subprocess.run(
            [sys.executable, "-c", BUILD, str(out.resolve())],
            cwd=clean,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        archive = out / f"localmoe-{version}.tar.gz"
        check_package(archive, git(clean, "ls-files"))
    return archive


def main() -> int:
    """Parse the command line, build, print; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("dist"))
    try:
        archive = release(ROOT, parser.parse_args().out)
    except ReleaseError as error:
        print(f"no release: {error}", file=sys.stderr)
        return 1
    print(f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  {archive}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
