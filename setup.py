"""Only the optional native helper is declared here; everything else is in pyproject.toml.

It is built with the compiler that llama-cpp-python needs anyway. If the build fails, the
package installs without it and the engine uses its slower Python paths.

pip runs this file before it compiles llama.cpp, which takes minutes and a page of text when it
fails. So what it will lack is said here, in a few lines.
"""

import os
import runpy
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = "localmoe/engine/native"
SOURCES = (
    "native",
    "dry_run",
    "experts",
    "expert_arrival",
    "expert_mapping",
    "expert_memory",
    "expert_offload",
    "expert_prediction",
    "expert_reading",
    "expert_streaming",
    "expert_steering",
    "recording",
    "usage",
)
HEADERS = (
    "direct_queue",
    "expert_cache",
    "export",
    "ggml_layout",
    "prefault_list",
    "recording",
    "usage",
)

BUILT_FROM = runpy.run_path(f"{NATIVE}/__init__.py")["fingerprint"]()
LINUX = sys.platform.startswith("linux")
EXPORTS = f"{NATIVE}/exports.map"  # it is preloaded, so no symbol may be seen that is not meant to

GIB = 1 << 30
DISK = 3 * GIB // 2  # what the sources of llama.cpp, its objects and libraries take
MEMORY = 3 * GIB // 2  # what the largest of its files takes in the compiler, and some more
SKIP = "LOCALMOE_SKIP_BUILD_CHECKS"


def what_is_missing() -> str | None:
    """Why llama.cpp cannot be compiled here, and what to do; None: nothing seems missing."""
    compilers = (os.environ.get("CXX", "").split() or [""])[0], "c++", "g++", "clang++"
    if not any(name and shutil.which(name) for name in compilers):
        return (
            "there is no C++ compiler, and llama.cpp is compiled on your machine.\n"
            "Debian, Ubuntu: sudo apt install g++\n"
            "Fedora: sudo dnf install gcc-c++    Arch: sudo pacman -S gcc"
        )
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < DISK:
        return (
            f"{folder} has {free / GIB:.1f} GiB free, and compiling llama.cpp takes "
            f"{DISK / GIB:.1f}.\nAnother folder: TMPDIR=/path/with/room pip install ."
        )
    available = memory_available()
    if available is not None and available < MEMORY:
        return (
            f"{available / GIB:.1f} GiB of memory are free, and the compiler takes "
            f"{MEMORY / GIB:.1f} for llama.cpp.\nClose programs; then, one file at a time: "
            "CMAKE_BUILD_PARALLEL_LEVEL=1 pip install ."
        )
    return None


def memory_available() -> int | None:
    """Bytes that the system can give without swapping; None where it does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    lines = [line.split() for line in text.splitlines() if line.startswith("MemAvailable:")]
    return int(lines[0][1]) * 1024 if lines else None


def check() -> None:
    """Raises SystemExit with the reason if the engine is not here and could not be compiled."""
    if os.environ.get(SKIP) or find_spec("llama_cpp") is not None:
        return
    if why := what_is_missing():
        raise SystemExit(f"localmoe: {why}\n{SKIP}=1 goes on in spite of it.")


class Helper(build_ext):
    """The helper is opened with ctypes, so it is the same file for every Python."""

    def get_ext_filename(self, ext_name: str) -> str:
        """The name without the tag of the Python that builds it."""
        return str(Path(*ext_name.split(".")).with_suffix(".so"))


class Wheel(bdist_wheel):
    """One wheel for a platform, whatever the Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """``py3-none-PLATFORM``."""
        return "py3", "none", super().get_tag()[2]


check()
setup(
    cmdclass={"bdist_wheel": Wheel, "build_ext": Helper},
    ext_modules=[
        Extension(
            "localmoe.engine.native._native",
            sources=[f"{NATIVE}/{name}.cpp" for name in SOURCES],
            depends=[*(f"{NATIVE}/{name}.h" for name in HEADERS), EXPORTS],
            define_macros=[("LOCALMOE_SOURCES", f'"{BUILT_FROM}"')],
            extra_compile_args=["-std=c++17", "-O2", "-fvisibility=hidden"],
            extra_link_args=[f"-Wl,--version-script={EXPORTS}"] if LINUX else [],
            optional=True,
        )
    ],
)
