"""The engine is asked whether it is the one whose insides we know; if not, it runs plainly."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from localmoe.engine import native, package
from localmoe.errors import EngineError
from localmoe.planning.memory import EngineSettings
from tests.engine.cache_matrix import BASE, FIRST
from tests.engine.cached import Conversation, Turn, in_child, planned

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]


def private(path: Path) -> EngineSettings:
    return planned(path, BASE, "private", 8 << 20)


def moved(address: int, by: int) -> int:
    """A copy of a ggml_tensor whose fields from ``ne`` on lie ``by`` bytes further back."""
    from localmoe.engine.worker.model_tensors import GgmlTensor

    size, at = ctypes.sizeof(GgmlTensor), GgmlTensor.ne.offset
    copy = ctypes.create_string_buffer(size + by)
    ctypes.memmove(copy, address, at)
    ctypes.memmove(ctypes.addressof(copy) + at + by, address + at, size - at)
    _kept.append(copy)
    return ctypes.addressof(copy)


_kept: list[object] = []


def with_moved_fields(path: Path, by: int) -> tuple[str, str, str]:
    """Regime, note and answer where ggml_tensor is not what we take it to be."""
    from localmoe.engine.worker import model_tensors, residency

    real = model_tensors.expert_tensors

    def strange(*arguments: Any) -> list[Any]:
        found = real(*arguments)
        return [dataclasses.replace(tensor, address=moved(tensor.address, by)) for tensor in found]

    vars(residency)["expert_tensors"] = strange
    with Conversation(path, private(path)) as conversation:
        said = conversation.say(Turn(FIRST))
        return conversation.experts.regime, conversation.experts.note, said.answer


def with_data_elsewhere(path: Path, data: int | None) -> tuple[str, str, str]:
    """The same where it lies at another address; None: at that of another tensor."""
    from localmoe.engine.worker import model_tensors, residency

    real = model_tensors.expert_tensors

    def strange(*arguments: Any) -> list[Any]:
        found = real(*arguments)
        copy = moved(found[0].address, 0)
        model_tensors.GgmlTensor.from_address(copy).data = (
            found[-1].loaded.data if data is None else data
        )
        return [dataclasses.replace(found[0], address=copy), *found[1:]]

    vars(residency)["expert_tensors"] = strange
    with Conversation(path, private(path)) as conversation:
        said = conversation.say(Turn(FIRST))
        return conversation.experts.regime, conversation.experts.note, said.answer


def with_other_counts(path: Path, changed: dict[str, Any], more: int) -> tuple[str, str, str]:
    """The same where the first tensor's entry is another, and its group has ``more`` tensors."""
    from localmoe.engine.worker import model_tensors, residency

    real = model_tensors.expert_tensors

    def strange(*arguments: Any) -> list[Any]:
        first, *others = real(*arguments)
        entry = dataclasses.replace(first.entry, **changed)
        return [*[dataclasses.replace(first, entry=entry)] * (1 + more), *others]

    vars(residency)["expert_tensors"] = strange
    vars(residency)["layout_problem"] = lambda *_: None
    with Conversation(path, private(path)) as conversation:
        said = conversation.say(Turn(FIRST))
        return conversation.experts.regime, conversation.experts.note, said.answer


def without_being_asked(path: Path) -> tuple[str, str, str, str, int]:
    """The same where llama.cpp keeps no list of buffer types that it asks."""
    from localmoe.engine.worker import binding

    with Conversation(path, private(path)) as conversation:
        before = conversation.experts.regime
        get = binding.cpu_library["_Z39ggml_backend_cpu_get_extra_buffer_typesv"]
        get.restype = ctypes.c_void_p
        begin_and_end = (ctypes.c_void_p * 2).from_address(get())
        begin_and_end[1] = begin_and_end[0]
        said, note = conversation.say(Turn(FIRST)), conversation.experts.note
        again = conversation.say(Turn(FIRST))
        assert again.reason == "length"
        return before, conversation.experts.regime, note, said.answer, len(said.logits)


def plain(path: Path) -> str:
    with Conversation(path, BASE) as conversation:
        return conversation.say(Turn(FIRST)).answer


@pytest.mark.parametrize("by", [8, 64])
def test_another_layout_is_noticed_before_it_is_used(
    by: int, arch_file: Callable[[str], Path]
) -> None:
    """Fields somewhere else, garbage in their places: no crash, one line, and the plain answer."""
    path = arch_file("qwen3moe")
    regime, note, answer = in_child(with_moved_fields, path, by)
    assert regime == "off"
    assert note.startswith("experts are read through the page cache: this build of llama.cpp")
    assert answer == in_child(plain, path)


@pytest.mark.parametrize("data", [None, 16, 2**63])
def test_data_elsewhere_is_noticed(data: int | None, arch_file: Callable[[str], Path]) -> None:
    """Other bytes than the file's, or an address where nothing is: no crash, the plain answer."""
    path = arch_file("qwen3moe")
    regime, note, answer = in_child(with_data_elsewhere, path, data)
    assert regime == "off"
    assert "does not have the file's bytes for blk.0.ffn_up_exps.weight" in note
    assert answer == in_child(plain, path)


@pytest.mark.parametrize(
    ("changed", "more"),
    [
        ({"experts": 0}, 0),
        ({"experts": 7}, 0),
        ({"experts": -1}, 0),
        ({"nbytes": 0}, 0),
        ({"nbytes": 1 << 62}, 0),
        ({"offset": -1}, 0),
        ({"offset": 1 << 62}, 0),
        ({"part": 7}, 0),
        ({}, 2),
    ],
)
def test_counts_that_cannot_be(
    changed: dict[str, Any], more: int, arch_file: Callable[[str], Path]
) -> None:
    """The C++ believes no count that it is handed: no crash, one line, and the plain answer."""
    path = arch_file("qwen3moe")
    regime, note, answer = in_child(with_other_counts, path, changed, more)
    assert regime == "off"
    assert "are not laid out as this cache knows them" in note
    assert answer == in_child(plain, path)


def test_a_cache_that_is_never_asked_is_given_up(arch_file: Callable[[str], Path]) -> None:
    """After the first decode: a line that says so, the right answer, and the next one too."""
    path = arch_file("qwen3moe")
    before, regime, note, answer, decodes = in_child(without_being_asked, path)
    assert (before, regime) == ("private", "off")
    assert "did not ask for them" in note
    assert decodes > 1
    assert answer == in_child(plain, path)


# fmt: off
PUBLIC = {  # in headers that are installed with the engine
    "ggml_tensor": (
        "type", "buffer", "ne", "nb", "op", "op_params", "flags", "src", "view_src", "view_offs",
        "data", "name", "extra", "padding",
    ),
    "ggml_type_traits_cpu": ("from_float", "vec_dot", "vec_dot_type", "nrows"),
}
INTERNAL = {  # in headers of its sources alone
    "ggml_compute_params": ("ith", "nth", "wsize", "wdata", "threadpool", "use_ref"),
    "ggml_backend_buffer_type": ("iface", "device", "context"),
}
VIRTUAL = {  # classes, and the functions of their virtual tables
    "ggml::cpu::tensor_traits": ("work_size", "compute_forward"),
    "ggml::cpu::extra_buffer_type": ("supports_op", "get_tensor_traits"),
}
# fmt: on
Structs = Mapping[str, Sequence[str]]
PROGRAM = """
#include <cstddef>
#include <cstdio>
#include <cstring>
{includes}
template <typename F> size_t place(F function) {{
    size_t at = 0;
    memcpy(&at, &function, sizeof at);
    return at;
}}
int main() {{
{lines}
}}
"""


def compiler() -> str:
    """The one at hand; without any the test is skipped, under CI it fails."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    found = [name for name in names if name and shutil.which(name)]
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no C++ compiler")
    return found[0]


def layout(
    folder: Path, includes: Sequence[str], flags: Sequence[str], structs: Structs, classes: Structs
) -> dict[str, int]:
    """Where a compiler puts fields and virtual functions, and how large the structures are."""
    lines = []
    for struct, fields in structs.items():
        lines.append(f'printf("{struct} %zu\\n", sizeof({struct}));')
        lines += [f'printf("{struct}.{f} %zu\\n", offsetof({struct}, {f}));' for f in fields]
    for name, functions in classes.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        lines += [f'printf("{name}.{f} %zu\\n", place(&{name}::{f}));' for f in functions]
    source, program = folder / "layout.cpp", folder / "layout"
    head = "\n".join(f'#include "{name}"' for name in includes)
    source.write_text(PROGRAM.format(includes=head, lines="\n".join(lines)))
    command = [compiler(), "-std=c++17", "-O1", *flags, str(source), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in answer.splitlines())}


def ours(folder: Path, structs: Structs, classes: Structs) -> dict[str, int]:
    """The layout as our own header declares it."""
    flags = [f"-I{Path(native.__file__).parent}"]
    return layout(folder, ["ggml_layout.h"], flags, structs, classes)


def test_declared_layouts_are_those_of_the_installed_headers(tmp_path: Path) -> None:
    """Each field that our C++ and Python declare lies where the engine's own headers put it."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    flags = [f"-I{Path(spec.origin).parents[1] / 'include'}"]
    theirs = layout(tmp_path, ["ggml.h", "ggml-cpu.h"], flags, PUBLIC, {})
    assert ours(tmp_path, PUBLIC, {}) == theirs
    script = (
        "from localmoe.engine.worker.model_tensors import GgmlTensor as T\n"
        "for name, _ in T._fields_: print(name, getattr(T, name).offset)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    for line in done.stdout.splitlines():
        name, offset = line.split()
        assert theirs[f"ggml_tensor.{name}"] == int(offset)


@pytest.mark.soak
def test_declared_layouts_are_those_of_the_engines_sources(tmp_path: Path) -> None:
    """The same for structures and virtual tables that only the engine's sources declare."""
    try:
        archive = package.download(importlib.metadata.version(package.PACKAGE), tmp_path)
    except EngineError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"no sources: {error}")
    with tarfile.open(archive) as packed:
        wanted = [m for m in packed if "/ggml/" in m.name and m.name.endswith(".h")]
        packed.extractall(tmp_path, members=wanted, filter="data")
    (traits,) = tmp_path.glob("*/vendor/llama.cpp/ggml/src/ggml-cpu/traits.h")
    source = traits.parents[1]
    flags = [f"-I{folder}" for folder in (source, traits.parent, source.parent / "include")]
    headers = ["traits.h", "ggml-cpu-impl.h", "ggml-backend-impl.h"]
    theirs = layout(tmp_path, headers, flags, INTERNAL, VIRTUAL)
    assert ours(tmp_path, INTERNAL, VIRTUAL) == theirs


NUMBERS = """
import json
from localmoe.engine.worker import binding, loader
from localmoe.engine.worker.binding import llama
numbers = {f"GGML_TYPE_{name.upper()}": number for name, number in binding.GGML_TYPES.items()}
numbers |= {f"LLAMA_LOAD_MODE_{name.upper()}": n for name, n in binding.LOAD_MODES.items()}
numbers |= {
    f"GGML_BACKEND_DEVICE_TYPE_{name.upper()}": n for n, name in binding.DEVICE_KINDS.items()
}
numbers |= {
    "GGML_LOG_LEVEL_WARN": binding.LOG_WARN,
    "GGML_LOG_LEVEL_ERROR": binding.LOG_ERROR,
    "GGML_LOG_LEVEL_CONT": binding.LOG_CONTINUE,
    "LLAMA_KV_OVERRIDE_TYPE_INT": loader.KV_INTEGER,
    "LLAMA_KV_OVERRIDE_TYPE_STR": loader.KV_STRING,
    "LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY": binding.PARTIAL_ONLY,
}
print(json.dumps(numbers))
"""


def test_declared_numbers_are_those_of_the_installed_headers(tmp_path: Path) -> None:
    """Every number of an enumeration or a flag that our Python hands over means what it should."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    told = subprocess.run([sys.executable, "-c", NUMBERS], check=True, capture_output=True)
    declared = json.loads(told.stdout)
    lines = "\n".join(f'printf("{name} %d\\n", (int) {name});' for name in declared)
    head = "\n".join(f'#include "{name}"' for name in ("llama.h", "ggml-backend.h"))
    source, program = tmp_path / "numbers.cpp", tmp_path / "numbers"
    source.write_text(PROGRAM.format(includes=head, lines=lines))
    include = f"-I{Path(spec.origin).parents[1] / 'include'}"
    subprocess.run([compiler(), "-std=c++17", include, str(source), "-o", str(program)], check=True)
    answer = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    theirs = {name: int(value) for name, value in (line.split() for line in answer.splitlines())}
    assert declared == theirs
