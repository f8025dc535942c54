"""The engine is asked whether it is the one whose insides we know; if not, it runs plainly."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localmoe.engine import native
from localmoe.planning.memory import EngineSettings
from tests.engine.cache_matrix import BASE, FIRST
from tests.engine.cached import Conversation, Turn, in_child, planned

pytestmark = pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux")


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


def test_a_cache_that_is_never_asked_is_given_up(arch_file: Callable[[str], Path]) -> None:
    """After the first decode: a line that says so, the right answer, and the next one too."""
    path = arch_file("qwen3moe")
    before, regime, note, answer, decodes = in_child(without_being_asked, path)
    assert (before, regime) == ("private", "off")
    assert "did not ask for them" in note
    assert decodes > 1
    assert answer == in_child(plain, path)


# fmt: off
FIELDS = {
    "ggml_tensor": (
        "type", "buffer", "ne", "nb", "op", "op_params", "flags", "src", "view_src", "view_offs",
        "data", "name", "extra", "padding",
    ),
    "ggml_type_traits_cpu": ("from_float", "vec_dot", "vec_dot_type", "nrows"),
}
# fmt: on


def offsets(folder: Path, includes: str, flags: list[str]) -> dict[str, int]:
    """Where a compiler puts the fields, and how large the structures are."""
    lines = []
    for struct, fields in FIELDS.items():
        lines.append(f'printf("{struct} %zu\\n", sizeof({struct}));')
        lines += [f'printf("{struct}.{f} %zu\\n", offsetof({struct}, {f}));' for f in fields]
    source, program = folder / "offsets.cpp", folder / "offsets"
    head = f"#include <cstddef>\n#include <cstdio>\n{includes}\n"
    source.write_text(head + "int main() {\n" + "\n".join(lines) + "\n}\n")
    compiled = ["g++", "-std=c++17", *flags, str(source), "-o", str(program)]
    subprocess.run(compiled, check=True)
    answer = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in answer.splitlines())}


def test_declared_layouts_are_those_of_the_installed_headers(tmp_path: Path) -> None:
    """Each field that our C++ and Python declare lies where the engine's own headers put it."""
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    installed = Path(spec.origin).parents[1] / "include"
    ours = Path(native.__file__).parent
    theirs = offsets(tmp_path, '#include "ggml.h"\n#include "ggml-cpu.h"', [f"-I{installed}"])
    assert offsets(tmp_path, '#include "ggml_layout.h"', [f"-I{ours}"]) == theirs
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
