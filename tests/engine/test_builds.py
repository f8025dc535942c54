"""Rebuilding the engine: what would be done, and why pip cannot give back an old build instead."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from localmoe.engine import builds
from localmoe.engine.builds import BACKENDS, plan_build
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


def test_the_commands_go_around_the_cache_of_pip() -> None:
    """Built from source, without pip's cache, for this version; then installed by force."""
    build = plan_build(BACKENDS["cuda"], cores=8, ram=64 * GIB, which=here)
    compile_it, install = build.commands
    assert compile_it.startswith("CMAKE_ARGS='-DGGML_CUDA=on -DGGML_RPC=on' ")
    for flag in ("--no-cache-dir", "--no-binary llama-cpp-python", f"=={build.version}"):
        assert flag in compile_it
    assert "--force-reinstall" in install and install.endswith("/*.whl")
    assert str(build.folder) in compile_it and str(build.folder) in install


def test_a_kept_wheel_is_installed_at_once() -> None:
    """From the second time on nothing is compiled, unless it is asked for."""
    first = plan_build(BACKENDS["vulkan"], cores=2, ram=GIB, which=here)
    first.folder.mkdir(parents=True)
    wheel = first.folder / f"llama_cpp_python-{first.version}-py3-none-linux_x86_64.whl"
    wheel.write_bytes(b"")
    again = plan_build(BACKENDS["vulkan"], cores=2, ram=GIB, which=here)
    assert again.kept == wheel and again.minutes == 0
    assert len(again.commands) == 1 and again.commands[0].endswith(wheel.name)
    assert plan_build(BACKENDS["vulkan"], cores=2, ram=GIB, anew=True).kept is None


def test_a_wheel_is_for_one_backend_version_and_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another processor's wheel would stop with an illegal instruction."""
    cuda = plan_build(BACKENDS["cuda"], cores=2, ram=GIB)
    assert plan_build(BACKENDS["cpu"], cores=2, ram=GIB).folder != cuda.folder
    monkeypatch.setattr(builds, "_processor", lambda: "another one")
    assert plan_build(BACKENDS["cuda"], cores=2, ram=GIB).folder != cuda.folder


def test_memory_limits_the_compilers() -> None:
    """Each compiler of GPU kernels takes about 2 GiB, so a small machine runs fewer at once."""
    few = plan_build(BACKENDS["cuda"], cores=16, ram=9 * GIB)
    assert few.environment["CMAKE_BUILD_PARALLEL_LEVEL"] == "4"
    many = plan_build(BACKENDS["cuda"], cores=16, ram=64 * GIB)
    assert many.environment["CMAKE_BUILD_PARALLEL_LEVEL"] == "16"
    assert few.minutes == 4 * many.minutes


def test_missing_tools_are_named_with_where_to_get_them() -> None:
    build = plan_build(BACKENDS["vulkan"], cores=2, ram=GIB, which=lambda _: None)
    names = [tool.name for tool in build.missing]
    assert names[:2] == ["a C++ compiler", "glslc"]
    assert all(tool.get for tool in build.missing)


@pytest.mark.skipif(platform.system() == "Darwin", reason="Metal can be built there")
def test_a_backend_of_another_system_is_refused() -> None:
    with pytest.raises(EngineError, match="metal is for Darwin"):
        plan_build(BACKENDS["metal"], cores=2, ram=GIB)


def test_the_users_own_cmake_arguments_come_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """And they make another wheel."""
    plain = plan_build(BACKENDS["cuda"], cores=2, ram=GIB)
    monkeypatch.setenv("CMAKE_ARGS", "-DCMAKE_CUDA_ARCHITECTURES=89")
    build = plan_build(BACKENDS["cuda"], cores=2, ram=GIB)
    assert build.environment["CMAKE_ARGS"].endswith("-DCMAKE_CUDA_ARCHITECTURES=89")
    assert build.folder != plain.folder


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
        seen.extend(builds._run(stand_in_for_pip(tmp_path, script), {}))
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
    run = builds._run(stand_in_for_pip(tmp_path, script), {})
    assert next(run) == pytest.approx(1 / 9)
    child = mark.read_text()
    run.close()  # type: ignore[attr-defined]
    state = subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True)
    assert state.stdout.strip()[:1] in ("", "Z")
