"""The worker process: the only place where llama.cpp runs, and so the only one that it can kill.

``python -m localmoe.engine.worker`` speaks the protocol of ``protocol.py`` on stdin and stdout.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localmoe.engine import protocol
from localmoe.engine.events import Finished, Loaded, LoadProgress
from localmoe.engine.protocol import Message
from localmoe.engine.worker import binding, loader
from localmoe.engine.worker.binding import llama
from localmoe.engine.worker.inbox import Inbox
from localmoe.engine.worker.questions import Questions
from localmoe.engine.worker.rpc_devices import Servers
from localmoe.errors import EngineError, LocalmoeError
from localmoe.planning.memory import EngineSettings

if TYPE_CHECKING:
    from localmoe.engine.worker.loading import LoadedModel

PROGRESS_INTERVAL = 0.05  # seconds between load progress events


class Worker:
    """At most one loaded model, and the last dry-run model, kept for more questions."""

    def __init__(
        self, send: Callable[[Message], None], questions: Questions, modules: Sequence[str]
    ) -> None:
        """``modules``: paths of backends to load."""
        self._write = send
        self._questions = questions
        self._request = 0  # the id of the one that is being answered
        self.interrupt = ctypes.c_int32(0)
        self.pause = threading.Event()
        self._log = loader.EngineLog()
        self._log_callback = binding.set_log(self._log.write)
        self._loaded: LoadedModel | None = None
        self._identity = ""  # of what is loaded, for states on disk
        self._dry: tuple[object, Any] | None = None
        self._answers = {
            "info": self._do_info,
            "measure": self._do_measure,
            "load": self._do_load,
            "generate": self._do_generate,
            "keep": self._do_keep,
            "resume": self._do_resume,
            "rates": self._do_rates,
        }
        self._servers = Servers()
        llama.llama_backend_init()
        self._modules = self._load(modules)

    def _load(self, modules: Sequence[str]) -> dict[str, str]:
        """Path of each module → why it is not in use, "" if it is.

        Each is named before: one that crashes or hangs is known by that.
        """
        found = {}
        for path in modules:
            self._write({"event": "module", "path": path})
            found[path] = binding.load_module(path)
        if modules:
            binding.devices()  # some drivers start to work only now
            self._write({"event": "started"})
        return found

    def handle(self, message: Message) -> None:
        """Answer one request. Errors become an error event; anything else is a bug and kills."""
        self._request = message["id"]
        try:
            answer = self._answers.get(message["op"])
            if answer is None:
                raise EngineError(f"the engine has no operation {message['op']!r}")
            answer(message)
        except LocalmoeError as error:
            self._send(protocol.error_to_message(error))

    def _send(self, event: Message) -> None:
        self._write({"id": self._request, **event})

    def _do_info(self, message: Message) -> None:
        self._servers.add(message.get("remotes", ()))
        self._send(
            {
                "event": "info",
                "version": llama.llama_version().decode(),
                "system_info": llama.llama_print_system_info().decode(),
                "native_helper": binding.native is not None,
                "helper_preloaded": binding.helper_is_preloaded(),
                "devices": [dataclasses.asdict(device) for device in binding.devices()],
                "modules": self._modules,
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
        from localmoe.engine.worker.loading import LoadedModel  # a worker that is asked loads none

        settings = protocol.settings_from_json(message["settings"])
        self._unload()
        self._servers.add(settings.remotes)
        started = time.perf_counter()
        hot = Path(message["hot"]) if message.get("hot") else None
        loaded = LoadedModel(
            message["paths"], settings, hot, self._log, self.interrupt, self._progress()
        )
        self._loaded = loaded
        self._identity = loaded.identity(message["settings"])
        vocabulary = loaded.generator.vocabulary
        self._questions.use(vocabulary)
        event = Loaded(
            context=loaded.generator.context,
            batch=loaded.generator.batch,
            ubatch=loaded.generator.ubatch,
            memory=loaded.memory,
            load_s=time.perf_counter() - started,
            bos=vocabulary.bos_text(),
            eos=vocabulary.eos_text(),
            cache=loaded.experts.regime,
            note=loaded.note,
            vocabulary=vocabulary.size,
        )
        self._send(protocol.event_to_message(event))

    def _progress(self) -> loader.Progress:
        """Reports the progress of a load, not too often; stops it when it is interrupted."""
        reported = 0.0

        def report(fraction: float) -> bool:
            nonlocal reported
            now = time.perf_counter()
            if now - reported >= PROGRESS_INTERVAL:
                reported = now
                self._send(protocol.event_to_message(LoadProgress(fraction)))
            return not self.interrupt.value

        return report

    def _unload(self) -> None:
        if self._loaded is not None:
            self._questions.use(None)
            self._loaded.close()
            self._loaded = None

    @property
    def _model(self) -> LoadedModel:
        if self._loaded is None:
            raise EngineError("no model is loaded")
        return self._loaded

    def _do_generate(self, message: Message) -> None:
        request, model = protocol.request_from_json(message["request"]), self._model
        for event in model.generator.generate(request, self.pause.is_set):
            if isinstance(event, Finished):
                model.experts.remember()  # whoever hears the end may end this process
            self._send(protocol.event_to_message(event))

    def _do_keep(self, message: Message) -> None:
        kv = self._model.generator.kv
        size = kv.save(Path(message["path"]), self._identity, lambda: bool(self.interrupt.value))
        self._send({"event": "kept", "bytes": size})

    def _do_resume(self, message: Message) -> None:
        kv = self._model.generator.kv
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


def _leave_preloading_to_the_worker() -> None:
    """What this process starts must not look for the helper in a descriptor that it has not."""
    ours, _, others = os.environ.get("LD_PRELOAD", "").partition(":")
    if ours.startswith("/proc/self/fd/"):
        os.close(int(ours.rpartition("/")[2]))
        os.environ["LD_PRELOAD"] = others
        if not others:
            del os.environ["LD_PRELOAD"]


def main(modules: Sequence[str] = ()) -> None:
    """Keep the protocol's pipes for ourselves: anything else that prints goes to stderr.

    ``modules``: paths of backends to load.
    """
    _leave_preloading_to_the_worker()
    requests, events = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    with contextlib.suppress(OSError):  # let the kernel choose us, not the terminal, if RAM ends
        Path("/proc/self/oom_score_adj").write_text("500")

    writing = threading.Lock()

    def send(message: Message) -> None:
        data = protocol.encode(message)
        with writing:
            while data:
                data = data[os.write(events, data) :]

    questions = Questions(send)
    worker = Worker(send, questions, modules)
    inbox = Inbox(requests, worker.interrupt, worker.pause, questions)
    with contextlib.suppress(BrokenPipeError):
        while True:
            worker.handle(inbox.next())


if __name__ == "__main__":
    main(sys.argv[1:])
