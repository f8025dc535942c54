"""The worker process: the only place where llama.cpp runs, and so the only one that it can kill.

``python -m localmoe.engine.worker`` speaks the protocol of ``protocol.py`` on stdin and stdout.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from localmoe.engine import kv_store, protocol
from localmoe.engine.events import Finished, Loaded, LoadProgress
from localmoe.engine.protocol import Message
from localmoe.engine.worker import binding, loader
from localmoe.engine.worker.binding import llama
from localmoe.engine.worker.generation import Generator
from localmoe.engine.worker.page_reader import PageReader
from localmoe.engine.worker.readahead import read_ahead
from localmoe.engine.worker.residency import Residency, needs_pages
from localmoe.engine.worker.rpc_devices import Servers
from localmoe.errors import EngineError, InterruptedLoadError, LocalmoeError, ModelFileError
from localmoe.facts.model import Model, read_model
from localmoe.planning.cache import dense_ranges
from localmoe.planning.memory import EngineSettings

PROGRESS_INTERVAL = 0.05  # seconds between load progress events


class Worker:
    """At most one loaded model, and the last dry-run model, kept for more questions."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send
        self.interrupt = ctypes.c_int32(0)
        self._log = loader.EngineLog()
        self._log_callback = binding.set_log(self._log.write)
        self._model: Any = None
        self._ctx: Any = None
        self._generator: Generator | None = None
        self._experts: Residency | None = None
        self._identity = ""  # of what is loaded, for states on disk
        self._dry: tuple[object, Any] | None = None
        self._answers = {
            "info": self._do_info,
            "measure": self._do_measure,
            "load": self._do_load,
            "generate": self._do_generate,
            "count": self._do_count,
            "keep": self._do_keep,
            "resume": self._do_resume,
            "rates": self._do_rates,
        }
        self._servers = Servers()
        llama.llama_backend_init()

    def handle(self, message: Message) -> None:
        """Answer one request. Errors become an error event; anything else is a bug and kills."""
        try:
            answer = self._answers.get(message["op"])
            if answer is None:
                raise EngineError(f"the engine has no operation {message['op']!r}")
            answer(message)
        except LocalmoeError as error:
            self._send(protocol.error_to_message(error))

    def _do_info(self, message: Message) -> None:
        self._servers.add(message.get("remotes", ()))
        self._send(
            {
                "event": "info",
                "version": llama.llama_version().decode(),
                "system_info": llama.llama_print_system_info().decode(),
                "native_helper": binding.native is not None,
                "devices": [dataclasses.asdict(device) for device in binding.devices()],
            }
        )

    def _do_measure(self, message: Message) -> None:
        settings = protocol.settings_from_json(message["settings"])
        self._servers.add(settings.remotes)
        model = self._dry_model(message, settings)
        ctx = loader.open_context(model, settings, self._log)
        report = loader.memory_report(ctx, self._log)
        llama.llama_free(ctx)
        self._send({"event": "measured", "memory": dataclasses.asdict(report)})

    def _dry_model(self, message: Message, settings: EngineSettings) -> Any:
        """The metadata-only model; made again only when something that places weights changes."""
        paths = message["paths"]
        key = (
            tuple(paths),
            settings.devices,
            settings.tensor_split,
            settings.gpu_layers,
            settings.overrides,
            settings.repack,
            settings.experts_used,
        )
        if self._dry is not None:
            if self._dry[0] == key:
                return self._dry[1]
            llama.llama_model_free(self._dry[1])
            self._dry = None
        dry_run = loader.DryRun(message["vocabulary"])
        architecture = message["architecture"]
        model = loader.open_model(paths, settings, self._log, architecture, dry_run=dry_run)
        self._dry = (key, model)
        return model

    def _do_load(self, message: Message) -> None:
        settings = protocol.settings_from_json(message["settings"])
        self._unload()
        self._servers.add(settings.remotes)
        started = time.perf_counter()
        reported = 0.0

        def progress(fraction: float) -> bool:
            nonlocal reported
            now = time.perf_counter()
            if now - reported >= PROGRESS_INTERVAL:
                reported = now
                self._send(protocol.event_to_message(LoadProgress(fraction)))
            return not self.interrupt.value

        try:
            model = read_model(message["paths"][0])
            self._model = self._open(message["paths"], model, settings, progress)
        except loader.LoadInterruptedError:
            raise InterruptedLoadError("loading was interrupted") from None
        pages = PageReader(model, self.interrupt) if needs_pages(settings, model) else None
        try:
            on_node = pages.callback if pages is not None else None
            self._ctx = loader.open_context(self._model, settings, self._log, on_node)
            hot = Path(message["hot"]) if message.get("hot") else None
            self._experts = Residency(self._model, model, settings, self.interrupt, hot, pages)
        except LocalmoeError:
            if pages is not None:
                pages.close()
            raise
        if self.interrupt.value:  # seen too late for the progress callback
            self._unload()
            raise InterruptedLoadError("loading was interrupted")
        memory = loader.memory_report(self._ctx, self._log)
        self._generator = Generator(self._model, self._ctx, self.interrupt, self._experts)
        version = f"{llama.llama_version().decode()} {llama.llama_print_system_info().decode()}"
        self._identity = kv_store.identity(model, message["settings"], version)
        self._send(
            protocol.event_to_message(
                Loaded(
                    context=self._generator.context,
                    memory=memory,
                    load_s=time.perf_counter() - started,
                    bos=self._generator.vocabulary.bos_text(),
                    eos=self._generator.vocabulary.eos_text(),
                    cache=self._experts.regime,
                    note=self._experts.note,
                )
            )
        )

    def _open(
        self, paths: list[str], model: Model, settings: EngineSettings, progress: loader.Progress
    ) -> Any:
        """Load the weights; a mapped file is read ahead while llama.cpp reads the vocabulary."""
        given_up = False

        def go_on(fraction: float) -> bool:
            return progress(fraction) and not given_up

        def open_model(progress: loader.Progress) -> Any:
            return loader.open_model(
                paths, settings, self._log, model.architecture, progress=progress
            )

        if settings.load_mode != "mmap":
            return open_model(progress)
        if settings.devices or settings.repack:  # it copies the weights
            self._read_ahead(model, settings, progress)
            return open_model(progress)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(self._read_ahead, model, settings, go_on)
            try:
                opened = open_model(lambda _: not self.interrupt.value)
            except BaseException:
                given_up = True
                raise
        try:
            reading.result()
        except BaseException:
            llama.llama_model_free(opened)
            raise
        return opened

    def _read_ahead(
        self, model: Model, settings: EngineSettings, progress: loader.Progress
    ) -> None:
        """What every token needs, or the whole file where it fits."""
        ranges = None if settings.read_ahead else dense_ranges(model)
        if ranges is not None and settings.cache == "off":
            return
        try:
            if not read_ahead([str(path) for path in model.paths], progress, ranges):
                raise loader.LoadInterruptedError
        except OSError as error:
            raise ModelFileError(
                f"cannot read {error.filename or model.paths[0]}: {error}"
            ) from error

    def _unload(self) -> None:
        if self._generator is not None:
            self._generator.close()
            self._generator = None
        if self._experts is not None:
            self._experts.close()
            self._experts = None
        if self._ctx is not None:
            llama.llama_free(self._ctx)
            self._ctx = None
        if self._model is not None:
            llama.llama_model_free(self._model)
            self._model = None

    def _loaded(self) -> Generator:
        if self._generator is None:
            raise EngineError("no model is loaded")
        return self._generator

    def _do_generate(self, message: Message) -> None:
        request = protocol.request_from_json(message["request"])
        for event in self._loaded().generate(request):
            if isinstance(event, Finished) and self._experts is not None:
                self._experts.remember()  # whoever hears the end may end this process
            self._send(protocol.event_to_message(event))

    def _do_count(self, message: Message) -> None:
        tokens = self._loaded().vocabulary.tokenize(message["text"], add_bos=False)
        self._send({"event": "counted", "tokens": len(tokens)})

    def _do_keep(self, message: Message) -> None:
        kv = self._loaded().kv
        size = kv.save(Path(message["path"]), self._identity, lambda: bool(self.interrupt.value))
        self._send({"event": "kept", "bytes": size})

    def _do_resume(self, message: Message) -> None:
        kv = self._loaded().kv
        tokens = kv.load(Path(message["path"]), self._identity, lambda: bool(self.interrupt.value))
        self._send({"event": "resumed", "tokens": tokens})

    def _do_rates(self, message: Message) -> None:
        from localmoe.engine.worker import kernel_timing  # NumPy, which nothing else here needs

        self._servers.add(message["remotes"])
        found = kernel_timing.measure(message["threads"]) if message["threads"] else None
        devices = [
            device for name in message["devices"] if (device := kernel_timing.measure_device(name))
        ]
        self._send(
            {
                "event": "rates",
                "processor": dataclasses.asdict(found) if found else None,
                "devices": [dataclasses.asdict(device) for device in devices],
            }
        )


class Inbox:
    """Requests from the client, read on a thread of their own.

    ``cancel`` names the request it is meant for, so one that comes late cannot stop the next.
    """

    def __init__(self, source: int, interrupt: ctypes.c_int32) -> None:
        self._source = source
        self._interrupt = interrupt
        self._lock = threading.Lock()
        self._current = self._cancelled = 0
        self._pending: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self) -> Message:
        """The next request; the interrupt flag then says whether it is cancelled already."""
        message = self._pending.get()
        with self._lock:
            self._current = message["id"]
            self._interrupt.value = int(self._current <= self._cancelled)
        return message

    def _read(self) -> None:
        """Until the end of input, or a line that is no request: both end the worker."""
        with contextlib.suppress(ValueError, KeyError), os.fdopen(self._source, "rb") as stream:
            for line in stream:
                message = protocol.decode(line)
                if message["op"] != "cancel":
                    self._pending.put(message)
                    continue
                with self._lock:
                    self._cancelled = message["id"]
                    if self._current == self._cancelled:
                        self._interrupt.value = 1
        os._exit(0)  # nobody is listening any more


def main() -> None:
    """Keep the protocol's pipes for ourselves: anything else that prints goes to stderr."""
    requests, events = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    with contextlib.suppress(OSError):  # let the kernel choose us, not the terminal, if RAM ends
        Path("/proc/self/oom_score_adj").write_text("500")

    def send(message: Message) -> None:
        data = protocol.encode(message)
        while data:
            data = data[os.write(events, data) :]

    worker = Worker(send)
    inbox = Inbox(requests, worker.interrupt)
    with contextlib.suppress(BrokenPipeError):
        while True:
            worker.handle(inbox.next())


if __name__ == "__main__":
    main()
