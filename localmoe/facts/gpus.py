"""GPUs that the operating system knows, whether or not the engine was built for them.

Linux only: PCI display devices in /sys/bus/pci, names from NVIDIA's /proc tree or the system's
pci.ids, and WSL's device. No program is started.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from localmoe.text import clean_line

NVIDIA, AMD, INTEL = "10de", "1002", "8086"
_VENDORS = {NVIDIA: "NVIDIA", AMD: "AMD", INTEL: "Intel"}
_PCI_IDS = ("usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids")
_INTEL_INTEGRATED = "00:02.0"  # the address of every integrated Intel GPU
_BRANDS = {
    NVIDIA: re.compile(r"nvidia|geforce|\brtx|\bgtx|quadro|tesla", re.IGNORECASE),
    AMD: re.compile(r"\bamd\b|radeon|instinct", re.IGNORECASE),
    INTEL: re.compile(r"\bintel\b|\barc\b|\biris\b", re.IGNORECASE),
}
APPLE = "apple"
_BACKEND_VENDORS = {"cuda": NVIDIA, "rocm": AMD, "hip": AMD, "sycl": INTEL, "metal": APPLE}


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, seen by the engine (``in_engine``) or only by the operating system."""

    name: str
    total: int  # bytes; 0 if unknown
    free: int  # bytes; 0 if unknown
    in_engine: bool
    device: (
        str | None
    )  # the engine's device name ("CUDA0", "RPC0[host:port]"), None if not in_engine
    backend: str | None  # for in_engine=False: the build that would use it ("cuda", "vulkan", …)
    unified: bool = False  # shares the machine's RAM (integrated, Apple silicon)
    remote: str | None = None  # "host:port" of the worker whose device it is


def merge(engine: Sequence[Gpu], system: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """The engine's devices, then the system's GPUs that are none of them. Pure.

    The two lists share no identifier, so each local engine device stands for one system GPU of its
    vendor: the one of the same name, else one with its own memory.
    """
    left = list(system)
    for device in engine:
        vendor = _vendor_of(device)
        same = [gpu for gpu in left if vendor is not None and _vendor_of(gpu) == vendor]
        if same:
            left.remove(min(same, key=lambda gpu: (not _same_name(gpu, device), gpu.unified)))
    return (*engine, *left)


def system_gpus(root: Path = Path("/")) -> list[Gpu]:
    """``root``: where /proc, /sys and /usr are found."""
    nvidia_names = _nvidia_names(root)
    found = []
    for folder in sorted(_children(root / "sys/bus/pci/devices")):
        vendor = _hex(folder / "vendor")
        # Class 03xxxx is a display device; virtual ones have other vendors.
        if vendor in _VENDORS and (_hex(folder / "class") or "").startswith("03"):
            name = nvidia_names.pop(folder.name.lower(), None)
            found.append(_pci_gpu(root, folder, vendor, name))
    found += [_idle(name, "cuda") for name in nvidia_names.values()]
    if not found and (root / "dev/dxg").exists() and _wsl_cuda(root):
        found.append(_idle("NVIDIA GPU (through WSL)", "cuda"))
    return found


def _pci_gpu(root: Path, folder: Path, vendor: str, name: str | None) -> Gpu:
    device = _hex(folder / "device") or ""
    name = name or _read(folder / "product_name") or _pci_name(root, vendor, device)
    name = clean_line(name or f"GPU {device}")[:80]
    if not _BRANDS[vendor].search(name):
        name = f"{_VENDORS[vendor]} {name}"
    total = _number(folder / "mem_info_vram_total")  # written by amdgpu only
    used = _number(folder / "mem_info_vram_used")
    backend = "vulkan"
    if vendor == NVIDIA:
        backend = "cuda"
    elif vendor == AMD and (root / "dev/kfd").exists():
        backend = "rocm"
    integrated = vendor == INTEL and folder.name.endswith(_INTEL_INTEGRATED)
    return _idle(name, backend, total, max(0, total - used), unified=integrated)


def _idle(name: str, backend: str, total: int = 0, free: int = 0, *, unified: bool = False) -> Gpu:
    return Gpu(name, total, free, False, None, backend, unified)


def _nvidia_names(root: Path) -> dict[str, str]:
    """PCI address → name, from the driver; there also where a container hides /sys."""
    names = {}
    for folder in sorted(_children(root / "proc/driver/nvidia/gpus")):
        match = re.search(r"^Model:\s*(.+)$", _read(folder / "information") or "", re.MULTILINE)
        name = clean_line(match[1])[:80] if match else "NVIDIA GPU"
        names[folder.name.lower()] = name
    return names


def _pci_name(root: Path, vendor: str, device: str) -> str | None:
    """From the PCI ID database: ``[GeForce RTX 4060]`` of "AD107 [GeForce RTX 4060]"."""
    for place in _PCI_IDS:
        try:
            with (root / place).open(encoding="utf-8", errors="replace") as file:
                inside = False
                for line in file:
                    if line[:1] not in ("\t", "#", "\n"):
                        inside = line.lower().startswith(vendor)
                    elif inside and line.lower().startswith(f"\t{device}  "):
                        name = line[7:].strip()
                        bracket = re.search(r"\[(.+)\]", name)
                        return bracket[1] if bracket else name
        except OSError:
            continue
    return None


def _vendor_of(gpu: Gpu) -> str | None:
    if gpu.device is not None and gpu.device.startswith("RPC"):
        return None  # of another machine
    vendor = _BACKEND_VENDORS.get(gpu.backend or "")
    if vendor is not None:
        return vendor
    return next((v for v, brand in _BRANDS.items() if brand.search(gpu.name)), None)


def _same_name(one: Gpu, other: Gpu) -> bool:
    a, b = one.name.lower(), other.name.lower()
    return a in b or b in a


def _wsl_cuda(root: Path) -> bool:
    return any((root / "usr/lib/wsl/lib" / n).exists() for n in ("libcuda.so.1", "libcuda.so"))


def _children(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return


def _hex(path: Path) -> str | None:
    """``0x10de`` → ``10de``."""
    text = _read(path)
    return text.lower().removeprefix("0x") if text else None


def _number(path: Path) -> int:
    text = _read(path) or ""
    return int(text) if text.isdecimal() else 0


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace").strip() or None
    except OSError:
        return None
