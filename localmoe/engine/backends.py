"""The backends of llama.cpp that can be had here, and what each takes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CPU_MINUTES = 7.2  # processor minutes of the plain build, measured on two cores
HEADERS = "1.3.272"
"""Of Vulkan, that ggml-vulkan.cpp needs: the first that have ``VkLayerSettingEXT``."""


@dataclass(frozen=True, slots=True)
class Tool:
    """What must be installed before a build: any one of ``programs``, or of ``files``."""

    name: str
    programs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()  # variables of the environment are replaced
    get: str = ""  # how to get it
    least: str = ""  # version of Vulkan that the first of ``files`` must declare

    def present(self, which: Callable[[str], str | None] = shutil.which) -> bool:
        """Whether one of the programs or files is there, and new enough."""
        found = self.found(which)
        if found is not None and self.least:
            return numbers(declared_version(Path(found))) >= numbers(self.least)
        return found is not None

    def found(self, which: Callable[[str], str | None] = shutil.which) -> str | None:
        """The first that is there: where a variable says, on PATH, where it usually is."""
        named = [os.path.expandvars(file) for file in self.files if file.startswith("$")]
        usual = [file for file in self.files if not file.startswith("$")]
        on_path = (which(program) for program in self.programs)
        candidates = (*filter(os.path.exists, named), *on_path, *filter(os.path.exists, usual))
        return next(filter(None, candidates), None)


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to build the engine, or a backend that is added to it as a module."""

    name: str
    registry_name: str  # what ggml calls it, once it is built
    flags: tuple[str, ...]  # for CMake
    minutes: float  # processor minutes; those of the plain build and of vulkan were measured
    about: str
    tools: tuple[Tool, ...] = ()
    system: str | None = None  # platform.system() that it needs
    module: bool = False  # built by itself and given to the engine that is there

    def missing(self, which: Callable[[str], str | None] = shutil.which) -> tuple[Tool, ...]:
        """The tools that are to be installed before it can be built."""
        return tuple(tool for tool in self.tools if not tool.present(which))


COMPILER = Tool(
    "a C++ compiler", ("g++", "clang++", "c++"), get="Debian, Ubuntu: apt install g++ make"
)
BUILDING = (
    COMPILER,
    Tool("cmake", ("cmake",), get="Debian, Ubuntu: apt install cmake; or pip install cmake"),
    Tool("ninja", ("ninja",), get="Debian, Ubuntu: apt install ninja-build; or pip install ninja"),
)
TOOLKITS = ("$CUDA_PATH", "/usr/local/cuda", "/opt/cuda")
"""Folders that NVIDIA's toolkit is installed in; Debian puts its own into /usr."""
WHEELS = (
    "A toolkit made of PyPI's wheels has not all of it: docs/devices.md says what is to be added"
)


def in_toolkit(*names: str) -> tuple[str, ...]:
    """The paths of a toolkit's files, wherever it may be. Pure."""
    return tuple(f"{folder}/{name}" for name in names for folder in TOOLKITS)


NVCC = Tool(
    "the CUDA toolkit (nvcc)",
    ("nvcc",),
    in_toolkit("bin/nvcc"),
    "Debian, Ubuntu: apt install nvidia-cuda-toolkit; or developer.nvidia.com/cuda-downloads",
)


def in_system(name: str) -> tuple[str, ...]:
    """The paths where a system's packages put a library for the linker. Pure."""
    folders = ("lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "lib64", "lib")
    return tuple(f"/usr/{folder}/{name}" for folder in folders)


CUBLAS = Tool(
    "cuBLAS for the linker (libcublas.so)",
    files=(*in_toolkit("lib64/libcublas.so", "lib/libcublas.so"), *in_system("libcublas.so")),
    get="it comes with cuBLAS's headers. " + WHEELS,
)


BACKENDS = {
    b.name: b
    for b in (
        Backend("cpu", "CPU", (), CPU_MINUTES, "the processor alone", (COMPILER,)),
        Backend(
            "cuda",
            "CUDA",
            ("-DGGML_CUDA=on",),
            120,
            "NVIDIA GPUs",
            (
                *BUILDING,
                NVCC,
                Tool(
                    "cuBLAS's headers (cublas_v2.h)",
                    files=(*in_toolkit("include/cublas_v2.h"), "/usr/include/cublas_v2.h"),
                    get="NVIDIA's packages: libcublas-dev-13-0, or as the toolkit's version is. "
                    + WHEELS,
                ),
                CUBLAS,
                Tool(
                    "the driver's library for the linker (libcuda.so, a stub will do)",
                    files=(
                        *in_toolkit("lib64/stubs/libcuda.so", "lib/stubs/libcuda.so"),
                        *in_system("libcuda.so"),
                    ),
                    get="NVIDIA's packages: cuda-driver-dev-13-0. " + WHEELS,
                ),
            ),
            system="Linux",
            module=True,
        ),
        Backend(
            "vulkan",
            "Vulkan",
            ("-DGGML_VULKAN=on",),
            25,  # with kernels for cooperative matrices; 5 with a glslc that knows none
            "GPUs of any vendor",
            (
                *BUILDING,
                Tool("glslc", ("glslc",), get="Debian, Ubuntu: apt install glslc"),
                Tool(
                    f"Vulkan's headers, version {HEADERS} or newer",
                    files=(
                        "$VULKAN_SDK/include/vulkan/vulkan_core.h",
                        "/usr/include/vulkan/vulkan_core.h",
                    ),
                    get="Debian 13, Ubuntu 24.04: apt install libvulkan-dev. Older systems: that "
                    "package of Debian 13, unpacked (dpkg-deb -x FILE sdk), or the SDK of "
                    "vulkan.lunarg.com; then VULKAN_SDK=$PWD/sdk/usr before the command",
                    least=HEADERS,
                ),
                Tool(
                    "Vulkan's loader for the linker (libvulkan.so)",
                    files=("$VULKAN_SDK/lib/libvulkan.so", *in_system("libvulkan.so")),
                    get="Debian, Ubuntu: apt install libvulkan-dev",
                ),
                Tool(
                    "SPIR-V's headers",
                    files=(
                        "$VULKAN_SDK/include/spirv/unified1/spirv.hpp",
                        "/usr/include/spirv/unified1/spirv.hpp",
                    ),
                    get="Debian, Ubuntu: apt install spirv-headers",
                ),
            ),
            system="Linux",
            module=True,
        ),
        Backend(
            "rocm",
            "ROCm",
            ("-DGGML_HIP=on",),
            120,
            "AMD GPUs",
            (
                COMPILER,
                Tool(
                    "ROCm's compiler (hipcc)",
                    ("hipcc",),
                    ("/opt/rocm/bin/hipcc",),
                    "rocm.docs.amd.com, with hipblas and rocblas",
                ),
            ),
            system="Linux",
        ),
        Backend(
            "metal",
            "Metal",
            ("-DGGML_METAL=on",),
            8,
            "Apple silicon",
            (Tool("Xcode's command line tools", ("clang++",), get="xcode-select --install"),),
            system="Darwin",
        ),
        Backend(
            "rpc",
            "RPC",
            (),
            0.5,
            "workers on other machines; added to any build in seconds",
            (COMPILER,),
            system="Linux",
        ),
    )
}


def numbers(version: str) -> tuple[int, ...]:
    """``1.3.272`` → (1, 3, 272); () of anything else. Pure."""
    return tuple(map(int, version.split("."))) if re.fullmatch(r"\d+(\.\d+)*", version) else ()


def declared_version(header: Path) -> str:
    """The version that a ``vulkan_core.h`` declares; "" if it declares none."""
    try:
        text = header.read_text(errors="replace")
    except OSError:
        return ""
    last = re.search(r"^#define VK_HEADER_VERSION (\d+)", text, re.MULTILINE)
    first = re.search(r"VK_HEADER_VERSION_COMPLETE\s+VK_MAKE\w+\((?:0, )?(\d+), (\d+),", text)
    return f"{first[1]}.{first[2]}.{last[1]}" if first and last else ""
