"""Wheels that would not run for others are refused, and the table comes from where it is said."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from localmoe.engine import modules
from scripts import wheelhouse

ROOT = Path(__file__).parents[1]
NAME = f"localmoe-1.2.3-py3-none-{wheelhouse.PLATFORM}.whl"


def wheel(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as files:
        for name in names:
            files.writestr(name, "x" * 10)
    return path


def test_an_engine_for_this_processor_alone_is_refused(tmp_path: Path) -> None:
    """The oldest kind of processor has to be there, and one that is quick on what people have."""
    folder = "llama_cpp/lib"
    native = wheel(tmp_path / "native.whl", f"{folder}/libggml-cpu.so")
    with pytest.raises(wheelhouse.WheelhouseError, match="not built for all"):
        wheelhouse.check_engine(native)
    names = [f"{folder}/libggml-cpu-{kind}.so" for kind in ("x64", "haswell", "zen4")]
    portable = wheel(tmp_path / "portable.whl", *names, f"{folder}/libllama.so")
    wheelhouse.check_engine(portable)
    assert wheelhouse.variants(portable) == {"x64": 10, "haswell": 10, "zen4": 10}


def test_localmoe_without_its_helper_or_a_module_is_refused(tmp_path: Path) -> None:
    """A package that was forgotten in pyproject.toml shows nowhere else but in an installation."""
    tracked = ["localmoe/a/b.py", "tests/c.py"]
    wheelhouse.check_localmoe(wheel(tmp_path / NAME, "localmoe/a/b.py", wheelhouse.HELPER), tracked)
    for names, said in (
        (["localmoe/a/b.py"], "lacks the native helper"),
        ([wheelhouse.HELPER], "lacks localmoe/a/b.py"),
    ):
        with pytest.raises(wheelhouse.WheelhouseError, match=said):
            wheelhouse.check_localmoe(wheel(tmp_path / NAME, *names), tracked)
    tagged = tmp_path / "localmoe-1.2.3-cp311-cp311-linux_x86_64.whl"
    with pytest.raises(wheelhouse.WheelhouseError, match="not for every Python"):
        wheelhouse.check_localmoe(wheel(tagged, "localmoe/a/b.py", wheelhouse.HELPER), tracked)


def test_copies_are_left_out_and_the_libraries_are_not() -> None:
    """What is loaded is the plain name and the one that ends in .so.0."""
    lib = "llama_cpp/lib"
    gone = ["lib/libllama.so", f"{lib}/libllama.so.0.5.0", "lib/cmake/llama/llama-config.cmake"]
    kept = [f"{lib}/libllama.so", f"{lib}/libllama.so.0", f"{lib}/libggml-cpu-x64.so"]
    kept += ["include/ggml.h", "llama_cpp/llama_cpp.py"]
    assert all(wheelhouse.COPIES.fullmatch(name) for name in gone)
    assert not any(wheelhouse.COPIES.fullmatch(name) for name in kept)


def test_programs_are_left_out_or_the_build_is_another(tmp_path: Path) -> None:
    """The line that is edited is llama-cpp-python's; without it nobody knows what is compiled."""
    build = tmp_path / "CMakeLists.txt"
    build.write_text('    set(LLAMA_BUILD_COMMON ON CACHE BOOL "…" FORCE)\n')
    wheelhouse.leave_out_programs(build)
    assert build.read_text() == '    set(LLAMA_BUILD_COMMON OFF CACHE BOOL "…" FORCE)\n'
    with pytest.raises(wheelhouse.WheelhouseError, match="LLAMA_BUILD_COMMON"):
        wheelhouse.leave_out_programs(build)


def test_a_vulkan_module_is_laid_where_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the engine; one that was built for another version of it is refused."""
    version = importlib.metadata.version(wheelhouse.ENGINE)
    license = f"llama_cpp_python-{version}.dist-info/licenses/vendor/llama.cpp/LICENSE"
    engine = wheel(tmp_path / f"llama_cpp_python-{version}-py3-none-any.whl", license)
    module = tmp_path / f"ggml-vulkan-{version}.so"
    module.write_bytes(b"ELF")
    wheelhouse.lay_out(module, engine, tmp_path / "wheel")
    laid = tmp_path / "wheel/llama_cpp/lib"
    monkeypatch.setattr(modules, "engine_libraries", lambda: laid)
    assert modules.installed()["vulkan"].read_bytes() == b"ELF"
    about = tmp_path / f"wheel/localmoe_vulkan-{version}.dist-info"
    assert f"Requires-Dist: llama-cpp-python=={version}\n" in (about / "METADATA").read_text()
    assert (about / "licenses/LICENSE").read_text() == "x" * 10
    module.rename(tmp_path / "ggml-vulkan-0.3.1.so")
    with pytest.raises(wheelhouse.WheelhouseError, match="not ggml-vulkan-"):
        wheelhouse.lay_out(tmp_path / "ggml-vulkan-0.3.1.so", engine, tmp_path / "other")


def test_the_engine_is_the_one_that_was_tested() -> None:
    """The version at the lower end of the range."""
    assert wheelhouse.engine_version(ROOT) == importlib.metadata.version(wheelhouse.ENGINE)


@pytest.mark.soak
def test_fresh_systems_answer(tmp_path: Path) -> None:
    """Installed without a network and a compiler, in systems made by debootstrap."""
    wheels = os.environ.get("LOCALMOE_WHEELHOUSE")
    if not wheels or os.geteuid():
        pytest.skip("needs root, and LOCALMOE_WHEELHOUSE=FOLDER of scripts/wheelhouse.py")
    command = [sys.executable, "-m", "scripts.fresh_systems", wheels, "--roots", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| Debian ") == 3
