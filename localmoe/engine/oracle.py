"""Ask the engine what a model will cost before loading it.

The engine itself is the oracle: a worker builds model and context without data (``no_alloc``) and
reports bytes per device. It reads metadata only, so a header extended by a hole will do, and it is
a process of its own, because llama.cpp may abort on a file that no one has proven good.

llama.cpp's own count has an input too many where one device follows another; the native helper
mends that (``native/dry_run.cpp``).

The dry run counts as if every tensor were read into a buffer (``load_mode`` "none"). With a mapping
one thing can differ: a model without an output matrix uses its embedding for that, and where the
dry run counts a copy, the mapping has the same bytes of the file twice.
"""

from __future__ import annotations

import dataclasses
from types import TracebackType

from localmoe.engine import protocol, rpc
from localmoe.engine.process import WorkerProcess
from localmoe.facts.model import LongArray, Model
from localmoe.planning.memory import CPU, EngineSettings, MemoryReport


class Oracle:
    """A ``planning.memory.Measure`` for one model. The same question is asked only once.

    Starting a worker takes longer than most questions. So a caller who asks about several models
    passes one ``worker`` to all their oracles, and closes it; without one, each has its own.
    """

    def __init__(self, model: Model, worker: WorkerProcess | None = None) -> None:
        self._paths = [str(path) for path in model.paths]
        self._model = model
        self._worker = worker or WorkerProcess()
        self._ours = worker is None
        self._answers: dict[EngineSettings, MemoryReport] = {}

    def __enter__(self) -> Oracle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ours:
            self._worker.close()

    def __call__(self, settings: EngineSettings) -> MemoryReport:
        """Bytes per device. Raises ModelFileError, EngineError or EngineCrashError."""
        known = self._answers.get(settings)
        if known is None:
            answer = self._worker.ask(
                "measure",
                **rpc.limits(settings.remotes, rpc.ANSWER_LIMIT),
                paths=self._paths,
                settings=dataclasses.asdict(settings),
                architecture=self._model.architecture,
                # The first question reads the vocabulary too, so that a tokenizer that the engine
                # does not know is an error now and not at the load.
                vocabulary=_tokens(self._model) if self._answers else 0,
            )
            known = protocol.report_from_json(answer["memory"])
            if settings.load_mode == "mmap":
                known = _without_copy(known, self._model)
            self._answers[settings] = known
        return known


def _tokens(model: Model) -> int:
    """Tokens in the model's vocabulary; 0 if its header does not say."""
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, tuple | LongArray) else 0


def _without_copy(report: MemoryReport, model: Model) -> MemoryReport:
    """The report less the host's copy of a tied embedding, if the dry run counted such a copy.

    It did when it reports more bytes of weights than the tensors have together.
    """
    sizes = {tensor.name: tensor.nbytes for tensor in model.tensors if tensor.loaded}
    tied = 0 if "output.weight" in sizes else sizes.get("token_embd.weight", 0)
    on_host = all(entry.device == CPU for entry in report.devices)
    if not tied or not on_host or report.weights < sum(sizes.values()) + tied:
        return report
    (host,) = report.devices
    host = dataclasses.replace(host, weights=host.weights - tied)
    return dataclasses.replace(report, devices=(host,))
