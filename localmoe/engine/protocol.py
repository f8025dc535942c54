"""The worker's protocol: one JSON object per line, requests on its stdin, events on its stdout.

Requests (``op``):

======== =============================================== =======================================
op       fields                                          events, the last one ends the request
======== =============================================== =======================================
info     remotes                                         info
measure  paths, settings, architecture, vocabulary       measured
load     paths, settings, hot                            progress*, loaded
generate request                                         prefill*, token*, finished
count    text, data, whole (a prompt with its beginning) counted
tokenize text, special (those that it spells are         tokenized (their numbers)
         recognised), whole
spell    tokens                                          spelled (their bytes, as Latin-1)
split    texts                                           parts: each text cut at its special
                                                         tokens, as fields of ``Part``
keep     path                                            kept (bytes written to ``path``)
resume   path                                            resumed (tokens read back from it)
rates    threads (0: none), devices, remotes             rates (processor, devices)
cancel   –                                               none of its own: the load it names ends
                                                         with an error of kind ``interrupted``,
                                                         the generate with ``finished``
pause    –                                               none of its own: the generate it names
                                                         ends before the next batch of its prompt
======== =============================================== =======================================

Every request carries an ``id``, a number that grows; ``cancel`` and ``pause`` carry that of their
target, and every event that of the request it belongs to.

Any request can end with ``{"event": "error", "kind", "message", "hint"}``; ``kind`` is the ``code``
of an error in ``localmoe.errors``, or ``interrupted``. Requests are answered in order; those that
ask about the vocabulary (``CONSULTING``) have an order of their own and wait for no computation;
``cancel`` and ``pause`` overtake. End of input ends the worker. ``paths`` are all parts of the
model in order; ``vocabulary`` is the number of tokens, or 0 to read their texts
(``loader.DryRun``). ``hot`` is the file in which the experts in use are noted for the next start,
or "".
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from localmoe.engine.events import (
    CacheStats,
    Event,
    Finished,
    LayerLoad,
    LayerStats,
    Likely,
    Loaded,
    LoadProgress,
    PrefillProgress,
    Request,
    Sampling,
    Token,
)
from localmoe.errors import (
    ContextOverflowError,
    EngineError,
    EngineMemoryError,
    InterruptedLoadError,
    LocalmoeError,
    ModelFileError,
    StorageError,
)
from localmoe.planning.memory import DeviceMemory, EngineSettings, MemoryReport

Message = dict[str, Any]

_EVENTS: dict[str, type[Any]] = {
    "progress": LoadProgress,
    "loaded": Loaded,
    "prefill": PrefillProgress,
    "finished": Finished,
}
CONSULTING = frozenset({"count", "tokenize", "spell", "split"})
"""What is answered beside a computation: questions about the vocabulary of the loaded model."""

LAST_EVENTS = frozenset(
    {
        *("info", "measured", "loaded", "finished", "kept", "resumed", "rates"),
        *("counted", "tokenized", "spelled", "parts", "error"),
    }
)
"""Each ends its request."""

_NAMES = {cls: name for name, cls in _EVENTS.items()}
_ERRORS: dict[str, type[LocalmoeError]] = {
    cls.code: cls
    for cls in (
        ContextOverflowError,
        ModelFileError,
        InterruptedLoadError,
        EngineMemoryError,
        EngineError,
        StorageError,
    )
}


# Made once: ``json.dumps`` with separators, and ``json.loads`` of bytes, begin anew for each token.
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().decode


def encode(message: Message) -> bytes:
    return _to_json(message).encode() + b"\n"


def decode(line: bytes) -> Message:
    message = _from_json(line.decode())
    if not isinstance(message, dict):
        raise ValueError("a message is a JSON object")
    return message


def event_to_message(event: Event) -> Message:
    if isinstance(event, Token):  # once per token: keep it short
        message: Message = {
            "event": "token",
            "token": event.token,
            "text": event.text,
            "tokens": event.tokens,
        }
        if event.special:
            message |= {"special": True, "control": event.control}
        if event.logprob is not None:
            top = [dataclasses.astuple(likely) for likely in event.top]
            message |= {"logprob": event.logprob, "top": top}
        return message
    return {"event": _NAMES[type(event)], **dataclasses.asdict(event)}


def message_to_event(message: Message) -> Event:
    if message["event"] == "token":
        return _message_to_token(message)
    fields = {key: value for key, value in message.items() if key not in ("event", "id")}
    if message["event"] == "loaded":
        fields["memory"] = report_from_json(fields["memory"])
    if message["event"] == "finished" and fields.get("cache"):
        layers = tuple(LayerStats(**layer) for layer in fields["cache"]["layers"])
        fields["cache"] = CacheStats(**{**fields["cache"], "layers": layers})
    if message["event"] == "finished":
        fields["load"] = tuple(LayerLoad(**layer) for layer in fields.get("load", ()))
    event: Event = _EVENTS[message["event"]](**fields)
    return event


def _message_to_token(message: Message) -> Token:
    token = Token(
        message["token"],
        message["text"],
        message["tokens"],
        message.get("special", False),
        message.get("control", False),
        message.get("logprob"),
    )
    top = message.get("top")
    return token._replace(top=tuple(Likely(*likely) for likely in top)) if top else token


def error_to_message(error: LocalmoeError) -> Message:
    message, hint = error.marked
    return {"event": "error", "kind": error.code, "message": message, "hint": hint}


def message_to_error(message: Message) -> LocalmoeError:
    cls = _ERRORS.get(message["kind"], EngineError)
    return cls(message["message"], hint=message.get("hint"))


def settings_from_json(data: Message) -> EngineSettings:
    return EngineSettings(
        **{
            **data,
            "devices": tuple(data["devices"]),
            "tensor_split": tuple(data["tensor_split"]),
            "overrides": tuple((pattern, device) for pattern, device in data["overrides"]),
            "cache_shares": tuple((layer, share) for layer, share in data["cache_shares"]),
            "remotes": tuple(data["remotes"]),
        }
    )


def request_from_json(data: Message) -> Request:
    spans = tuple((start, end) for start, end in data["data"])
    biases = tuple((token, bias) for token, bias in data["sampling"]["logit_bias"])
    sampling = Sampling(**{**data["sampling"], "logit_bias": biases})
    written = tuple((start, end, tuple(tokens)) for start, end, tokens in data["written"])
    thinking = tuple(data["thinking"]) if data["thinking"] else None
    parts = {"data": spans, "written": written, "thinking": thinking}
    return Request(**{**data, "sampling": sampling, **parts})


def report_from_json(data: Message) -> MemoryReport:
    return MemoryReport(
        tuple(DeviceMemory(**entry) for entry in data["devices"]), exact=data["exact"]
    )
