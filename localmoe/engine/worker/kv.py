"""Which tokens the engine's memory (KV cache, recurrent state) holds, and going back in it.

A turn shares a prefix with the turn before. Plain attention can drop the rest of its cache.
Recurrent layers cannot go back, and sliding-window caches have forgotten what lies before the
window: for those, checkpoints of the part that cannot be rebuilt are taken at positions that the
next turn will want, and the nearest one at or before the wanted position is restored. They stay
within what the plan sets aside; a state too large for that is not kept, and such a model reads its
prompt again after a step back.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localmoe.engine import kv_store
from localmoe.engine.worker import binding
from localmoe.engine.worker.binding import llama
from localmoe.planning.budget import CHECKPOINT_BYTES

CHECKPOINT_TOKENS = 128
CHECKPOINT_BYTES_PER_TOKEN = 128 << 10
"""Between those of a long prompt: tokens enough that copying the state is little beside them."""
COPIED_CHECKPOINTS = 3  # that go along with a copy of a state: the last ones are wanted next


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The non-rewindable state after the first ``length`` tokens."""

    length: int
    data: ctypes.Array[ctypes.c_uint8]


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """All that the engine's memory holds after these tokens; without ``data``, where it is now."""

    tokens: list[int]
    checkpoints: list[Checkpoint]
    first: int  # the lowest position that is still cached
    data: ctypes.Array[ctypes.c_uint8] | None = None

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        data = (self.data,) if self.data is not None else ()
        return sum(len(part) for part in (*data, *(c.data for c in self.checkpoints)))


@dataclass
class KvState:
    """Sequence 0 of one context, and the token ids it holds."""

    ctx: Any
    tokens: list[int] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = llama.llama_get_model(self.ctx)
        self._memory = llama.llama_get_memory(self.ctx)
        self._window = int(llama.llama_model_n_swa(model))
        self._recurrent = bool(
            llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)
        )

    @property
    def needs_checkpoints(self) -> bool:
        return self._recurrent or 0 < self._window < int(llama.llama_n_ctx(self.ctx))

    def reuse(self, prompt: list[int]) -> int:
        """Keep the longest usable prefix of ``prompt``; return its length (< len(prompt)).

        One token is always left to decode: its logits choose the first token of the answer.
        """
        return self.rewind(common_prefix(self.tokens, prompt[:-1]))

    def reach(self, state: State, wanted: Sequence[int]) -> int:
        """How many of the ``wanted`` tokens would be held after going back in ``state``."""
        length = common_prefix(state.tokens, wanted)
        if length == len(state.tokens) or self._can_cut(length, state.first):
            return length
        return max((c.length for c in state.checkpoints if c.length <= length), default=0)

    def now(self) -> State:
        """The present state, not copied."""
        return State(self.tokens, self.checkpoints, self._first())

    @property
    def nbytes(self) -> int:
        """Of a copy of the present state."""
        checkpoints = sum(len(c.data) for c in self._latest())
        return int(llama.llama_state_seq_get_size_ext(self.ctx, 0, 0)) + checkpoints

    def copy(self) -> State | None:
        """The present state, to be taken up again with ``take``; None if the engine refuses."""
        size = int(llama.llama_state_seq_get_size_ext(self.ctx, 0, 0))
        data = (ctypes.c_uint8 * size)()
        if llama.llama_state_seq_get_data_ext(self.ctx, data, size, 0, 0) != size:
            return None
        return State(list(self.tokens), self._latest(), self._first(), data)

    def take(self, state: State) -> None:
        """Hold what ``copy`` copied from this context; nothing, if the engine refuses it."""
        self.clear()
        assert state.data is not None
        size = len(state.data)
        if llama.llama_state_seq_set_data_ext(self.ctx, state.data, size, 0, 0) != size:
            self.clear()
            return
        self.tokens, self.checkpoints = list(state.tokens), list(state.checkpoints)

    def _latest(self) -> list[Checkpoint]:
        """The checkpoints that the next turn may want."""
        return sorted(self.checkpoints, key=lambda c: c.length)[-COPIED_CHECKPOINTS:]

    def _first(self) -> int:
        return int(llama.llama_memory_seq_pos_min(self._memory, 0))

    def rewind(self, length: int, *, dirty: bool = False) -> int:
        """Go back to the first ``length`` tokens, or to the nearest reachable point before.

        ``dirty`` says that a decode stopped in the middle, so that recurrent state is undefined.
        Returns the number of tokens the memory holds now.
        """
        if length == len(self.tokens) and not dirty:
            return length
        if self._can_cut(length, self._first()) and llama.llama_memory_seq_rm(
            self._memory, 0, length, -1
        ):
            return self._holds(length)
        for checkpoint in sorted(self.checkpoints, key=lambda c: -c.length):
            if checkpoint.length <= length and self._restore(checkpoint):
                return self._holds(checkpoint.length)
        llama.llama_memory_clear(self._memory, False)
        return self._holds(0)

    def _can_cut(self, length: int, first: int) -> bool:
        if self._recurrent:
            return False
        if length == 0 or self._window == 0:
            return True
        # A window layer needs the `window` positions before the next token still cached.
        return 0 <= first <= max(0, length - self._window)

    def checkpoint(self) -> None:
        """Remember the state here; where checkpoints take too much, the least useful ones go."""
        length = len(self.tokens)
        if any(c.length == length for c in self.checkpoints):
            return
        size = self._partial_size()
        if not 0 < size <= CHECKPOINT_BYTES:
            return
        while size + sum(len(c.data) for c in self.checkpoints) > CHECKPOINT_BYTES:
            del self.checkpoints[least_useful([c.length for c in self.checkpoints], length)]
        buffer = (ctypes.c_uint8 * size)()
        written = llama.llama_state_seq_get_data_ext(
            self.ctx, buffer, size, 0, binding.PARTIAL_ONLY
        )
        if written == size:
            self.checkpoints.append(Checkpoint(length, buffer))

    def checkpoint_if_due(self) -> None:
        """While a long prompt is read: what an interrupt then costs stays small."""
        since = len(self.tokens) - max((c.length for c in self.checkpoints), default=0)
        if not self.needs_checkpoints or since < CHECKPOINT_TOKENS:
            return
        if self._partial_size() <= since * CHECKPOINT_BYTES_PER_TOKEN:
            self.checkpoint()

    def _partial_size(self) -> int:
        """Bytes of what cannot be rewound."""
        return int(llama.llama_state_seq_get_size_ext(self.ctx, 0, binding.PARTIAL_ONLY))

    def save(self, path: Path, who: str, interrupted: Callable[[], bool]) -> int:
        """Keep all of it on disk (``kv_store``); return the bytes written, 0 if not worth it.

        Raises StorageError.
        """
        if len(self.tokens) < kv_store.MIN_TOKENS:
            return 0
        size = int(llama.llama_state_seq_get_size_ext(self.ctx, 0, 0))

        def state(address: int, size: int) -> bool:
            written = llama.llama_state_seq_get_data_ext(self.ctx, _bytes_at(address), size, 0, 0)
            return bool(written == size)

        def copy(data: ctypes.Array[ctypes.c_uint8]) -> kv_store.Fill:
            return lambda address, size: bool(ctypes.memmove(address, data, size))

        checkpoints = [(c.length, len(c.data), copy(c.data)) for c in self.checkpoints]
        return kv_store.write(path, who, self.tokens, (size, state), checkpoints, interrupted)

    def load(self, path: Path, who: str, interrupted: Callable[[], bool]) -> int:
        """Take over what ``save`` kept; return the tokens held now, 0 if nothing could be used."""
        self.clear()
        with kv_store.opened(path, who, interrupted) as saved:
            if saved is None or len(saved.tokens) >= int(llama.llama_n_ctx(self.ctx)):
                return 0
            address, size = saved.state
            read = llama.llama_state_seq_set_data_ext(self.ctx, _bytes_at(address), size, 0, 0)
            if read != size:
                self.clear()
                with contextlib.suppress(OSError):
                    path.unlink()
                return 0
            self.tokens = saved.tokens
            for length, start, nbytes in saved.checkpoints:
                data = (ctypes.c_uint8 * nbytes)()
                ctypes.memmove(data, start, nbytes)
                self.checkpoints.append(Checkpoint(length, data))
        return len(self.tokens)

    def clear(self) -> None:
        """Forget everything."""
        llama.llama_memory_clear(self._memory, False)
        self.tokens, self.checkpoints = [], []

    def _restore(self, checkpoint: Checkpoint) -> bool:
        read = llama.llama_state_seq_set_data_ext(
            self.ctx, checkpoint.data, len(checkpoint.data), 0, binding.PARTIAL_ONLY
        )
        return bool(read) and bool(
            llama.llama_memory_seq_rm(self._memory, 0, checkpoint.length, -1)
        )

    def _holds(self, length: int) -> int:
        del self.tokens[length:]
        self.checkpoints = [c for c in self.checkpoints if c.length <= length]
        return length


def least_useful(lengths: Sequence[int], now: int) -> int:
    """Which of the checkpoints at these lengths (ascending) to give up when at ``now``.

    The one that saves the fewest tokens, if ways back of any order of length are equally likely:
    so they lie the closer the nearer.
    """

    def saves(i: int) -> float:
        before = lengths[i - 1] if i else 0
        after = lengths[i + 1] if i + 1 < len(lengths) else now
        chance = math.log((now - lengths[i] + 1) / (now - after + 1))
        return (lengths[i] - before) * chance

    return min(range(len(lengths)), key=saves)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices are compared without Python, so this beats a loop
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _bytes_at(address: int) -> Any:
    return ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
