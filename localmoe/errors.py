"""Every error that a user can meet, with its code in JSON and its exit code.

LocalmoeError                 code            exit
├── UsageError                usage           2     wrong option, unknown command
│   └── UnknownModelError     unknown_model   2     no model of that name
├── DoesNotFitError           does_not_fit    3     too large for the memory or the disk
├── ModelFileError            bad_model       4     not GGUF, truncated, a missing part …
├── TransferError             transfer        5     the Hub, a download, or its checksum
├── ContextOverflowError      context_full    1     prompt longer than the context
├── TemplateError             template        1     the chat template cannot be used
├── NoAnswerError             no_answer       1     the model thought, and did not answer
├── EngineError               engine          1     the engine failed
│   ├── EngineMemoryError     engine_memory   1     planned memory could not be allocated
│   ├── EngineBusyError       busy            1     another request is under way
│   ├── EngineCrashError      engine_crash    1     the worker process died
│   └── InterruptedLoadError  interrupted     130   loading was cancelled by its caller
├── TraceFileError            bad_trace       1     not a routing trace, damaged, too large
└── StorageError              storage         1     a file of localmoe's cannot be read or written

A message says what happened and why; the hint says what to type next. Both are written once, with
``wording.option`` for the settings that they name, and read in the words of the Python API or, with
``typed``, in those of the command line.
"""

from __future__ import annotations

from typing import ClassVar

from localmoe.wording import in_python, typed

INTERRUPTED = 130  # exit code after Ctrl-C, as of shells: 128 + SIGINT

LIFT = "free some memory; `ulimit -v unlimited` lifts a limit of the shell"
"""The hint where the system refuses memory, a thread or address space."""
REFUSED = ("can't start new thread", "failed to map segment")
"""Python's and the linker's words for a thread or a library that there is no address space for."""


class LocalmoeError(Exception):
    """Base of all errors. A user is shown the message and the hint, never a traceback."""

    code: ClassVar[str] = "failure"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Settings in ``message`` and ``hint`` are named with ``wording.option``."""
        super().__init__(message, hint)

    def __str__(self) -> str:
        return self.message

    @property
    def marked(self) -> tuple[str, str | None]:
        """Message and hint as they were written, for an error that passes them on."""
        message, hint = self.args
        return message, hint

    @property
    def message(self) -> str:
        """What happened and why, in the words of the Python API."""
        return in_python(self.marked[0])

    @property
    def hint(self) -> str | None:
        """What to do next, in the words of the Python API."""
        hint = self.marked[1]
        return None if hint is None else in_python(hint)

    def typed(self) -> tuple[str, str | None]:
        """Message and hint in the words of the command line."""
        message, hint = self.marked
        return typed(message), None if hint is None else typed(hint)

    def to_json(self) -> dict[str, object]:
        """The ``{"error": …}`` document of the command line contract."""
        message, hint = self.typed()
        return {"error": {"code": self.code, "message": message, "hint": hint}}


class UsageError(LocalmoeError):
    code = "usage"
    exit_code = 2


class UnknownModelError(UsageError):
    code = "unknown_model"


class DoesNotFitError(LocalmoeError):
    code = "does_not_fit"
    exit_code = 3


class ModelFileError(LocalmoeError):
    code = "bad_model"
    exit_code = 4


class TransferError(LocalmoeError):
    code = "transfer"
    exit_code = 5


class ContextOverflowError(LocalmoeError):
    code = "context_full"


class TemplateError(LocalmoeError):
    code = "template"


class NoAnswerError(LocalmoeError):
    code = "no_answer"


class EngineError(LocalmoeError):
    code = "engine"


class EngineMemoryError(EngineError):
    code = "engine_memory"


class EngineBusyError(EngineError):
    code = "busy"


class EngineCrashError(EngineError):
    code = "engine_crash"


class InterruptedLoadError(EngineError):
    code = "interrupted"
    exit_code = INTERRUPTED


class StorageError(LocalmoeError):
    code = "storage"


class TraceFileError(LocalmoeError):
    code = "bad_trace"
