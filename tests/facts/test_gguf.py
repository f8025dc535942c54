"""GGUF headers: what is read, and what must be refused."""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, LlamaFileType

from localmoe.errors import ModelFileError
from localmoe.facts import cursor
from localmoe.facts.ggml_types import FILE_TYPES, REMOVED_TYPES, TENSOR_TYPES
from localmoe.facts.gguf import Header, LongArray, decode_array, read_header
from localmoe.facts.source import FileSource
from tests.effort import yards
from tests.facts.files import (
    ARRAY,
    BOOL,
    FLOAT32,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    array,
    gguf,
    key,
    string,
    tensor,
    write_model,
)

VOCABULARY = 150_000


class Bytes:
    """A byte source in memory that counts what is asked of it."""

    name = "test.gguf"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.requests = 0
        self.transferred = 0

    def read(self, offset: int, length: int) -> bytes:
        self.requests += 1
        self.transferred += length
        return self.data[offset : offset + length]


def header(data: bytes) -> Header:
    return read_header(Bytes(data))


@pytest.fixture(scope="module")
def large_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """150,000 tokens, their scores and types, and as many merges."""
    path = tmp_path_factory.mktemp("vocabulary") / "large.gguf"
    writer = GGUFWriter(path, "testmoe")
    writer.add_token_list([f"token {i}" for i in range(VOCABULARY)])
    writer.add_token_scores([float(i) for i in range(VOCABULARY)])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges([f"a{i} b{i}" for i in range(VOCABULARY)])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    yield path


def test_values_of_every_type_are_decoded() -> None:
    """Scalars become Python numbers, texts and flags; arrays become tuples, nested ones too."""
    numbers = [(0, "B", 200), (1, "b", -7), (2, "H", 60000), (3, "h", -300), (4, "I", 2**32 - 1),
               (5, "i", -5), (6, "f", 0.5), (10, "Q", 2**64 - 1), (11, "q", -(2**60)),
               (12, "d", 0.1)]  # fmt: skip
    keys = [key(f"n{kind}", kind, struct.pack("<" + code, v)) for kind, code, v in numbers]
    inner = array(UINT8, 2, b"\1\2")
    keys += [
        key("flag", BOOL, b"\1"),
        key("text", STRING, string("grüße")),
        key("bad utf-8", STRING, string(b"a\xffb")),
        key("texts", ARRAY, array(STRING, 2, string("x") + string(""))),
        key("nested", ARRAY, array(ARRAY, 2, inner + inner)),
        key("none", ARRAY, array(FLOAT32, 0, b"")),
    ]
    metadata = header(gguf(keys)).metadata
    assert [metadata[f"n{kind}"] for kind, _, _ in numbers] == [v for _, _, v in numbers]
    assert metadata["flag"] is True
    assert metadata["text"] == "grüße"
    assert metadata["bad utf-8"] == "a\ufffdb"
    assert metadata["texts"] == ("x", "")
    assert metadata["nested"] == ((1, 2), (1, 2))
    assert metadata["none"] == ()


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_are_placed_behind_the_padded_header(version: int) -> None:
    """Offsets are of the file; sizes follow from type and shape."""
    rows = [tensor("a", (256, 2), kind=12), tensor("b", (3,), offset=288)]
    data = gguf([key("general.alignment", UINT32, struct.pack("<I", 32))], rows, version=version,
                data=300)  # fmt: skip
    found = header(data)
    assert found.data_start == len(data) - 300
    assert [(t.name, t.shape, t.type.name, t.offset - found.data_start, t.nbytes)
            for t in found.tensors] == [("a", (256, 2), "Q4_K", 0, 288),
                                        ("b", (3,), "F32", 288, 12)]  # fmt: skip


def test_type_table_agrees_with_the_engine() -> None:
    """Names, block sizes and bytes per block are those of the ggml that is installed."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = ctypes.CDLL(str(folder / "libggml-base.so.0"))
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_name.restype = ctypes.c_char_p
    for number, kind in TENSOR_TYPES.items():
        assert kind.block_bytes == ggml.ggml_type_size(number), kind
        assert kind.block_size == ggml.ggml_blck_size(number), kind
        assert kind.name.lower() == ggml.ggml_type_name(number).decode().lower()
    known = {*TENSOR_TYPES, *REMOVED_TYPES}
    assert known == set(range(max(known) + 1))
    assert ggml.ggml_type_size(42) == TENSOR_TYPES[42].block_bytes


def test_type_tables_agree_with_the_gguf_package() -> None:
    """The same numbers and sizes; its Q8_1 (40 bytes) is known to differ from ggml's (36)."""
    for number, (block, size) in GGML_QUANT_SIZES.items():
        kind = TENSOR_TYPES[int(number)]
        assert kind.name == number.name
        if kind.name != "Q8_1":
            assert (kind.block_size, kind.block_bytes) == (block, size)
    for file_type in LlamaFileType:
        if file_type is LlamaFileType.GUESSED:
            continue
        name = file_type.name.removeprefix("MOSTLY_").removeprefix("ALL_").removesuffix("_MOE")
        assert FILE_TYPES[int(file_type)] == name


def test_large_vocabulary_is_left_in_the_file(large_vocabulary: Path) -> None:
    """150,000 tokens cost a walk, not 150,000 objects; any element can be had afterwards."""
    with FileSource(large_vocabulary) as source:
        times = []
        for _ in range(3):
            started = time.thread_time()
            found = read_header(source)
            times.append(time.thread_time() - started)
        assert yards(min(times)) < 60
        tokens = found.metadata["tokenizer.ggml.tokens"]
        assert isinstance(tokens, LongArray)
        assert (len(tokens), tokens.element) == (VOCABULARY, "string")
        assert tokens.head[:2] == ("token 0", "token 1")
        assert list(decode_array(source, tokens)) == [f"token {i}" for i in range(VOCABULARY)]
        scores = found.metadata["tokenizer.ggml.scores"]
        assert isinstance(scores, LongArray)
        assert list(decode_array(source, scores)) == [float(i) for i in range(VOCABULARY)]
    assert found.metadata["tokenizer.chat_template"] == "{{ messages }}"
    assert [t.name for t in found.tensors] == ["token_embd.weight"]


def test_a_remote_source_is_asked_little(large_vocabulary: Path, tmp_path: Path) -> None:
    """A small header is one request of 64 KiB; a large one few requests, and no tensor data."""
    small = Bytes(write_model(tmp_path / "small.gguf")[0].read_bytes())
    read_header(small)
    assert (small.requests, small.transferred <= 1 << 16) == (1, True)
    large = Bytes(large_vocabulary.read_bytes() + bytes(50_000_000))
    found = read_header(large)
    assert large.requests < 12
    assert large.transferred < 2 * found.data_start


def test_header_read_through_small_blocks(
    large_vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the blocks end makes no difference."""
    with FileSource(large_vocabulary) as source:
        expected = read_header(source)
        monkeypatch.setattr(cursor, "LARGEST_BLOCK", 1000)
        for size in (1, 7, 1000):
            monkeypatch.setattr(cursor, "FIRST_BLOCK", size)
            assert read_header(source) == expected


def test_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    """The package's own reader finds the same tensors at the same places."""
    path = write_model(tmp_path / "model.gguf")[0]
    theirs = GGUFReader(path)
    with FileSource(path) as source:
        ours = read_header(source)
    assert [(t.name, t.shape, t.offset, t.nbytes) for t in ours.tensors] == [
        (t.name, tuple(int(n) for n in t.shape), t.data_offset, t.n_bytes) for t in theirs.tensors
    ]


U32 = struct.Struct("<I").pack
LONG_NAME = "n" * 64
DEEP = array(ARRAY, 1, array(ARRAY, 1, array(ARRAY, 1, array(ARRAY, 1, array(UINT8, 0, b"")))))
HUGE = 2**63

HOSTILE = {
    "empty": (b"", "empty"),
    "three bytes": (b"GGU", "not a GGUF"),
    "magic": (gguf(magic=b"GGML"), "not a GGUF"),
    "web page": (b"<!DOCTYPE html><html>", "web page"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    "safetensors": (struct.pack("<Q", 100) + b'{"x":', "safetensors"),
    "only a magic": (b"GGUF", "cut off"),
    "version 0": (gguf(version=0), "version 0"),
    "version 1": (gguf(version=1), "version 1"),
    "version 4": (gguf(version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count beyond the file": (gguf(tensor_count=1000), "1,000 tensors"),
    "tensor count 2**63": (gguf(tensor_count=HUGE), "tensors"),
    "many tensors": (gguf(tensor_count=20_001, data=3_000_000), "20,000"),
    "key count beyond the file": (gguf(key_count=1000), "1,000 metadata keys"),
    "key count 2**64-1": (gguf(key_count=2**64 - 1), "metadata keys"),
    "many keys": (gguf(key_count=10_001, data=1_000_000), "10,000"),
    "empty key": (gguf([key("", BOOL, b"\1")]), "empty"),
    "key twice": (gguf([key("a", BOOL, b"\1")] * 2), "twice"),
    "key length": (gguf([struct.pack("<Q", 2**40)], data=32), "key"),
    "key of 70 kB": (gguf([key("k" * 70_000, BOOL, b"\1")]), "70,000"),
    "value type 13": (gguf([key("a", 13, b"")], data=32), "value type 13"),
    "value cut": (gguf([string("a") + U32(UINT64)], alignment=1), "cut off"),
    "string length": (gguf([key("a", STRING, struct.pack("<Q", HUGE))]), "10,000,000"),
    "string cut": (gguf([key("a", STRING, struct.pack("<Q", 999))]), "cut off"),
    "string of 11 MB": (gguf([key("a", STRING, string(b"x" * 11_000_000))]), "10,000,000"),
    "text of 24 MB": (gguf([key(c, STRING, string(b"x" * 8_000_000)) for c in "abc"]), "more text"),
    "element type 99": (gguf([key("a", ARRAY, array(99, 1, b"x"))], data=32), "value type 99"),
    "array length": (gguf([key("a", ARRAY, array(UINT8, HUGE, b""))]), "elements"),
    "array beyond": (gguf([key("a", ARRAY, array(FLOAT32, 100, b""))], data=64), "elements"),
    "strings beyond": (gguf([key("a", ARRAY, array(STRING, 100, b""))], data=64), "elements"),
    "long array's string": (
        gguf([key("a", ARRAY, array(STRING, 2000, string("") * 1999 + b"\xff" * 8))]), "cut off",
    ),
    "3 million strings": (
        gguf([key("a", ARRAY, array(STRING, 3_000_000, bytes(24_000_000)))]), "3,000,000 strings",
    ),
    "nesting of 5": (gguf([key("a", ARRAY, DEEP)], data=64), "deeper"),
    "long nested": (
        gguf([key("a", ARRAY, array(ARRAY, 2000, array(UINT8, 0, b"") * 2000))]), "nested",
    ),
    "many values": (
        gguf([key(f"a{i}", ARRAY, array(UINT8, 1024, bytes(1024))) for i in range(200)]),
        "more metadata",
    ),
    "alignment 0": (gguf([key("general.alignment", UINT32, U32(0))]), "alignment"),
    "alignment 24": (gguf([key("general.alignment", UINT32, U32(24))]), "alignment"),
    "alignment a text": (gguf([key("general.alignment", STRING, string("x"))]), "alignment"),
    "alignment 2**31": (
        gguf([key("general.alignment", UINT32, U32(2**31))], [tensor("t", (1,))], data=64),
        "cut off",
    ),
    "name too long": (gguf([], [tensor(LONG_NAME, (1,))], data=64), "64 bytes"),
    "name twice": (gguf([], [tensor("t", (8,)), tensor("t", (8,), offset=32)], data=64), "twice"),
    "5 dimensions": (gguf([], [tensor("t", (1,) * 5)], data=64), "5 dimensions"),
    "dimensions 2**32-1": (gguf([], [tensor("t", (1,), dims=2**32 - 1)], data=64), "dimensions"),
    "dimension 0": (gguf([], [tensor("t", (4, 0))], data=64), "dimension of 0"),
    "dimension 2**63": (gguf([], [tensor("t", (HUGE,))], data=64), "dimension"),
    "elements overflow": (gguf([], [tensor("t", (2**40, 2**40))], data=64), "elements"),
    "type 999": (gguf([], [tensor("t", (1,), kind=999)], data=64), "type 999"),
    "removed type": (gguf([], [tensor("t", (32,), kind=31)], data=64), "Q4_0_4_4"),
    "row not in blocks": (gguf([], [tensor("t", (100,), kind=12)], data=99), "blocks of 256"),
    "beyond the end": (gguf([], [tensor("t", (1000,))], data=64), "cut off"),
    "first offset": (gguf([], [tensor("t", (1,), offset=32)], data=64), "starts at byte 32"),
    "offset 2**64-1": (gguf([], [tensor("t", (1,), offset=2**64 - 1)], data=64), "starts at byte"),
    "overlap": (
        gguf([], [tensor("a", (16,)), tensor("b", (16,), offset=32)], data=128), "not at 64",
    ),
    "gap": (gguf([], [tensor("a", (8,)), tensor("b", (8,), offset=64)], data=128), "not at 32"),
    "unaligned": (gguf([], [tensor("a", (2,)), tensor("b", (8,), offset=8)], data=64), "not at 32"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(name: str) -> None:
    """One clear line that names the file and the fault, and what to do; never anything else."""
    data, fragment = HOSTILE[name]
    with pytest.raises(ModelFileError) as caught:
        header(data)
    assert fragment in caught.value.message
    assert caught.value.message.startswith("test.gguf: ")
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    """A file cut anywhere, in the header or in the data, is refused."""
    data = write_model(tmp_path / "model.gguf")[0].read_bytes()
    found = header(data)
    end = max(t.offset + t.nbytes for t in found.tensors)
    for length in [*range(found.data_start + 100), end // 2, end - 1]:
        with pytest.raises(ModelFileError):
            header(data[:length])
    assert header(data[:end]).tensors == found.tensors


def test_messages_carry_no_control_characters() -> None:
    """A name out of the file reaches the message without its escape sequences, and shortened."""
    with pytest.raises(ModelFileError) as caught:
        header(gguf([], [tensor("\x1b[31mred\x07\u202e", (1,), kind=999)], data=64))
    assert '"red"' in caught.value.message
    with pytest.raises(ModelFileError) as caught:
        header(gguf([key("k" * 60_000, BOOL, b"\1")] * 2))
    assert len(caught.value.message) < 200


def test_a_source_that_shrinks_is_noticed() -> None:
    """Fewer bytes than the size promised are an error, not a loop."""
    source = Bytes(gguf([key("a", STRING, string("x" * 1000))]))
    source.data = source.data[:100]
    with pytest.raises(ModelFileError, match="cut off"):
        read_header(source)


def test_endless_header_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header longer than any model's is given up on, however large the file."""
    monkeypatch.setattr(cursor, "MAX_HEADER", 100_000)
    with pytest.raises(ModelFileError, match="longer than that of any model"):
        header(gguf([key("a", STRING, string("x" * 200_000))]))
