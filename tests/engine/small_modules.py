"""Small backends of ggml, in C++ beside this file, compiled as modules of the installed engine."""

from __future__ import annotations

import subprocess
from pathlib import Path

from filelock import FileLock

from localmoe.engine import modules
from localmoe.engine.package import BASE, engine_libraries, unpacked
from localmoe.errors import EngineError
from scripts import engine_source
from tests.needs import missing


def compiled(name: str, shared: Path) -> Path:
    """``name``.cpp as the module of CUDA, kept in a folder of that name below ``shared``."""
    source = Path(__file__).with_name(f"{name}.cpp")
    target = shared / name / modules.file_name("cuda")
    with FileLock(shared / f"{name}.lock"):
        if target.exists():
            return target
        target.parent.mkdir()
        try:
            archive = engine_source.archive()
            headers = ("ggml/include/", "ggml/src/ggml-impl.h", "ggml/src/ggml-backend-")
            root = unpacked(archive, shared / f"{name}-source", headers)
        except EngineError as error:
            missing(f"no sources of the engine: {error}")
        defines = ("GGML_SHARED", "GGML_BACKEND_SHARED", "GGML_BACKEND_BUILD", "GGML_BACKEND_DL")
        subprocess.run(
            [
                *("g++", "-std=c++17", "-shared", "-fPIC", *(f"-D{define}" for define in defines)),
                *(f"-I{root / 'ggml/include'}", f"-I{root / 'ggml/src'}", str(source)),
                *(f"-L{engine_libraries()}", f"-l:{BASE}", "-l:libggml.so.0"),
                *("-o", str(target)),
            ],
            check=True,
        )
    return target
