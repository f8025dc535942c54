"""llama.cpp's own parser of answers, built from the source package of the installed engine.

    python -m scripts.llama_chat_parser BUILD_FOLDER

Its chat units are compiled against the installed libllama: some 35 files, minutes the first time.
``tests/soak/llama_calls.cpp`` is the program; ``tests/soak/test_llama_parser.py`` asks it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from localmoe.engine.package import engine_libraries
from scripts import engine_source

PROGRAM = Path(__file__).parents[1] / "tests" / "soak" / "llama_calls.cpp"
UNITS = ("chat*", "peg-parser", "parsers/*", "jinja/*", "json*", "unicode", "log", "common", "trie")
FOLDERS = ("common", "include", "ggml/include", "ggml/src", "vendor")
LIBRARIES = ("libllama.so.0", "libggml.so.0", "libggml-base.so.0")
FLAGS = ("-std=c++17", "-O1", "-w", "-ffunction-sections", "-fdata-sections")


def program(folder: Path) -> Path:
    """The program, compiled into ``folder`` if it is not there or its source is newer.

    Raises CalledProcessError, EngineError, OSError.
    """
    made = folder / "llama_calls"
    if made.exists() and made.stat().st_mtime >= PROGRAM.stat().st_mtime:
        return made
    root = _sources(folder)
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    includes = [f"-I{root / name}" for name in FOLDERS]

    def compiled(unit: Path) -> Path:
        target = folder / f"{unit.parent.name}-{unit.stem}.o"
        if not target.exists() or unit == PROGRAM:
            part = target.with_suffix(".part")
            command = [*compiler, *FLAGS, *includes, "-c", str(unit), "-o", str(part)]
            subprocess.run(command, check=True)
            part.replace(target)
        return target

    units = [unit for name in UNITS for unit in sorted((root / "common").glob(f"{name}.cpp"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*units, PROGRAM]))
    libraries = engine_libraries()
    link = [*compiler, *map(str, objects), f"-L{libraries}", *(f"-l:{name}" for name in LIBRARIES)]
    # What of common.cpp is about sampling is not linked, since nothing calls it.
    link += ["-Wl,--gc-sections", f"-Wl,-rpath,{libraries}", "-lpthread", "-ldl", "-o", str(made)]
    subprocess.run(link, check=True)
    return made


def _sources(folder: Path) -> Path:
    """llama.cpp's root folder, unpacked into ``folder``."""
    archive = engine_source.archive()
    if not list(folder.glob("*/vendor/llama.cpp")):
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as package:
            wanted = [
                member
                for member in package
                if any(f"/vendor/llama.cpp/{name}/" in member.name for name in FOLDERS)
            ]
            package.extractall(folder, members=wanted, filter="data")
    (root,) = folder.glob("*/vendor/llama.cpp")
    return root


if __name__ == "__main__":
    print(program(Path(sys.argv[1])))
