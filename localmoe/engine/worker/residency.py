"""The experts of the loaded model while it runs: cache, routing in and out, what use teaches.

``expert_cache.py`` has the mechanism; this is its use by the worker. Per decode it costs two calls,
and nothing per token is done in Python unless the routing is recorded.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localmoe import kept, storage
from localmoe.engine.events import CacheStats, LayerLoad, LayerStats
from localmoe.engine.worker.expert_cache import Counters, ExpertCache, available
from localmoe.engine.worker.memory_watch import MemoryWatch
from localmoe.engine.worker.model_tensors import (
    ExpertTensor,
    expect_single_rows,
    expert_tensors,
    in_host_memory,
    layout_problem,
)
from localmoe.engine.worker.page_reader import PageReader
from localmoe.engine.worker.usage import Learning
from localmoe.errors import EngineError, EngineMemoryError, LocalmoeError, StorageError
from localmoe.facts.model import Model
from localmoe.planning.cache import layer_of, read_by_every_token
from localmoe.planning.memory import OFFLOADED, EngineSettings

if TYPE_CHECKING:
    from localmoe.engine.worker.recording import Recording

HOT_LIMIT = 65536  # experts in a hot set; larger files are not read


class Residency:
    """Opened after the model is loaded, closed before it is freed.

    ``regime``: what serves the experts, "off", "page" or "private"; ``note``: why it is not what
    the settings ask for. ``hot``: where the experts in use are noted for the next start, None to
    leave no trace. ``pages``: what reads them where the cache itself cannot be used. ``unfilled``:
    bytes that something else in this process will take. ``mapped``: bytes of weights that are
    mapped files, experts among them.

    Raises EngineError, ModelFileError, and TraceFileError for a routing that cannot be imposed.
    """

    def __init__(
        self,
        llama_model: Any,
        model: Model,
        settings: EngineSettings,
        interrupt: ctypes.c_int32,
        hot: Path | None = None,
        pages: PageReader | None = None,
        unfilled: Callable[[], int] = lambda: 0,
        mapped: int = 0,
    ) -> None:
        self.regime = settings.cache
        self.note = ""
        self._settings = settings
        self._interrupt = interrupt
        self._pages = pages
        self._unfilled = unfilled
        self._mapped = mapped
        self._hot = hot if settings.cache == "private" else None
        self._cache: ExpertCache | None = None
        self._groups: list[int] = []
        self._recording: Recording | None = None
        self._learning: Learning | None = None
        self._watch: MemoryWatch | None = None
        self._unproven = settings.cache == "private"  # until a decode has used the cache
        self._tokens = 0  # of the batch that is computed
        wanted = settings.cache != "off" or settings.record or settings.replay or hot is not None
        if not (wanted and model.is_moe):
            return
        why_not = available()
        tensors: list[ExpertTensor] = []
        if why_not is None:
            tensors = expert_tensors(llama_model, model)
            why_not = layout_problem(tensors, model.paths)
        if why_not is not None:
            self._go_without(why_not)
        elif not (tensors := in_host_memory(tensors)):
            self.regime = "off"  # a GPU has them all
        else:
            if settings.cache != "off" and hasattr(mmap, "MADV_RANDOM"):
                expect_single_rows(llama_model, model)
            with contextlib.ExitStack() as on_error:
                on_error.callback(self.close)  # or it would look at the next model's tensors
                self._open(model, tensors, keep=hot is not None)
                on_error.pop_all()

    def _open(self, model: Model, tensors: Sequence[ExpertTensor], *, keep: bool) -> None:
        """Serve these tensors. ``keep``: what their use teaches is added to the model's profile."""
        settings = self._settings
        paths = [str(path) for path in model.paths] if settings.cache != "off" else []
        self._groups = list(dict.fromkeys(tensor.entry.group for tensor in tensors))
        cache = self._open_cache(paths, tensors)
        if cache is None:
            return
        self._cache = cache
        self._mark, self._layer_mark = cache.counters(), cache.layers(len(self._groups))
        if settings.devices and settings.op_offload:
            cache.offload(offloaded_tokens())
        self._steer(cache, model)
        entries = [tensor.entry for tensor in tensors]
        self._learning = Learning(cache, model, entries, settings, keep=keep)
        if self._hot is not None:
            # What was there at the end; of another quantization only its use is known.
            found = _read_hot(self._hot, len(self._groups)) or self._learning.favourites()
            cache.warm(found[:HOT_LIMIT])
        if self.regime == "private":
            experts = sum(entry.nbytes for entry in entries)
            mapped = read_by_every_token(model, self._mapped, experts)
            try:
                self._watch = MemoryWatch(cache, model, settings, self._unfilled, mapped)
            except RuntimeError as error:  # the system refuses the thread
                self._give_up(str(error))

    def _open_cache(self, paths: list[str], tensors: Sequence[ExpertTensor]) -> ExpertCache | None:
        """As the settings ask, or the one that needs no address space; None: it goes without."""
        size = self._settings.cache_bytes
        try:
            cache = ExpertCache(paths, tensors, self.regime, size, self._interrupt)
        except EngineError as error:
            self._hot, self._unproven = None, False
            if self.regime != "private" or not isinstance(error, EngineMemoryError):
                self._go_without(error.message)
                return None
            self.regime = "page"
            self.note = f"experts are read through the page cache: {error.message}"
            return self._open_cache(paths, tensors)
        self._note_refusal(cache.counters())
        return cache

    def _note_refusal(self, now: Counters) -> None:
        """Say that direct reads are refused; some file systems do so at the first large one."""
        if self.regime == "private" and now.no_direct:
            self.note = "the file system has no direct reads: experts come through the page cache"

    def _go_without(self, why: str) -> None:
        """The cache cannot be used: the page cache serves the experts, read ahead if possible."""
        settings = self._settings
        if settings.record or settings.replay:
            raise EngineError(f"the routing cannot be seen: {why}")
        if settings.cache != "off":
            self.regime = "page" if self._pages is not None else "off"
            self.note = f"experts are read through the page cache: {why}"

    def _give_up(self, why: str) -> None:
        """Close a private cache that is of no use: the file's mapping serves the experts."""
        self.close()
        self._hot = None
        self._go_without(why)

    def _steer(self, cache: ExpertCache, model: Model) -> None:
        settings = self._settings
        if settings.cache_shares:
            shares = dict(settings.cache_shares)
            cache.share_out([shares[layer_of(group)] for group in self._groups])
        if settings.prefer_cached:
            cache.prefer(settings.prefer_cached)
        if settings.record or settings.replay:
            from localmoe.engine.worker.recording import Recording, imposed  # NumPy: 0.1 s

            if settings.replay:
                routing = imposed(Path(settings.replay), model, settings.experts_used)
                cache.impose(*routing, settings.predicted)
            if settings.record:
                self._recording = Recording(
                    cache,
                    Path(settings.record),
                    model,
                    settings.experts_used,
                    logits=settings.record_logits,
                )

    def begin(self, position: int, tokens: Sequence[int], decoded: int, following: int = 0) -> None:
        """Before each llama_decode of ``tokens``, the first of them at ``position``.

        ``decoded``: the number of the answer's token, −1 while the prompt is read; ``following``:
        tokens of the prompt's next batch.
        Raises ModelFileError when the file was changed since it was opened.
        """
        self._tokens = len(tokens)
        if self._pages is not None:
            self._pages.begin()
        if self._recording is not None:
            self._recording.begin(tokens, prefill=decoded < 0)
        settings, cache = self._settings, self._cache
        lent = settings.cache_lent * len(tokens) // settings.ubatch if decoded < 0 else 0
        if cache is not None and not cache.begin(position, len(tokens), decoded, following, lent):
            raise self._failed(cache.failure())

    def done(self) -> None:
        """After one that went well. Raises StorageError when it could not be recorded."""
        if self._recording is not None:
            self._recording.end()
        if self._unproven and (self._tokens < offloaded_tokens() or not self._settings.devices):
            self._unproven = False
            if self._cache is not None and self._cache.counters().calls == 0:
                self._give_up("this build of llama.cpp did not ask for them")

    def cut_short(self) -> bool:
        """Whether an interrupt has ended it although the engine says that it went well."""
        return self._cache is not None and self._cache.cut_short()

    def failure(self) -> LocalmoeError | None:
        """After it: why the cache ended the decode; the interrupt flag is then free again."""
        if self._cache is not None and not self._cache.end():
            return self._failed(self._cache.failure())
        if self._pages is not None and self._pages.failure is not None:
            return self._failed(self._pages.failure)
        return None

    def _failed(self, error: LocalmoeError | None) -> LocalmoeError:
        if self._interrupt.value == 2:
            self._interrupt.value = 0
        return error or EngineError("the expert cache ended the computation and gave no reason")

    def stats(self) -> CacheStats | None:
        """What happened since the last call, ``note`` too; None without a cache."""
        if self._cache is None or self.regime == "off":
            return None
        now, layers = self._cache.counters(), self._cache.layers(len(self._groups))
        self._note_refusal(now)
        before, layers_before = self._mark, self._layer_mark
        self._mark, self._layer_mark = now, layers
        return CacheStats(
            regime=self.regime,
            hits=(now.lookups - now.misses) - (before.lookups - before.misses),
            misses=now.misses - before.misses,
            bytes_read=now.bytes_read - before.bytes_read,
            stall_s=now.stall_s - before.stall_s,
            resident_bytes=now.resident_bytes,
            budget=self._watch.budget if self._watch is not None else self._settings.cache_bytes,
            preferred=now.preferred - before.preferred,
            layers=tuple(
                LayerStats(
                    group, seen - seen_before - (missed - missed_before), missed - missed_before
                )
                for group, (seen, missed), (seen_before, missed_before) in zip(
                    self._groups, layers, layers_before, strict=True
                )
            ),
        )

    def counters(self) -> Counters | None:
        return self._cache.counters() if self._cache is not None else None

    def load(self) -> tuple[LayerLoad, ...]:
        """How the experts were used since the model was loaded; () where nobody counts."""
        return self._learning.load() if self._learning is not None else ()

    def remember(self) -> None:
        """Note for the next start what was used, and which experts are in memory."""
        if self._learning is not None:
            self._learning.learn()
        if self._cache is None or self._hot is None:
            return
        document = {"version": 1, "experts": self._cache.hot(HOT_LIMIT)}
        try:
            storage.atomic_write(self._hot, json.dumps(document, separators=(",", ":")))
        except StorageError:
            self._hot = None  # only a faster start is lost

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        if self._recording is not None:
            self._recording.close()
        if self._cache is not None:
            self._cache.close()
        self._watch = self._recording = self._cache = self._learning = None


def offloaded_tokens() -> int:
    """Tokens of a batch from which on llama.cpp gives host weights to a GPU, as it is told."""
    try:
        return int(os.environ["GGML_OP_OFFLOAD_MIN_BATCH"])
    except (KeyError, ValueError):
        return OFFLOADED


def needs_pages(settings: EngineSettings, model: Model) -> bool:
    """Whether experts are to be served and the cache cannot be used here."""
    return settings.cache != "off" and model.is_moe and available() is not None


def _read_hot(path: Path, groups: int) -> list[tuple[int, int]]:
    """(group, expert) pairs; nothing from a file that is not ours."""
    try:
        if path.stat().st_size > 32 * HOT_LIMIT:
            return []
        pairs = kept.parse(path.read_bytes())["experts"][:HOT_LIMIT]
        return [(kept.whole(g, most=groups - 1), kept.whole(e, most=1 << 20)) for g, e in pairs]
    except (OSError, *kept.DAMAGED):
        return []
