"""A conversation goes on after a restart without a new prefill, and never with a wrong state."""

from __future__ import annotations

import ctypes
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from localmoe.engine import kv_store
from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Request, Sampling, Token
from localmoe.errors import StorageError
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings
from tests.archs import ARCHITECTURES

pytestmark = pytest.mark.process

SETTINGS = EngineSettings(context=512, batch=48, ubatch=48, threads=1, threads_batch=1)
FIRST = "A mixture of experts has many small networks and a router. " * 5
NEXT = "And what does it cost?"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has an empty folder of its own."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def started(path: Path, settings: EngineSettings = SETTINGS) -> Engine:
    engine = Engine(read_model(path), settings)
    list(engine.load())
    return engine


def ask(engine: Engine, prompt: str, stable: int = 0) -> tuple[str, Finished]:
    request = Request(prompt, stable, max_tokens=12, sampling=Sampling(temperature=0))
    text = ""
    for event in engine.generate(request):
        if isinstance(event, Token):
            text += event.text
        elif isinstance(event, Finished):
            return text, event
    raise AssertionError


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_resumed_conversation_is_the_same_one(
    architecture: str, arch_file: Callable[[str], Path]
) -> None:
    """The second turn after a restart: the text without the restart, and as few tokens read.

    The larger context shows that its size is no part of the state.
    """
    path = arch_file(architecture)
    with started(path) as engine:
        text, _ = ask(engine, FIRST, len(FIRST))
        assert engine.keep("talk") > 0
        uninterrupted, before = ask(engine, FIRST + text + NEXT)
        stripped, before_stripped = ask(engine, FIRST + NEXT)
    for context in (512, 1024):
        settings = EngineSettings(context=context, batch=48, ubatch=48, threads=1, threads_batch=1)
        with started(path, settings) as engine:
            assert engine.resume("talk") > 100
            resumed, after = ask(engine, FIRST + text + NEXT)
            assert (resumed, after.reused_tokens) == (uninterrupted, before.reused_tokens)
            again, after_stripped = ask(engine, FIRST + NEXT)
            assert again == stripped
            # A window's cells before its start are not kept: a checkpoint may serve instead.
            assert after_stripped.reused_tokens >= before_stripped.reused_tokens - 1


@pytest.mark.parametrize("architecture", ["qwen3moe", "qwen3next", "gpt-oss"])
@pytest.mark.parametrize("change", ["a byte", "cut", "the model", "a setting", "another build"])
def test_what_differs_is_discarded(
    architecture: str, change: str, arch_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Nothing is resumed, the file is gone, and the answer is that of a new prefill."""
    original = arch_file(architecture)
    path = tmp_path / original.name
    path.write_bytes(original.read_bytes())
    with started(path) as engine:
        ask(engine, FIRST, len(FIRST))
        engine.keep("talk")
    (kept,) = kv_store.folder().iterdir()
    settings = SETTINGS
    if change == "a byte":
        data = bytearray(kept.read_bytes())
        data[len(data) // 2] ^= 1
        kept.write_bytes(data)
    elif change == "cut":
        os.truncate(kept, kept.stat().st_size - 100)
    elif change == "the model":
        os.utime(path, (1, 1))
    elif change == "a setting":
        settings = EngineSettings(
            context=512, batch=48, ubatch=48, threads=1, threads_batch=1, type_k="q8_0"
        )
    else:
        kept.write_bytes(kept.read_bytes().replace(b'"identity": "', b'"identity": "0', 1))
    with started(path, settings) as engine:
        assert engine.resume("talk") == 0
        assert list(kv_store.folder().iterdir()) == []
        text, done = ask(engine, FIRST, len(FIRST))
        assert done.reused_tokens == 0
    with started(path, settings) as engine:
        assert ask(engine, FIRST, len(FIRST))[0] == text


def test_another_set_of_rotation_factors_is_another_state(arch_file: Callable[..., Path]) -> None:
    """LongRoPE: a context beyond the original one rotates all positions anew."""
    path = arch_file("phimoe")
    original = read_model(path).metadata["phimoe.rope.scaling.original_context_length"]
    assert isinstance(original, int)
    with started(path) as engine:
        ask(engine, FIRST, len(FIRST))
        assert engine.keep("talk") > 0
    longer = replace(SETTINGS, context=original + 256)
    with started(path, longer) as engine:
        assert engine.resume("talk") == 0


def test_short_conversations_leave_no_file(arch_file: Callable[[str], Path], home: Path) -> None:
    with started(arch_file("qwen3moe")) as engine:
        ask(engine, "Hi")
        assert engine.keep("talk") == 0
        assert engine.resume("talk") == 0
    assert not (home / "cache").exists()


# ---- the files, without an engine ------------------------------------------------------------


def filled(byte: int) -> kv_store.Fill:
    def fill(address: int, size: int) -> bool:
        ctypes.memset(address, byte, size)
        return True

    return fill


def put(path: Path, size: int = 100, tokens: int = 5, who: str = "me") -> int:
    checkpoints = [(2, 7, filled(2)), (4, 0, filled(3))]
    return kv_store.write(path, who, range(tokens), (size, filled(1)), checkpoints)


@pytest.fixture
def file(home: Path) -> Iterator[Path]:
    path = kv_store.path_of("talk", Path("model.gguf"))
    put(path)
    yield path


def test_what_is_read_is_what_was_written(file: Path) -> None:
    with kv_store.opened(file, "me") as saved:
        assert saved is not None
        assert saved.tokens == [0, 1, 2, 3, 4]
        assert ctypes.string_at(*saved.state) == b"\1" * 100
        (first, second) = saved.checkpoints
        assert (first[0], ctypes.string_at(*first[1:])) == (2, b"\2" * 7)
        assert second[0::2] == (4, 0)


def test_files_are_private(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_no_changed_byte_is_accepted(file: Path) -> None:
    """Any single byte changed, or any number of bytes cut off or added, and the file is refused."""
    data = file.read_bytes()
    changed = [data[:i] + bytes([data[i] ^ 0x40]) + data[i + 1 :] for i in range(len(data))]
    cut = [data[:i] for i in range(len(data))]
    for wrong in (*changed, *cut, data + b"\0"):
        file.write_bytes(wrong)
        with kv_store.opened(file, "me") as saved:
            assert saved is None
        assert not file.exists()
    file.write_bytes(data)
    with kv_store.opened(file, "me") as saved:
        assert saved is not None


def test_a_header_that_lies_with_a_right_checksum(file: Path) -> None:
    """Sizes that do not add up are refused before anything is read by them."""
    import hashlib

    body = file.read_bytes()[:-32]
    for lie in (b'"state": 999', b'"state": -10', b'"state": "a"', b'"state": []  '):
        wrong = body.replace(b'"state": 100', lie.ljust(12)[:12])
        file.write_bytes(wrong + hashlib.sha256(wrong).digest())
        with kv_store.opened(file, "me") as saved:
            assert saved is None
        assert not file.exists()


def test_the_oldest_go_first(home: Path) -> None:
    """Within the capacity all stay; beyond it those used longest ago go; stray files go in time."""
    paths = [kv_store.path_of(name, Path("m.gguf")) for name in "abc"]
    for age, path in enumerate(paths):
        put(path, 1000)
        os.utime(path, (time.time() - 100 + age,) * 2)
    with kv_store.opened(paths[0], "me") as saved:  # used: now the youngest
        assert saved is not None
    stray = kv_store.folder() / ".kv-stray"
    stray.write_bytes(b"x")
    os.utime(stray, (1, 1))
    size = paths[0].stat().st_size
    assert kv_store.make_room(10, capacity=3 * size + 10)
    assert all(path.exists() for path in paths)
    assert kv_store.make_room(size, capacity=3 * size)
    assert [path.exists() for path in paths] == [True, False, True]
    assert not stray.exists()
    assert not kv_store.make_room(4 * size, capacity=3 * size)


def test_nothing_is_left_of_a_write_that_fails(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt, a refusal of the engine, a full disk: no file, and what was there stays."""
    path = kv_store.path_of("talk", Path("m.gguf"))
    put(path)
    before = path.read_bytes()
    assert kv_store.write(path, "me", [1], (10, filled(9)), [], lambda: True) == 0
    assert kv_store.write(path, "me", [1], (10, lambda address, size: False), []) == 0
    assert kv_store.write(path, "me", [1], (kv_store.CAPACITY, filled(9)), []) == 0

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match="No space left"):
        put(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_conversation_is_forgotten_with_every_model(home: Path) -> None:
    for name, model in (("a", "m"), ("a", "n"), ("b", "m")):
        put(kv_store.path_of(name, Path(model)))
    kv_store.forget("a")
    assert list(kv_store.folder().iterdir()) == [kv_store.path_of("b", Path("m"))]
