"""Files made to hurt: damaged at random, or built to take time and memory."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe.errors import ModelFileError
from localmoe.facts.gguf import read_header
from localmoe.facts.model import Model, read_model
from tests.archs.bad import bad_files
from tests.facts.files import ARRAY, STRING, UINT8, UINT64, array, gguf, key, string, tensor
from tests.facts.test_gguf import Bytes

FLIPS = 10_000


def check(model: Model) -> None:
    """What a plan relies on, whatever the file was."""
    assert model.tensors
    assert all(t.nbytes > 0 and t.offset + t.nbytes <= model.size for t in model.tensors)
    assert sum(t.nbytes for t in model.tensors) <= model.size
    assert [layer.index for layer in model.layers] == list(range(len(model.layers)))
    assert all(0 <= layer.expert_used <= layer.expert_count for layer in model.layers)
    assert 0 <= model.active_parameters <= model.parameters


def test_random_byte_flips(arch_file: Callable[..., Path], tmp_path: Path) -> None:
    """10,000 damaged headers: a typed error or a sound model each time, none takes a second."""
    source = arch_file("qwen3moe")
    good = read_model(source)
    original = source.read_bytes()[: good.header_bytes]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(original)
    rng = random.Random(20_240)
    # Most of the file is vocabulary; the fields that matter lie at both ends.
    table = len(original) - 60 * len(good.tensors)
    slowest, refused, read = 0.0, 0, 0
    with path.open("r+b", buffering=0) as file:
        file.truncate(good.size)  # tensor data is never read: a hole will do
        for number in range(FLIPS):
            places = {
                rng.choice((rng.randrange(24), rng.randrange(1500), rng.randrange(len(original)),
                            rng.randrange(table, len(original))))
                for _ in range(1 + number % 3)
            }  # fmt: skip
            for place in places:
                flip = 1 << rng.randrange(8) if number % 2 else rng.randrange(1, 256)
                file.seek(place)
                file.write(bytes([original[place] ^ flip]))
            started = time.perf_counter()
            try:
                check(read_model(path))
                read += 1
            except ModelFileError as error:
                assert error.message.isprintable()
                refused += 1
            slowest = max(slowest, time.perf_counter() - started)
            for place in places:
                file.seek(place)
                file.write(original[place : place + 1])
    assert read_model(path).tensors == good.tensors
    assert refused > FLIPS // 10
    assert read > FLIPS // 10
    assert slowest < 1


@given(data=st.binary(max_size=200), counts=st.tuples(*[st.integers(0, 3)] * 2))
def test_random_bytes(data: bytes, counts: tuple[int, int]) -> None:
    """Anything behind a valid preamble is an error or a header that lies within the file."""
    content = b"GGUF" + struct.pack("<IQQ", 3, *counts) + data
    try:
        header = read_header(Bytes(content))
    except ModelFileError:
        return
    assert all(t.offset + t.nbytes <= len(content) for t in header.tensors)


def test_files_a_user_may_have(tmp_path: Path) -> None:
    """Each kind of bad file is refused in words that fit it; one the engine must judge is read."""
    words = {
        "one_tensor_per_expert": "no longer reads",
        "truncated": "cut off",
        "truncated_header": "tensors",
        "missing_part": "parts missing",
        "mixed_parts": "mixed-up",
        "future_version": "version 99",
        "not_gguf": "web page",
        "empty": "empty",
    }
    files = bad_files(tmp_path)
    check(read_model(files.pop("unknown_architecture")))
    assert set(files) == set(words)
    for name, path in files.items():
        with pytest.raises(ModelFileError) as caught:
            read_model(path)
        assert words[name] in caught.value.message, name
        assert caught.value.hint, name


def test_reader_that_hangs_others(tmp_path: Path) -> None:
    """49 bytes that promise an array of 2**60 empty arrays keep some readers busy for ever."""
    inner = struct.pack("<IQ", ARRAY, 2**60)
    path = tmp_path / "49.gguf"
    path.write_bytes(gguf([key("a", ARRAY, inner)], alignment=1)[:49])
    started = time.perf_counter()
    with pytest.raises(ModelFileError):
        read_model(path)
    assert time.perf_counter() - started < 1


def _empty_strings() -> bytes:
    return gguf([key("a", ARRAY, array(STRING, 1_999_999, bytes(8 * 1_999_999)))])


def _nested_arrays() -> bytes:
    row = array(ARRAY, 1000, array(UINT8, 0, b"") * 1000)
    return gguf([key(f"a{i}", ARRAY, array(ARRAY, 99, row * 99)) for i in range(2)])


def _many_numbers() -> bytes:
    one = array(UINT64, 1024, struct.pack("<Q", 2**63 + 1) * 1024)
    return gguf([key(f"a{i}", ARRAY, one) for i in range(195)])


def _many_keys() -> bytes:
    return gguf([key(f"a{i}" + "k" * 1000, STRING, string("v" * 500)) for i in range(9_999)])


def _much_text() -> bytes:
    wide = ("x" * 8_000_000 + "😀").encode()  # one wide character makes Python use 4 bytes each
    return gguf([key("tokenizer.chat_template", STRING, string(wide[:7_900_000] + wide[-4:])),
                 key("b", STRING, string(wide[:7_900_000] + wide[-4:]))])  # fmt: skip


def _many_tensors() -> bytes:
    rows = [tensor(f"blk.0.{i:09d}" + "n" * 40, (1, 1, 1, 1), 24, 32 * i) for i in range(100_000)]
    arch = key("general.architecture", STRING, string("x"))
    return gguf([arch], rows, data=32 * 100_000)


def _invalid_text() -> bytes:
    return gguf([key("a", STRING, string(b"\xff" * 9_999_999))])


BOMBS = {
    "empty strings": _empty_strings,
    "nested arrays": _nested_arrays,
    "many numbers": _many_numbers,
    "many keys": _many_keys,
    "much text": _much_text,
    "many tensors": _many_tensors,
    "invalid text": _invalid_text,
}

_MEASURE = """
import json, pathlib, re, sys, time
from localmoe.errors import ModelFileError
from localmoe.facts.model import read_model
started = time.process_time()
try:
    read_model(sys.argv[1])
    result = "read"
except ModelFileError as error:
    result = error.message
seconds = time.process_time() - started
# Not getrusage: its peak includes the parent's, from before the program was replaced.
status = pathlib.Path("/proc/self/status").read_text()
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
print(json.dumps([result, seconds, peak]))
"""


@pytest.mark.parametrize("name", BOMBS)
def test_time_and_memory_are_bounded(name: str, tmp_path: Path) -> None:
    """As much as the limits let through: below 200 MB for the whole process, about a second."""
    path = tmp_path / "bomb.gguf"
    path.write_bytes(BOMBS[name]())
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    result, seconds, peak = json.loads(done.stdout)
    print(f"{name}: {seconds:.2f} s, {peak / 1e6:.0f} MB: {result}")
    assert peak < 200e6, (name, result)
    assert seconds < 2, (name, result)  # twice what is promised: the machine may be busy
