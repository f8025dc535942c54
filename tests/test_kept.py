"""Damaged files of our own: each kind of damage, in each kind of file, is nothing but left out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localmoe import kept, ledger, storage
from localmoe.engine import kv_store
from localmoe.engine.worker.residency import _read_hot
from localmoe.facts import bandwidth, runs
from localmoe.facts.runs import Ran
from localmoe.hub.compact import Block, Compact
from localmoe.hub.header_cache import HeaderCache
from localmoe.routing import profile
from tests.planning.rates import RATES

STRANGE = ["1e999", "-1e999", "NaN", "1" * 400, "true", '"12"', "[]", "{}", "null", "-7", "1.5"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    return tmp_path


def documents(good: Any) -> Iterator[str]:
    """The document with each of its numbers replaced by each strange value, one at a time."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            if isinstance(inner, dict | list):
                walk(inner)
            elif isinstance(inner, int | float):
                places.append((value, key))

    walk(good)
    for holder, key in places:
        before, holder[key] = holder[key], "@here@"
        text = json.dumps(good)
        holder[key] = before
        for strange in STRANGE:
            yield text.replace('"@here@"', strange)


def test_numbers_are_checked_not_converted() -> None:
    """What ``int`` and ``float`` would make something of is refused."""
    for value in (True, "12", 12.0, None, [1], -1, 2**70):
        with pytest.raises(kept.DAMAGED):
            kept.whole(value)
    for value in (True, "1.5", None, float("inf"), float("nan"), 10**400):
        with pytest.raises(kept.DAMAGED):
            kept.number(value)
    for text in ("1e999", "[NaN]", "Infinity", "[" * 100_000, "", "{", b"\xff"):
        with pytest.raises(kept.DAMAGED):
            kept.parse(text)


def read_promise(path: Path) -> object:
    return ledger.promises()


def read_runs(path: Path) -> object:
    return runs.load("here")


def files() -> dict[str, tuple[Path, Any, Callable[[Path], object]]]:
    """Per kind of file: where it is, a good document, and what reads it."""
    with ledger.promise(1):
        (promise,) = (storage.state_dir() / "promises").iterdir()
        promised = json.loads(promise.read_text())
    runs.add(Ran("here", "model", "off", 1.0, 2.0))
    key = "a-model"
    profile.save(
        key, profile.Profile("m", {0: (1.0, 2.0)}, 3.0, ((0.5, 0.5),), 3.0, 0.5, sessions=1)
    )
    bandwidth.save("key", RATES)
    rates, learnt = bandwidth.path_of_rates(), profile.path_of(key)
    return {
        "promise": (promise, promised, read_promise),
        "speeds": (runs.path(), json.loads(runs.path().read_text()), read_runs),
        "profile": (learnt, json.loads(learnt.read_text()), lambda path: profile.load(key)),
        "rates": (rates, json.loads(rates.read_text()), lambda path: bandwidth.load("key")),
        "hot set": (
            storage.cache_dir() / "experts" / "x.json",
            {"version": 1, "experts": [[0, 1], [1, 0]]},
            lambda path: _read_hot(path, 2),
        ),
    }


@pytest.mark.parametrize("kind", ["promise", "speeds", "profile", "rates", "hot set"])
def test_any_number_of_any_file_may_be_damaged(kind: str) -> None:
    """Nothing is raised, whatever stands in its place."""
    path, good, reads = files()[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    for text in documents(good):
        path.write_text(text)
        reads(path)
        count += 1
    assert count >= len(STRANGE)


def test_a_kept_header_of_the_hub() -> None:
    """A damaged entry is fetched again."""
    cache = HeaderCache()
    cache.put("tag", Compact(b"data", 100, 3, Block(1, 2, 3, 4, True, b"h", b"t")))
    assert cache.get("tag") is not None
    (path,) = cache.folder.iterdir()
    line, _, data = path.read_bytes().partition(b"\n")
    for text in documents(json.loads(line)):
        path.write_bytes(text.encode() + b"\n" + data)
        cache.get("tag")
    path.write_bytes(b"[" * 100_000 + b"\n" + data)
    assert cache.get("tag") is None


def test_the_header_of_a_kept_context(tmp_path: Path) -> None:
    """Right digest or wrong: no value in its header is a crash, and the file goes."""
    path = kv_store.path_of("talk", Path("model.gguf"))
    kv_store.write(path, "me", range(4), (10, lambda address, size: True), [])
    data = path.read_bytes()
    start = len(kv_store.MAGIC) + 8
    length = int.from_bytes(data[len(kv_store.MAGIC) : start], "little")
    header, rest = json.loads(data[start : start + length]), data[start + length : -32]
    header["checkpoints"] = [[2, 0]]
    for text in documents(header):
        body = kv_store.MAGIC + len(text).to_bytes(8, "little") + text.encode() + rest
        for digest in (hashlib.sha256(body).digest(), bytes(32)):
            path.write_bytes(body + digest)
            with kv_store.opened(path, "me") as saved:
                assert saved is None, text
            assert not path.exists()


def test_the_callers_exceptions_say_nothing_of_a_kept_context(tmp_path: Path) -> None:
    """Whatever is raised while it is used, the file stays, and is the same afterwards."""
    path = kv_store.path_of("talk", Path("model.gguf"))
    kv_store.write(path, "me", range(4), (10, lambda address, size: True), [])
    before = path.read_bytes()
    for error in (ValueError, KeyError, TypeError, OSError, RecursionError):
        with pytest.raises(error), kv_store.opened(path, "me") as saved:
            assert saved is not None
            raise error
        assert path.read_bytes() == before
