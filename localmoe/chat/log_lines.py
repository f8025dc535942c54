"""Changes of a conversation as lines of its log, and back.

Each line ends with a checksum of itself; lines of earlier versions have none and are taken as they
are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from localmoe import kept
from localmoe.chat.attachments import Attachment
from localmoe.chat.session import (
    Change,
    Cleared,
    Message,
    ModelUsed,
    Shortened,
    SystemText,
    Turn,
    Undone,
)

_SUM = re.compile(rb',"sum":"([0-9a-f]{8})"}$')
_KINDS: Mapping[str, type[Any]] = {
    "turn": Turn,
    "undo": Undone,
    "clear": Cleared,
    "system": SystemText,
    "shorten": Shortened,
    "model": ModelUsed,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
# fmt: off
_MEMBERS = {  # of a line; one that has another is not a line of ours
    "kind", "question", "files", "answer", "reasoning", "interrupted", "model", "at",
    "prompt_tokens", "completion_tokens", "text", "turns", "summary", "name", "source",
}
# fmt: on


def encode(change: Change) -> bytes:
    """One line of a log: a JSON object whose last member is the checksum of what is before it."""
    line = json.dumps(to_json(change), separators=(",", ":")).encode()
    return line[:-1] + b',"sum":"' + _checksum(line) + b'"}'


def decode(line: bytes) -> Change:
    """The inverse of ``encode``. Raises one of ``kept.DAMAGED`` for what it did not write."""
    if found := _SUM.search(line):
        line = line[: found.start()] + b"}"
        if found[1] != _checksum(line):
            raise ValueError("not the line that was written")
    return from_json(kept.parse(line))


def _checksum(line: bytes) -> bytes:
    import hashlib  # late: it loads OpenSSL, for which no first word has to wait

    return hashlib.sha256(line).hexdigest()[:8].encode()


def to_json(change: Change) -> dict[str, Any]:
    """One line of a log, without its checksum."""
    if not isinstance(change, Turn):
        return {"kind": _NAMES[type(change)], **asdict(change)}
    files = [{"name": file.name, "text": file.text} for file in change.question.files]
    return {
        "kind": "turn",
        "question": change.question.content,
        **({"files": files} if files else {}),
        "answer": change.answer.content,
        **({"reasoning": change.answer.reasoning} if change.answer.reasoning else {}),
        **({"interrupted": True} if change.answer.interrupted else {}),
        "model": change.model,
        "at": change.at,
        "prompt_tokens": change.prompt_tokens,
        "completion_tokens": change.completion_tokens,
    }


def from_json(line: Mapping[str, Any]) -> Change:
    """Raises one of ``kept.DAMAGED`` for what ``to_json`` did not write."""
    kind = _KINDS[line["kind"]]
    if unknown := line.keys() - _MEMBERS:
        raise ValueError(f"unknown members: {unknown}")
    if kind is not Turn:
        fields = {name: value for name, value in line.items() if name != "kind"}
        for name, value in fields.items():
            kept.whole(value) if name == "turns" else kept.text(value)
        change: Change = kind(**fields)
        return change
    files = tuple(Attachment(_text(f, "name"), _text(f, "text")) for f in line.get("files", ()))
    answer = Message(
        "assistant",
        _text(line, "answer"),
        _text(line, "reasoning", ""),
        line.get("interrupted") is True,
    )
    return Turn(
        Message("user", _text(line, "question"), files=files),
        answer,
        _text(line, "model", ""),
        _text(line, "at", ""),
        kept.whole(line.get("prompt_tokens", 0)),
        kept.whole(line.get("completion_tokens", 0)),
    )


def _text(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    return kept.text(fields[name] if default is None else fields.get(name, default))
