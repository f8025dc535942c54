"""A model in memory, ready to answer: weights, context, experts, generator, in this order."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from localmoe.engine import kv_store
from localmoe.engine.worker import loader
from localmoe.engine.worker.binding import llama
from localmoe.engine.worker.generation import Generator
from localmoe.engine.worker.page_reader import PageReader
from localmoe.engine.worker.prompt_cache import PromptCache
from localmoe.engine.worker.readahead import read_ahead
from localmoe.engine.worker.residency import Residency, needs_pages
from localmoe.errors import EngineMemoryError, InterruptedLoadError, ModelFileError
from localmoe.facts.hardware import free_memory
from localmoe.facts.model import Model, read_model
from localmoe.planning.cache import dense_ranges
from localmoe.planning.memory import CPU, EngineSettings
from localmoe.planning.prefill import attention_work
from localmoe.text import format_bytes, reason_of


class LoadedModel:
    """Made by loading, until ``close``; a load that fails leaves nothing behind.

    ``hot``: where the experts in use are noted, None to leave no trace. ``interrupt``: ends the
    load when it is set, as ``progress`` does by returning False.

    Raises ModelFileError, EngineError, and InterruptedLoadError.
    """

    def __init__(
        self,
        paths: Sequence[str],
        settings: EngineSettings,
        hot: Path | None,
        log: loader.EngineLog,
        interrupt: ctypes.c_int32,
        progress: loader.Progress,
    ) -> None:
        self.file = read_model(paths[0])
        self.note = ""  # why it is not loaded as the settings say
        with ExitStack() as stack:
            try:
                weights = _load_weights(paths, self.file, settings, log, interrupt, progress)
            except loader.MappingRefusedError as error:
                settings = without_mapping(self.file, settings, free_memory()[0], str(error))
                self.note = f"the weights are copied into memory: {error}"
                weights = _load_weights(paths, self.file, settings, log, interrupt, progress)
            stack.callback(llama.llama_model_free, weights)
            pages = PageReader(self.file, interrupt) if needs_pages(settings, self.file) else None
            if pages is not None:
                stack.callback(pages.close)
            on_node = pages.callback if pages is not None else None
            context = loader.open_context(weights, settings, log, on_node)
            stack.callback(llama.llama_free, context)
            prompts = PromptCache(settings.prompt_cache)
            self.memory = loader.memory_report(context, log)
            mapped = self.memory.on(CPU).weights if settings.load_mode == "mmap" else 0
            self.experts = Residency(
                *(weights, self.file, settings, interrupt, hot, pages),
                lambda: prompts.unfilled,
                mapped,
            )
            stack.callback(self.experts.close)
            self.note = self.note or self.experts.note
            if interrupt.value:  # set too late for the progress callback to see it
                raise InterruptedLoadError("loading was interrupted")
            attention = attention_work(self.file, settings)
            self.generator = Generator(
                weights, context, interrupt, self.experts, prompts, attention
            )
            stack.callback(self.generator.close)
            self.close = stack.pop_all().close

    def identity(self, settings: Mapping[str, Any]) -> str:
        """Of the state that the generator builds up, for keeping it on disk (``kv_store``)."""
        version = f"{llama.llama_version().decode()} {llama.llama_print_system_info().decode()}"
        return kv_store.identity(self.file, settings, version)


def without_mapping(model: Model, settings: EngineSettings, free: int, why: str) -> EngineSettings:
    """How to load a file that the system does not map, with ``free`` bytes of memory. Pure.

    Raises EngineMemoryError where its weights do not fit: only a mapping leaves some on the disk.
    """
    needed = sum(tensor.nbytes for tensor in model.tensors if tensor.loaded)
    if needed > free:
        raise EngineMemoryError(
            f"the file cannot be mapped into memory ({why}), and its {format_bytes(needed)} do not "
            f"fit into the {format_bytes(free)} that are free",
            hint="copy it to a disk of this machine; `ulimit -v unlimited` lifts a limit of the "
            "shell",
        )
    return dataclasses.replace(settings, load_mode="none", cache="off", cache_bytes=0)


def _load_weights(
    paths: Sequence[str],
    model: Model,
    settings: EngineSettings,
    log: loader.EngineLog,
    interrupt: ctypes.c_int32,
    progress: loader.Progress,
) -> Any:
    """A ``llama_model *``; a mapped file is read ahead while llama.cpp reads the vocabulary."""

    def open_model(progress: loader.Progress) -> Any:
        return loader.open_model(paths, settings, log, model.architecture, progress=progress)

    if settings.load_mode != "mmap":
        return open_model(progress)
    if settings.devices or settings.repack:  # llama.cpp copies the weights: it must find them there
        _read_ahead(model, settings, progress)
        return open_model(progress)
    failed = False
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_read_ahead, model, settings, lambda f: progress(f) and not failed)
        try:
            weights = open_model(lambda _: not interrupt.value)
        except BaseException:
            failed = True
            raise
    try:
        reading.result()
    except BaseException:
        llama.llama_model_free(weights)
        raise
    return weights


def _read_ahead(model: Model, settings: EngineSettings, progress: loader.Progress) -> None:
    """Bring into the page cache what every token needs, or the whole file where it fits."""
    ranges = None if settings.read_ahead else dense_ranges(model)
    if ranges is not None and settings.cache == "off":
        return
    try:
        if not read_ahead([str(path) for path in model.paths], progress, ranges):
            raise InterruptedLoadError("loading was interrupted")
    except OSError as error:
        name = error.filename or model.paths[0]
        raise ModelFileError(f"cannot read {name}: {reason_of(error)}") from error
