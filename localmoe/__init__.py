"""localmoe: the runtime for Mixture-of-Experts language models on ordinary machines.

``localmoe.load`` loads a model; see ``localmoe.api``. The names below are imported on first use, so
that ``import localmoe`` is fast; type checkers find them in ``__init__.pyi``.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "load": "localmoe.api",
    "result": "localmoe.api",
    "LoadedModel": "localmoe.api",
    "SamplingOptions": "localmoe.api",
    "Stream": "localmoe.api",
    "Conversation": "localmoe.chat.conversation",
    "ChatEvent": "localmoe.chat.events",
    "AnswerDelta": "localmoe.chat.events",
    "ReasoningDelta": "localmoe.chat.events",
    "TurnDone": "localmoe.chat.events",
    "ToolCallBegin": "localmoe.chat.events",
    "ToolCallDelta": "localmoe.chat.events",
    "ToolCallEnd": "localmoe.chat.events",
    "ToolCall": "localmoe.chat.session",
    "PrefillProgress": "localmoe.engine.events",
    "Attachment": "localmoe.chat.attachments",
    "read_attachment": "localmoe.chat.attachments",
    "ExpertsOn": "localmoe.planning.plan",
    "Wishes": "localmoe.planning.plan",
    "LocalmoeError": "localmoe.errors",
    "UsageError": "localmoe.errors",
    "UnknownModelError": "localmoe.errors",
    "DoesNotFitError": "localmoe.errors",
    "ModelFileError": "localmoe.errors",
    "TransferError": "localmoe.errors",
    "ContextOverflowError": "localmoe.errors",
    "TemplateError": "localmoe.errors",
    "NoAnswerError": "localmoe.errors",
    "EngineError": "localmoe.errors",
    "EngineBusyError": "localmoe.errors",
    "EngineCrashError": "localmoe.errors",
    "EngineMemoryError": "localmoe.errors",
    "StorageError": "localmoe.errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
