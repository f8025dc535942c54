"""The experts of the loaded model while it runs: cache, routing in and out, memory given back.

``experts.py`` has the mechanism; this is its use by the worker. Nothing here is in the path of a
token that is not told to record.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localmoe import storage
from localmoe.engine.events import CacheStats, LayerLoad, LayerStats
from localmoe.engine.worker.expert_cache import Counters, ExpertCache, available
from localmoe.engine.worker.page_reader import PageReader
from localmoe.engine.worker.usage import Learning
from localmoe.errors import EngineError, LocalmoeError, ModelFileError, StorageError
from localmoe.facts.hardware import free_memory
from localmoe.facts.model import Model
from localmoe.planning.cache import (
    budget_under_pressure,
    layer_of,
    needed_budget,
    routed_tensors,
)
from localmoe.planning.layout import home_of, layer_homes
from localmoe.planning.memory import CPU, EngineSettings

if TYPE_CHECKING:
    from localmoe.engine.worker.recording import Recording

LOOK = 0.5  # seconds between two looks at the machine's free memory
HOT_LIMIT = 65536  # experts in a hot set; larger files are not read


class Residency:
    """Opened after the model is loaded, closed before it is freed.

    ``hot``: where the experts in use are noted for the next start, None to leave no trace.
    ``pages``: what reads them where the cache itself cannot be used.
    """

    def __init__(
        self,
        llama_model: Any,
        model: Model,
        settings: EngineSettings,
        interrupt: ctypes.c_int32,
        hot: Path | None = None,
        pages: PageReader | None = None,
    ) -> None:
        self.regime = settings.cache
        self.note = ""
        self._settings = settings
        self._interrupt = interrupt
        self._hot = hot if settings.cache == "private" else None
        self._cache: ExpertCache | None = None
        self._recording: Recording | None = None
        self._stop = threading.Event()
        self._watch: threading.Thread | None = None
        self._budget = settings.cache_bytes
        self._pages: PageReader | None = None
        self._learning: Learning | None = None
        homes = layer_homes(model, settings)
        here = {t.name for t in model.tensors if home_of(t, settings, homes) == CPU}
        # Those on a GPU are not ours to serve, and the native side does not count them.
        tensors = [tensor for tensor in routed_tensors(model) if tensor.name in here]
        self._groups = list(dict.fromkeys(tensor.group for tensor in tensors))
        traced = settings.record or settings.replay
        why_not = available()
        if not tensors or not (settings.cache != "off" or traced or hot is not None):
            return
        if why_not is not None:
            if traced:
                raise EngineError(f"the routing cannot be seen: {why_not}")
            if settings.cache != "off":
                self.regime, self._pages = "page", pages
                self.note = f"experts are read through the page cache: {why_not}"
            return
        paths = [str(path) for path in model.paths] if settings.cache != "off" else []
        self._cache = ExpertCache(
            llama_model, paths, tensors, settings.cache, settings.cache_bytes, interrupt
        )
        self._mark = self._cache.counters()
        self._layer_mark = self._cache.layers(len(self._groups))
        try:
            self._steer(self._cache, model)
        except BaseException:
            self.close()  # or the cache would look at the next model's tensors
            raise
        self._learning = Learning(self._cache, model, tensors, settings, keep=hot is not None)
        if self._hot is not None:
            # What was there at the end; of another quantization only its use is known.
            found = _read_hot(self._hot, len(self._groups)) or self._learning.favourites()
            self._cache.warm(found[:HOT_LIMIT])
        if settings.cache == "private":
            layers = range(len(model.layers))
            self._least = needed_budget(model, layers, settings.ubatch, settings.experts_used)
            self._watch = threading.Thread(target=self._give_back, daemon=True)
            self._watch.start()

    def _steer(self, cache: ExpertCache, model: Model) -> None:
        settings = self._settings
        if settings.cache_shares:
            shares = dict(settings.cache_shares)
            cache.share_out([shares[layer_of(group)] for group in self._groups])
        if settings.prefer_cached:
            cache.prefer(settings.prefer_cached)
        if settings.record or settings.replay:
            from localmoe.engine.worker.recording import Recording, imposed

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

    def begin(self, position: int, tokens: Sequence[int], decoded: int) -> None:
        """Before each llama_decode of ``tokens``, the first of them at ``position``.

        ``decoded``: the number of the answer's token, −1 while the prompt is read.
        Raises ModelFileError when the file was changed since it was opened.
        """
        if self._pages is not None:
            self._pages.begin()
        if self._recording is not None:
            self._recording.begin(tokens, prefill=decoded < 0)
        if self._cache is not None and not self._cache.begin(position, len(tokens), decoded):
            raise self._blame(self._cache.error())

    def done(self) -> None:
        """After one that went well. Raises StorageError when it could not be recorded."""
        if self._recording is not None:
            self._recording.end()

    def failure(self) -> LocalmoeError | None:
        """After it: why the cache ended the decode; the interrupt flag is then free again."""
        if self._cache is not None and not self._cache.end():
            return self._blame(self._cache.error())
        if self._pages is not None and self._pages.error:
            return self._blame(self._pages.error)
        return None

    def _blame(self, reason: str) -> LocalmoeError:
        if self._interrupt.value == 2:
            self._interrupt.value = 0
        if "was changed" in reason or "become shorter" in reason:
            return ModelFileError(reason, hint="load the model again: /model, or a new start")
        return EngineError(f"an expert is missing: {reason}")

    def stats(self) -> CacheStats | None:
        """What happened since the last call; None without a cache."""
        if self._cache is None or self.regime == "off":
            return None
        now, layers = self._cache.counters(), self._cache.layers(len(self._groups))
        before, layers_before = self._mark, self._layer_mark
        self._mark, self._layer_mark = now, layers
        return CacheStats(
            regime=self.regime,
            hits=(now.lookups - now.misses) - (before.lookups - before.misses),
            misses=now.misses - before.misses,
            bytes_read=now.bytes_read - before.bytes_read,
            stall_s=now.stall_s - before.stall_s,
            resident_bytes=now.resident_bytes,
            budget=self._budget,
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
        if self._pages is not None:
            self._pages.close()
            self._pages = None
        self._stop.set()
        if self._watch is not None:
            self._watch.join()
        if self._recording is not None:
            self._recording.close()
            self._recording = None
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _give_back(self) -> None:
        """Shrink while the machine is short of memory, grow again when it is not."""
        while not self._stop.wait(LOOK):
            free, low = free_memory()
            budget = budget_under_pressure(
                self._budget, self._settings.cache_bytes, free, low, self._least
            )
            if budget != self._budget and self._cache is not None:
                self._budget = budget
                self._cache.resize(budget)


def needs_pages(settings: EngineSettings, model: Model) -> bool:
    """Whether experts are to be served and the cache cannot be used here."""
    return settings.cache != "off" and model.is_moe and available() is not None


def _read_hot(path: Path, groups: int) -> list[tuple[int, int]]:
    """(group, expert) pairs; nothing from a file that is not ours."""
    try:
        if path.stat().st_size > 32 * HOT_LIMIT:
            return []
        document = json.loads(path.read_bytes())
        pairs = [(int(group), int(expert)) for group, expert in document["experts"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return []
    return [(g, e) for g, e in pairs[:HOT_LIMIT] if 0 <= g < groups and 0 <= e < 1 << 20]
