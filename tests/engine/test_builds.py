"""Rebuilding the engine: what would be done, and why pip cannot give back an old build instead."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from localmoe.engine import builds
from localmoe.engine.backends import BACKENDS, declared_version
from localmoe.engine.builds import plan_engine, require_system, run_command
from localmoe.engine.module_build import plan_module
from localmoe.errors import EngineError

pytestmark = pytest.mark.process

GIB = 1 << 30


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    return tmp_path


def here(program: str) -> str | None:
    """Every program is there."""
    return f"/usr/bin/{program}"


def but_no_nvcc(program: str) -> str | None:
    """Every program but NVIDIA's compiler is on PATH."""
    return None if program == "nvcc" else here(program)


def test_the_commands_go_around_the_cache_of_pip() -> None:
    """Built from source, without pip's cache, for this version; then installed by force."""
    build = plan_engine(BACKENDS["rocm"], cores=8, ram=64 * GIB, which=here)
    compile_it, install = build.commands
    assert compile_it.startswith("CMAKE_ARGS='-DGGML_HIP=on -DGGML_RPC=on' ")
    for flag in ("--no-cache-dir", "--no-binary llama-cpp-python", f"=={build.version}"):
        assert flag in compile_it
    assert "--force-reinstall" in install and install.endswith("/*.whl")
    assert str(build.target) in compile_it and str(build.target) in install


def test_a_kept_wheel_is_installed_at_once() -> None:
    """From the second time on nothing is compiled, unless it is asked for."""
    first = plan_engine(BACKENDS["rocm"], cores=2, ram=GIB, which=here)
    first.target.mkdir(parents=True)
    wheel = first.target / f"llama_cpp_python-{first.version}-py3-none-linux_x86_64.whl"
    wheel.write_bytes(b"")
    again = plan_engine(BACKENDS["rocm"], cores=2, ram=GIB, which=here)
    assert again.kept == wheel and again.minutes == 0
    assert len(again.commands) == 1 and again.commands[0].endswith(wheel.name)
    assert plan_engine(BACKENDS["rocm"], cores=2, ram=GIB, anew=True).kept is None


def test_a_wheel_is_for_one_backend_version_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another processor's wheel would stop with an illegal instruction."""
    rocm = plan_engine(BACKENDS["rocm"], cores=2, ram=GIB)
    assert plan_engine(BACKENDS["cpu"], cores=2, ram=GIB).target != rocm.target
    monkeypatch.setattr(builds, "_processor", lambda: "another one")
    assert plan_engine(BACKENDS["rocm"], cores=2, ram=GIB).target != rocm.target


def test_memory_limits_the_compilers() -> None:
    """Each compiler of GPU kernels takes about 2 GiB, so a small machine runs fewer at once."""
    few = plan_engine(BACKENDS["rocm"], cores=16, ram=9 * GIB)
    assert few.environment["CMAKE_BUILD_PARALLEL_LEVEL"] == "4"
    many = plan_engine(BACKENDS["rocm"], cores=16, ram=64 * GIB)
    assert many.environment["CMAKE_BUILD_PARALLEL_LEVEL"] == "16"
    assert few.minutes == 4 * many.minutes


def test_missing_tools_are_named_with_where_to_get_them() -> None:
    build = plan_module(BACKENDS["vulkan"], cores=2, ram=GIB, which=lambda _: None)
    names = [tool.name for tool in build.missing]
    assert names[:4] == ["a C++ compiler", "cmake", "ninja", "glslc"]
    assert all(tool.get for tool in build.missing)


def test_a_toolkit_that_lacks_cublas_is_told_before_an_hour_of_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one made of wheels: nvcc alone is not enough. CMake is told which toolkit was found,
    and the module where its libraries are.
    """
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda p: str(p).startswith(str(tmp_path)) and exists(p))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    files = ("bin/nvcc", "include/cublas_v2.h", "lib/libcublas.so", "lib64/stubs/libcuda.so")
    for done, file in enumerate(files):
        build = plan_module(BACKENDS["cuda"], cores=2, ram=GIB, which=but_no_nvcc)
        assert len(build.missing) == len(files) - done
        assert all(tool.get for tool in build.missing)
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    build = plan_module(BACKENDS["cuda"], cores=2, ram=GIB, which=but_no_nvcc)
    assert build.missing == ()
    assert f"-DCMAKE_CUDA_COMPILER={tmp_path}/bin/nvcc" in build.commands[0]
    assert f"-DCUDAToolkit_ROOT={tmp_path}" in build.commands[0]
    assert f"-DCMAKE_INSTALL_RPATH={tmp_path}/lib" in build.commands[0].split()


@pytest.mark.parametrize(("version", "enough"), [("1.3.239", False), ("1.4.309", True)])
def test_old_vulkan_headers_are_missing_ones(
    version: str, enough: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian 12's fail after minutes of compiling; the check says so before, and what to get."""
    first, second, last = version.split(".")
    header = tmp_path / "include" / "vulkan" / "vulkan_core.h"
    header.parent.mkdir(parents=True)
    header.write_text(
        f"#define VK_HEADER_VERSION {last}\n#define VK_HEADER_VERSION_COMPLETE "
        f"VK_MAKE_API_VERSION(0, {first}, {second}, VK_HEADER_VERSION)\n"
    )
    monkeypatch.setenv("VULKAN_SDK", str(tmp_path))
    build = plan_module(BACKENDS["vulkan"], cores=2, ram=GIB)
    lacking = [tool for tool in build.missing if tool.least]
    assert (not lacking) is enough
    assert declared_version(header) == version
    if lacking:
        (tool,) = lacking
        assert "1.3.272 or newer" in tool.name and "VULKAN_SDK" in tool.get


def test_a_module_is_built_from_sources_alone_and_kept_by_version() -> None:
    """One target, of this version of the engine; where it is there nothing is compiled."""
    build = plan_module(BACKENDS["vulkan"], cores=2, ram=64 * GIB, which=here)
    configure, compile_it, copy = build.commands
    assert "-DGGML_BACKEND_DL=ON" in configure and "-DGGML_VULKAN=on" in configure
    assert "-Wl,--no-as-needed" in configure  # else an empty libcuda.so is left out of the module
    assert compile_it.endswith("--target ggml-vulkan --parallel 2")
    assert build.version in build.target.name and copy.endswith(str(build.target))
    build.target.parent.mkdir(parents=True)
    build.target.write_bytes(b"")
    again = plan_module(BACKENDS["vulkan"], cores=2, ram=64 * GIB)
    assert again.kept == build.target and again.commands == [] and again.minutes == 0
    assert plan_module(BACKENDS["vulkan"], cores=2, ram=GIB, anew=True).kept is None


@pytest.mark.skipif(platform.system() == "Darwin", reason="Metal can be built there")
def test_a_backend_of_another_system_is_refused() -> None:
    with pytest.raises(EngineError, match="metal is for Darwin"):
        require_system(BACKENDS["metal"])


def test_the_users_own_cmake_arguments_come_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """And they make another wheel."""
    plain = plan_engine(BACKENDS["rocm"], cores=2, ram=GIB)
    monkeypatch.setenv("CMAKE_ARGS", "-DAMDGPU_TARGETS=gfx1100")
    build = plan_engine(BACKENDS["rocm"], cores=2, ram=GIB)
    assert build.environment["CMAKE_ARGS"].endswith("-DAMDGPU_TARGETS=gfx1100")
    assert build.target != plain.target


def stand_in_for_pip(folder: Path, script: str) -> tuple[str, ...]:
    program = folder / "pip.py"
    program.write_text(script)
    return (sys.executable, str(program))


def test_progress_and_the_cause_of_a_failure(tmp_path: Path) -> None:
    """Ninja's counts become progress; of many errors the first is told."""
    lines = ["[1/4] one", "[4/4] two", "x.cu:3: error: no such thing", "error: subprocess failed"]
    script = f"print({chr(10).join(lines)!r}); raise SystemExit(1)"
    seen: list[float] = []
    with pytest.raises(EngineError, match="no such thing") as caught:
        seen.extend(run_command(stand_in_for_pip(tmp_path, script), {}))
    assert seen == [0.25, 1.0]
    assert "--dry-run" in (caught.value.hint or "")


@pytest.mark.skipif(shutil.which("sleep") is None, reason="needs sleep")
def test_a_build_that_is_left_ends_with_its_compilers(tmp_path: Path) -> None:
    """Ctrl-C must not leave compilers running for an hour."""
    mark = tmp_path / "child"
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        f"open({str(mark)!r}, 'w').write(str(child.pid))\n"
        "print('[1/9]', flush=True)\n"
        "child.wait()\n"
    )
    run = run_command(stand_in_for_pip(tmp_path, script), {})
    assert next(run) == pytest.approx(1 / 9)
    child = mark.read_text()
    run.close()  # type: ignore[attr-defined]
    state = subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True)
    assert state.stdout.strip()[:1] in ("", "Z")
