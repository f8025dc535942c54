"""Files made to hurt: damaged at random, or built to take time and memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe.errors import ModelFileError
from localmoe.facts.gguf import read_header
from localmoe.facts.model import read_model
from tests.archs.bad import bad_files
from tests.effort import yards
from tests.facts.damage import Damage, check
from tests.facts.files import ARRAY, STRING, UINT8, UINT64, array, gguf, key, string, tensor
from tests.facts.test_gguf import Bytes

ROOT = Path(__file__).parents[2]
FLIPS = 2_000  # tests/soak goes on for minutes


def test_random_byte_flips(arch_file: Callable[..., Path], tmp_path: Path) -> None:
    """2,000 damaged headers: a typed error or a sound model each time, none takes long."""
    damage = Damage(arch_file("qwen3moe"), tmp_path / "damaged.gguf", seed=20_240)
    damage.go(FLIPS)
    assert damage.refused > FLIPS // 10
    assert damage.read > FLIPS // 10
    assert yards(damage.slowest) < 90


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


@pytest.mark.timeout(60)
def test_reader_that_hangs_others(tmp_path: Path) -> None:
    """49 bytes that promise an array of 2**60 empty arrays keep some readers busy for ever."""
    inner = struct.pack("<IQ", ARRAY, 2**60)
    path = tmp_path / "49.gguf"
    path.write_bytes(gguf([key("a", ARRAY, inner)], alignment=1)[:49])
    with pytest.raises(ModelFileError):
        read_model(path)


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
from tests.effort import yards
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
print(json.dumps([result, yards(seconds), peak]))
"""


@pytest.mark.process
@pytest.mark.parametrize("name", BOMBS)
def test_time_and_memory_are_bounded(name: str, tmp_path: Path) -> None:
    """As much as the limits let through: below 200 MB for the whole process, 2 s of its time."""
    path = tmp_path / "bomb.gguf"
    path.write_bytes(BOMBS[name]())
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    result, effort, peak = json.loads(done.stdout)
    assert peak < 200e6, (name, result)
    assert effort < 60, (name, result)
