"""The machine, from trees of files as real systems have them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from localmoe.errors import StorageError
from localmoe.facts import cgroup
from localmoe.facts.gpus import Gpu, merge, system_gpus
from localmoe.facts.hardware import detect, free_memory, measure_disk, own_memory

GIB = 1 << 30
MIB = 1 << 20
NO_LIMIT_V1 = "9223372036854771712"
MEMINFO = f"MemTotal: {64 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {50 * GIB // 1024} kB\n"


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """Files below ``root``, as a system has them below /."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def mount(where: str, kind: str, options: str, shown: str = "/") -> str:
    """A line of /proc/self/mountinfo."""
    return f"35 24 0:30 {shown} {where} rw,nosuid - {kind} cgroup {options}\n"


V2_MOUNT = mount("/sys/fs/cgroup", "cgroup2", "rw,nsdelegate")


def v2(group: str, limit: int | None, usage: int = 0, cache: int = 0) -> dict[str, str]:
    """A version 2 group's memory files; ``cache`` half active, half inactive."""
    folder = f"sys/fs/cgroup{group}"
    return {
        f"{folder}/memory.max": "max\n" if limit is None else f"{limit}\n",
        f"{folder}/memory.high": "max\n",
        f"{folder}/memory.current": f"{usage}\n",
        f"{folder}/memory.stat": f"anon 5\nfile {cache}\nshmem 3\n"
        f"inactive_file {cache // 2}\nactive_file {cache // 2}\nslab 1\n",
    }


def v1(group: str, limit: str, usage: int, cache: int = 0, own_cache: int = 0) -> dict[str, str]:
    """A version 1 group's memory files; ``cache`` includes the groups below."""
    folder = f"sys/fs/cgroup/memory{group}"
    return {
        f"{folder}/memory.limit_in_bytes": limit,
        f"{folder}/memory.usage_in_bytes": str(usage),
        f"{folder}/memory.stat": f"cache 1\ninactive_file {own_cache}\nactive_file 0\n"
        f"total_inactive_file {cache // 2}\ntotal_active_file {cache // 2}\n",
    }


def test_no_cgroup(tmp_path: Path) -> None:
    """Without limits the figures are the kernel's."""
    machine = detect(root=tree(tmp_path, {"proc/meminfo": MEMINFO}))
    assert (machine.ram_total, machine.ram_available) == (64 * GIB, 50 * GIB)
    assert machine.ram_limited_by is None


def test_version_2_counts_page_cache_as_available(tmp_path: Path) -> None:
    """limit - usage + file pages: cached weights do not make a container look full."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/user.slice/app.scope\n",
        "proc/self/mountinfo": V2_MOUNT,
        **v2("/user.slice", None, 30 * GIB),
        **v2("/user.slice/app.scope", 8 * GIB, 7 * GIB, 4 * GIB),
    }
    machine = detect(root=tree(tmp_path, files))
    assert machine.ram_total == 8 * GIB
    assert machine.ram_available == 5 * GIB
    assert machine.ram_limited_by == "cgroup v2"


def test_every_level_above_limits_too(tmp_path: Path) -> None:
    """The total is the tightest limit; what is available may be held down by another level."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/a/b/c\n",
        "proc/self/mountinfo": V2_MOUNT,
        **v2("/a", 16 * GIB, 15 * GIB),  # used up by its other groups
        **v2("/a/b", None),
        **v2("/a/b/c", 8 * GIB, 2 * GIB),
    }
    machine = detect(root=tree(tmp_path, files))
    assert (machine.ram_total, machine.ram_available) == (8 * GIB, 1 * GIB)


def test_memory_high_slows_down_before_max(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/a\n",
        "proc/self/mountinfo": V2_MOUNT,
        **v2("/a", 8 * GIB, GIB),
        "sys/fs/cgroup/a/memory.high": str(6 * GIB),
    }
    machine = detect(root=tree(tmp_path, files))
    assert (machine.ram_total, machine.ram_available) == (6 * GIB, 5 * GIB)


def test_container_with_a_namespace_of_its_own(tmp_path: Path) -> None:
    """The group is called / and its files lie in the mount point itself."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT,
        **v2("", 4 * GIB, GIB, GIB // 2),
    }
    machine = detect(root=tree(tmp_path, files))
    assert (machine.ram_total, machine.ram_available) == (4 * GIB, 7 * GIB // 2)


@pytest.mark.parametrize("group", ["/docker/abc", "/docker/abc/inner"])
def test_version_1_container(tmp_path: Path, group: str) -> None:
    """The mount shows the groups from the container's own down; ``total_`` counts those below."""
    inner = group.removeprefix("/docker/abc")
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": f"5:memory:{group}\n4:cpu,cpuacct:{group}\n0::/\n",
        "proc/self/mountinfo": mount("/sys/fs/cgroup/memory", "cgroup", "rw,memory", "/docker/abc")
        + mount("/sys/fs/cgroup/unified", "cgroup2", "rw"),
        **v1("", str(10 * GIB), 9 * GIB, cache=6 * GIB, own_cache=GIB),
        **(v1(inner, NO_LIMIT_V1, GIB) if inner else {}),
    }
    machine = detect(root=tree(tmp_path, files))
    assert (machine.ram_total, machine.ram_available) == (10 * GIB, 7 * GIB)
    assert machine.ram_limited_by == "cgroup v1"


def test_version_1_nested(tmp_path: Path) -> None:
    """On the host itself: every group up to the top is looked at."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "9:name=systemd:/x\n5:memory:/slurm/job_1/step_0\n",
        "proc/self/mountinfo": mount("/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
        **v1("", NO_LIMIT_V1, 60 * GIB),
        **v1("/slurm", NO_LIMIT_V1, 50 * GIB),
        **v1("/slurm/job_1", str(12 * GIB), 5 * GIB, cache=2 * GIB),
        **v1("/slurm/job_1/step_0", NO_LIMIT_V1, 4 * GIB),
    }
    machine = detect(root=tree(tmp_path, files))
    assert (machine.ram_total, machine.ram_available) == (12 * GIB, 9 * GIB)


def test_a_limit_above_the_hardware_is_none(tmp_path: Path) -> None:
    """It is not named as a limit, but its group's usage still counts."""
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/a\n",
        "proc/self/mountinfo": V2_MOUNT,
        **v2("/a", 100 * GIB, 70 * GIB),
    }
    machine = detect(root=tree(tmp_path, files))
    assert (machine.ram_total, machine.ram_available) == (64 * GIB, 30 * GIB)
    assert machine.ram_limited_by is None


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "garbage\n\x00\n0::", "proc/self/mountinfo": "short\n - - \n"},
        {"proc/self/cgroup": "0::/../../etc\n", "proc/self/mountinfo": V2_MOUNT},
        {
            "proc/self/cgroup": "0::/gone\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/memory.max": "eight gigabytes",
            "sys/fs/cgroup/memory.stat": "inactive_file\nactive_file -3\n",
        },
    ],
)
def test_odd_files_are_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    assert cgroup.memory_limit(tree(tmp_path, files)) is None
    assert cgroup.cpu_limit(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        ({"sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
        (
            {"sys/fs/cgroup/a/cpu.max": "800000 100000", "sys/fs/cgroup/cpu.max": "200000 100000"},
            2.0,
        ),
        (
            {
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        (
            {
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
            },
            None,
        ),
    ],
)
def test_processor_quota(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    """Both versions, every level; whole processors only count, at least one."""
    tree(tmp_path, files)
    own = "2:cpu,cpuacct:/a\n0::/a\n"
    mounts = V2_MOUNT + mount("/sys/fs/cgroup/cpu", "cgroup", "rw,cpu,cpuacct")
    tree(tmp_path, {"proc/self/cgroup": own, "proc/self/mountinfo": mounts})
    assert cgroup.cpu_limit(tmp_path) == limit
    machine = detect(root=tmp_path)
    allowed = len(os.sched_getaffinity(0))
    expected = allowed if limit is None else max(1, min(allowed, int(limit)))
    assert machine.cores_logical == expected
    assert 1 <= machine.cores_physical <= expected


def test_affinity_counts(tmp_path: Path) -> None:
    """Threads are of the processors this process may use; two of one core are one core."""
    allowed = os.sched_getaffinity(0)
    files: dict[str, str] = {}
    for number in allowed:
        folder = f"sys/devices/system/cpu/cpu{number}/topology"
        files |= {f"{folder}/physical_package_id": "0", f"{folder}/core_id": "7"}
    machine = detect(root=tree(tmp_path, files))
    assert (machine.cores_physical, machine.cores_logical) == (1, len(allowed))


def pci(
    address: str, vendor: str, device: str, kind: str = "030000", **more: str
) -> dict[str, str]:
    folder = f"sys/bus/pci/devices/{address}"
    files = {"vendor": f"0x{vendor}\n", "device": f"0x{device}\n", "class": f"0x{kind}\n", **more}
    return {f"{folder}/{name}": content for name, content in files.items()}


PCI_IDS = (
    "# comment\n1002  Advanced Micro Devices\n\t744c  Navi 31 [Radeon RX 7900 XTX]\n"
    "10de  NVIDIA Corporation\n\t2882  AD107 [GeForce RTX 4060]\n\t\t1043 8888  x\n"
    "8086  Intel Corporation\n\t2882  A wrong one\n\t9a49  TigerLake-LP GT2 [Iris Xe Graphics]\n"
)
RTX = pci("0000:01:00.0", "10de", "2882")
RADEON = pci(
    "0000:03:00.0", "1002", "744c",
    mem_info_vram_total=str(24 * GIB), mem_info_vram_used=str(4 * GIB),
)  # fmt: skip
IRIS = pci("0000:00:02.0", "8086", "9a49")
OTHERS = {
    **pci("0000:00:01.0", "1234", "1111"),  # QEMU's display
    **pci("0000:02:00.0", "10de", "22be", "040300"),  # the sound device of a card
    **pci("0000:04:00.0", "8086", "2725", "028000"),  # Wi-Fi
}


def test_gpus_of_the_system(tmp_path: Path) -> None:
    """Names, memory where the driver tells it, and the build that would use each."""
    tree(tmp_path, {**RTX, **RADEON, **IRIS, **OTHERS, "usr/share/misc/pci.ids": PCI_IDS})
    assert system_gpus(tmp_path) == [
        Gpu("Iris Xe Graphics", 0, 0, False, None, "vulkan", unified=True),
        Gpu("GeForce RTX 4060", 0, 0, False, None, "cuda"),
        Gpu("Radeon RX 7900 XTX", 24 * GIB, 20 * GIB, False, None, "vulkan"),
    ]
    tree(tmp_path, {"dev/kfd": ""})
    assert [gpu.backend for gpu in system_gpus(tmp_path)] == ["vulkan", "cuda", "rocm"]


def test_names_from_the_nvidia_driver(tmp_path: Path) -> None:
    """Better than the database's; and a container may show the driver's tree alone."""
    info = {
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA H100 80GB\nIRQ: 5\n",
        "proc/driver/nvidia/gpus/0000:41:00.0/information": "IRQ: 5\n",
    }
    tree(tmp_path, {**RTX, **info})
    assert [(gpu.name, gpu.backend) for gpu in system_gpus(tmp_path)] == [
        ("NVIDIA H100 80GB", "cuda"),
        ("NVIDIA GPU", "cuda"),
    ]


def test_gpu_without_a_name(tmp_path: Path) -> None:
    assert [gpu.name for gpu in system_gpus(tree(tmp_path, RTX))] == ["NVIDIA GPU 2882"]


def test_gpu_through_wsl(tmp_path: Path) -> None:
    """WSL shows no PCI device, but /dev/dxg and a CUDA library of its own."""
    tree(tmp_path, {"dev/dxg": ""})
    assert system_gpus(tmp_path) == []
    tree(tmp_path, {"usr/lib/wsl/lib/libcuda.so.1": ""})
    assert [gpu.backend for gpu in system_gpus(tmp_path)] == ["cuda"]


def engine_gpu(name: str, device: str, backend: str) -> Gpu:
    return Gpu(name, 8 * GIB, 7 * GIB, True, device, backend)


CUDA = engine_gpu("NVIDIA GeForce RTX 4060", "CUDA0", "cuda")
SYSTEM_RTX = Gpu("GeForce RTX 4060", 0, 0, False, None, "cuda")
SYSTEM_3090 = Gpu("NVIDIA GeForce RTX 3090", 0, 0, False, None, "cuda")
SYSTEM_IRIS = Gpu("Intel Iris Xe Graphics", 0, 0, False, None, "vulkan", unified=True)
SYSTEM_ARC = Gpu("Intel Arc A770", 0, 0, False, None, "vulkan")


@pytest.mark.parametrize(
    ("engine", "system", "left"),
    [
        ([], [SYSTEM_RTX, SYSTEM_IRIS], [SYSTEM_RTX, SYSTEM_IRIS]),
        ([CUDA], [SYSTEM_RTX], []),
        ([CUDA], [SYSTEM_3090, SYSTEM_RTX], [SYSTEM_3090]),
        ([CUDA], [SYSTEM_3090], []),
        ([CUDA], [SYSTEM_IRIS, SYSTEM_RTX], [SYSTEM_IRIS]),
        ([engine_gpu("NVIDIA GeForce RTX 4060", "Vulkan0", "vulkan")], [SYSTEM_RTX], []),
        ([engine_gpu("Intel(R) Graphics", "SYCL0", "sycl")], [SYSTEM_IRIS, SYSTEM_ARC],
         [SYSTEM_IRIS]),
        ([engine_gpu("NVIDIA GeForce RTX 4060", "RPC0[10.0.0.2:50052]", "rpc")], [SYSTEM_RTX],
         [SYSTEM_RTX]),
        ([engine_gpu("Apple M2", "Metal", "metal")],
         [Gpu("Apple GPU", 1, 1, False, None, "metal", unified=True)], []),
    ],
)  # fmt: skip
def test_no_gpu_is_listed_twice(engine: list[Gpu], system: list[Gpu], left: list[Gpu]) -> None:
    """The engine's devices come first and stand for the system's entries of the same card."""
    assert merge(engine, system) == (*engine, *left)


def test_engine_devices_come_first(tmp_path: Path) -> None:
    machine = detect([CUDA], root=tree(tmp_path, {**RTX, **IRIS}))
    assert [gpu.in_engine for gpu in machine.gpus] == [True, False]


def test_this_machine() -> None:
    """On the real one the figures are in order, and nothing here takes time."""
    machine = detect()
    assert 0 < machine.ram_available <= machine.ram_total <= psutil.virtual_memory().total
    assert 1 <= machine.cores_physical <= machine.cores_logical <= (os.cpu_count() or 1)
    assert machine.disk_free > 0
    assert machine.cpu.isprintable()
    assert machine.disk_read_bandwidth is None


def test_free_space_of_a_folder_to_be(tmp_path: Path) -> None:
    """The folder need not exist yet."""
    here = detect(model_dir=tmp_path / "not" / "yet").disk_free
    assert abs(here - psutil.disk_usage(str(tmp_path)).free) < GIB


def test_measured_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A speed that a disk can have, on a disk and on a file system without direct reads."""
    places = [tmp_path] + ([Path("/dev/shm")] if Path("/dev/shm").is_dir() else [])
    for place in places:
        path = place / f"localmoe-test-{os.getpid()}"
        try:
            path.write_bytes(os.urandom(MIB) * 32 + b"odd end")
            speed = measure_disk(path)
        finally:
            path.unlink(missing_ok=True)
        with capsys.disabled():
            print(f"\n{place}: {speed / 1e6:.0f} MB/s")
        assert 1e6 < speed < 1e12


def test_disk_that_cannot_be_measured(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path / "empty", tmp_path / "none", tmp_path):
        with pytest.raises(StorageError):
            measure_disk(path)


def test_our_own_mapped_pages_are_not_free(tmp_path: Path) -> None:
    """The page cache counts as free, but not the part that this process has mapped and needs."""
    status = "Name:\tpython\nRssAnon:\t 100 kB\nRssFile:\t 1048576 kB\nVmSwap:\t 2048 kB\n"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/status": status,
        "proc/self/cgroup": "0::/a\n",
        "proc/self/mountinfo": V2_MOUNT,
        **v2("/a", 8 * GIB, 7 * GIB, 2 * GIB),
    }
    root = tree(tmp_path, files)
    own = own_memory(root)
    assert (own.mapped, own.swapped) == (GIB, 2 << 20)
    assert free_memory(root) == (3 * GIB, 8 * GIB // 50)
    assert free_memory(root, own.mapped) == (2 * GIB, 8 * GIB // 50)
    assert free_memory(root, 5 * GIB) == (GIB, 8 * GIB // 50), "others' pages are charged elsewhere"
