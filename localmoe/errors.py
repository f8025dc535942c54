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

A message says what happened and why; the hint says what to type next.
"""

from __future__ import annotations

from typing import ClassVar

INTERRUPTED = 130  # exit code after Ctrl-C, as of shells: 128 + SIGINT


class LocalmoeError(Exception):
    """Base of all errors. A user is shown the message and the hint, never a traceback."""

    code: ClassVar[str] = "failure"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def to_json(self) -> dict[str, object]:
        """The ``{"error": …}`` document of the command line contract."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


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
