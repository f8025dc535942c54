"""Damaged headers: bits and bytes of a good file changed at random, each time from the good one."""

from __future__ import annotations

import random
import time
from pathlib import Path

from localmoe.errors import ModelFileError
from localmoe.facts.model import Model, read_model


class Damage:
    """Writes damaged headers of ``source`` to ``path`` and reads them; counts what came of it."""

    def __init__(self, source: Path, path: Path, seed: int) -> None:
        self.good = read_model(source)
        with source.open("rb") as file:
            self._header = file.read(self.good.header_bytes)
        self._path = path
        self._rng = random.Random(seed)
        self.refused = self.read = 0
        self.slowest = 0.0  # processor seconds
        path.write_bytes(self._header)
        with path.open("r+b") as file:
            file.truncate(self.good.size)  # tensor data is never read: a hole will do

    def go(self, files: int) -> None:
        """So many damaged headers: a typed error or a sound model each time."""
        with self._path.open("r+b", buffering=0) as file:
            for number in range(files):
                places = {self._place() for _ in range(1 + number % 3)}
                for place in places:
                    bit, byte = 1 << self._rng.randrange(8), self._rng.randrange(1, 256)
                    file.seek(place)
                    file.write(bytes([self._header[place] ^ (bit if number % 2 else byte)]))
                self._read()
                for place in places:
                    file.seek(place)
                    file.write(self._header[place : place + 1])
        assert read_model(self._path).tensors == self.good.tensors

    def _place(self) -> int:
        """Most of the file is vocabulary; the fields that matter lie at both ends."""
        end = len(self._header)
        table = end - 60 * len(self.good.tensors)
        first, last = self._rng.choice(((0, 24), (0, 1500), (0, end), (table, end)))
        return self._rng.randrange(first, last)

    def _read(self) -> None:
        started = time.thread_time()
        try:
            check(read_model(self._path))
            self.read += 1
        except ModelFileError as error:
            assert error.message.isprintable()
            self.refused += 1
        self.slowest = max(self.slowest, time.thread_time() - started)


def check(model: Model) -> None:
    """What a plan relies on, whatever the file was."""
    assert model.tensors
    assert all(t.nbytes > 0 and t.offset + t.nbytes <= model.size for t in model.tensors)
    assert sum(t.nbytes for t in model.tensors) <= model.size
    assert [layer.index for layer in model.layers] == list(range(len(model.layers)))
    assert all(0 <= layer.expert_used <= layer.expert_count for layer in model.layers)
    assert 0 <= model.active_parameters <= model.parameters
