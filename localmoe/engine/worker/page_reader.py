"""The page regime without the native helper: macOS, or no compiler at installation.

llama.cpp's evaluation callback names every node of the graph. After ``ffn_moe_topk-L`` the routed
experts of layer L are known; threads read exactly those parts of the file, in parallel, and drop
the bytes: what counts is that the system has them in its page cache when the mapping is touched.
It costs a Python call per node, so it is used only when the experts do not fit in RAM.

An exception that leaves the callback would let llama.cpp go on with an unfinished graph and old
logits. So each is caught and kept, and the abort flag ends the graph.
"""

from __future__ import annotations

import ctypes
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from localmoe.engine.worker import binding
from localmoe.engine.worker.binding import llama
from localmoe.engine.worker.expert_cache import file_changed, unreadable
from localmoe.engine.worker.model_tensors import GgmlTensor
from localmoe.errors import LocalmoeError
from localmoe.facts.model import Model
from localmoe.planning.cache import routed_tensors
from localmoe.planning.memory import RoutedTensor

READERS = 4
CHUNK = 1 << 20  # bytes of one read
FRESH = 16  # tokens for which an expert just read is taken to be in the page cache
NODE = b"ffn_moe_topk-"


class PageReader:
    """Made before the context, whose ``cb_eval`` is ``callback``; closed after it is freed.

    ``interrupt`` is set to 2 when reading fails; ``failure`` then says why.
    """

    def __init__(self, model: Model, interrupt: ctypes.c_int32) -> None:
        self.failure: LocalmoeError | None = None
        self.bytes_read = 0
        self._interrupt = interrupt
        self._layers: dict[int, list[RoutedTensor]] = {}
        for tensor in routed_tensors(model):
            self._layers.setdefault(tensor.group, []).append(tensor)
        self._files = [os.open(path, os.O_RDONLY) for path in model.paths]
        self._identities = [self._identity(file) for file in self._files]
        self._pool = ThreadPoolExecutor(READERS)
        self._scratch = threading.local()
        self._nodes: dict[int, int] = {}  # address of a node → its layer, −1: no choice of experts
        self._used: dict[tuple[int, int], int] = {}  # (layer, expert) → batch that used it
        self._batch = 0
        self.callback = llama.ggml_backend_sched_eval_callback(self._on_node)

    def begin(self) -> None:
        """Before each llama_decode. Graphs may be built anew, so nodes are named again."""
        self._batch += 1
        self._nodes.clear()
        self.failure = None

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for file in self._files:
            os.close(file)

    def _on_node(self, address: Any, ask: bool, _: Any) -> bool:
        try:
            if ask:
                layer = self._nodes.get(address)
                if layer is None:
                    layer = self._nodes[address] = self._layer_of(address)
                return layer >= 0
            layer = self._nodes.get(address, -1)
            if layer >= 0 and not self._interrupt.value:
                self._bring(layer, self._ids(address))
        except BaseException as error:
            if not isinstance(error, LocalmoeError):
                error = unreadable(str(error) or type(error).__name__)
            self.failure = self.failure or error
            self._interrupt.value = self._interrupt.value or 2
        return True

    def _layer_of(self, address: int) -> int:
        name = GgmlTensor.from_address(address).name
        if not name.startswith(NODE):
            return -1
        layer = int(name[len(NODE) :].split(b" ")[0])
        return layer if layer in self._layers else -1

    def _ids(self, address: int) -> set[int]:
        node = GgmlTensor.from_address(address)
        k, tokens, stride = node.ne[0], node.ne[1], node.nb[1]
        size = (tokens - 1) * stride + k * 4
        raw = ctypes.create_string_buffer(size)
        binding.tensor_get(address, raw, 0, size)  # from a GPU, too
        return {
            expert
            for token in range(tokens)
            for expert in (ctypes.c_int32 * k).from_buffer(raw, token * stride)
        }

    def _bring(self, layer: int, experts: set[int]) -> None:
        missing = []
        for expert in experts:
            last = self._used.get((layer, expert))
            self._used[layer, expert] = self._batch
            if last is None or self._batch - last > FRESH:
                missing.append(expert)
        jobs: list[Future[None]] = []
        for tensor in self._layers[layer]:
            size = tensor.nbytes // tensor.experts
            for expert in missing:
                if 0 <= expert < tensor.experts:
                    start = tensor.offset + size * expert
                    jobs.append(self._pool.submit(self._read, tensor.part, start, start + size))
        for job in jobs:
            job.result()
        for part in {tensor.part for tensor in self._layers[layer]} if jobs else ():
            if self._identity(self._files[part]) != self._identities[part]:
                raise file_changed("the model file was changed while it was in use")

    def _read(self, part: int, start: int, end: int) -> None:
        buffer = getattr(self._scratch, "buffer", None)
        if buffer is None:
            buffer = self._scratch.buffer = memoryview(bytearray(CHUNK))
        while start < end and not self._interrupt.value:
            view = buffer[: min(CHUNK, end - start)]
            count = os.preadv(self._files[part], [view], start)
            if not count:
                raise file_changed("the model file has become shorter while it was in use")
            start += count
            self.bytes_read += count

    @staticmethod
    def _identity(file: int) -> tuple[int, int]:
        info = os.fstat(file)
        return info.st_size, info.st_mtime_ns
