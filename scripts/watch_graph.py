"""A model run by the engine's low-level binding, with chosen nodes of its graph looked at.

For the maintainer's scripts: calibrating stand-ins, perplexity. Runs in the calling process, where
a failed assertion of the engine would end it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.archs.plain import low_level

Floats = NDArray[np.float32]


class Tensor(ctypes.Structure):
    """``ggml_tensor`` (ggml.h), as far as it is read here."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]

Wanted = Callable[[Tensor], bool]
Seen = Callable[[Tensor], None]


class Watched:
    """A loaded model with one context."""

    def __init__(self, llama: Any, model: Any, context: Any) -> None:
        self._llama, self._context = llama, context
        self._vocab = llama.llama_model_get_vocab(model)
        self._position = 0
        self.vocabulary = int(llama.llama_vocab_n_tokens(self._vocab))

    def decode(self, tokens: Sequence[int], *, every: bool = False) -> None:
        """One batch, after what was decoded before; ``every``: outputs of all its tokens.

        Raises RuntimeError.
        """
        batch = self._llama.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i] = int(token), self._position + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = every or i == len(tokens) - 1
            if status := self._llama.llama_decode(self._context, batch):
                raise RuntimeError(f"llama_decode returned {status}")
        finally:
            self._llama.llama_batch_free(batch)
        self._position += len(tokens)

    def forget(self) -> None:
        """As if nothing had been decoded."""
        memory = self._llama.llama_get_memory(self._context)
        self._llama.llama_memory_clear(memory, True)
        self._position = 0

    def logits(self, at: int = -1) -> Floats:
        """f32[vocabulary] after a token of the last batch that has outputs."""
        row = self._llama.llama_get_logits_ith(self._context, at)
        return np.ctypeslib.as_array(row, (self.vocabulary,)).copy()


@contextmanager
def watched(
    path: Path,
    wanted: Wanted,
    seen: Seen,
    *,
    context: int = 2048,
    batch: int = 512,
    threads: int = 0,
) -> Iterator[Watched]:
    """``seen`` is called with every node that ``wanted`` accepts, once it is computed.

    An exception in it is raised at the end. Raises RuntimeError for a file that the engine refuses.
    """
    llama = low_level()
    problems: list[BaseException] = []

    def callback(pointer: int, ask: bool, _: object) -> bool:
        try:
            node = Tensor.from_address(pointer)
            if ask:
                return wanted(node)
            seen(node)
        except BaseException as error:
            problems.append(error)
        return True

    keep = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)(
        callback
    )
    quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    model_params = llama.llama_model_default_params()
    model_params.use_extra_bufts = False
    model_params.load_mode = 1
    model = llama.llama_model_load_from_file(str(path).encode(), model_params)
    if not model:
        raise RuntimeError(f"the engine refuses {path}")
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = context, batch, batch
    if threads:
        params.n_threads = params.n_threads_batch = threads
    params.swa_full = False
    params.cb_eval = ctypes.cast(keep, type(params.cb_eval))
    handle = llama.llama_init_from_model(model, params)
    if not handle:
        llama.llama_model_free(model)
        raise RuntimeError(f"the engine makes no context for {path}")
    try:
        yield Watched(llama, model, handle)
    finally:
        llama.llama_free(handle)
        llama.llama_model_free(model)
        if problems:
            raise problems[0]


def rows_of(tensor: Tensor, kind: type[np.float32] | type[np.int32]) -> NDArray[Any]:
    """The rows of a 32-bit matrix in host memory, copied: [ne1, ne0]."""
    columns, rows, stride = tensor.ne[0], tensor.ne[1], tensor.nb[1]
    size = stride * (rows - 1) + columns * 4
    flat = np.frombuffer((ctypes.c_char * size).from_address(tensor.data), np.uint8)
    view = np.lib.stride_tricks.as_strided(flat, (rows, columns * 4), (stride, 1))
    return view.copy().view(kind)
