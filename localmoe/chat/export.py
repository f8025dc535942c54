"""A conversation as a document for people (Markdown) or for programs (JSON). Pure."""

from __future__ import annotations

import json
import re

from localmoe.chat.log_lines import to_json
from localmoe.chat.session import Session, Turn
from localmoe.schema import SCHEMA_VERSION


def to_markdown(session: Session, title: str) -> str:
    """Questions as quotes under headings of their own, answers as they are."""
    parts = [f"# {title}"]
    if session.model:
        parts.append(f"Model: {session.model.name}")
    if session.system:
        parts.append(f"## System prompt\n\n{_quoted(session.system)}")
    for number, turn in enumerate(session.turns, 1):
        parts.append(f"## {number}. Question")
        parts += [f"Attached: {file.name}\n\n{_fence(file.text)}" for file in turn.question.files]
        parts.append(_quoted(turn.question.content))
        parts.append(_answer_title(turn, session))
        if turn.answer.reasoning:
            parts.append(
                f"<details><summary>Reasoning</summary>\n\n{turn.answer.reasoning}\n\n</details>"
            )
        if turn.answer.content:
            parts.append(turn.answer.content.strip("\n"))
        if turn.answer.interrupted:
            parts.append("*(interrupted)*")
    return "\n\n".join(parts) + "\n"


def to_document(session: Session, title: str) -> str:
    """One JSON object: ``title``, ``model``, ``system``, ``turns`` with the fields of the log."""
    turns = [
        {name: value for name, value in to_json(turn).items() if name != "kind"}
        for turn in session.turns
    ]
    document = {
        "schema_version": SCHEMA_VERSION,
        "title": title,
        "model": session.model.name if session.model else None,
        "system": session.system,
        "turns": turns,
    }
    return json.dumps(document, indent=2) + "\n"


def _answer_title(turn: Turn, session: Session) -> str:
    usual = session.model.name if session.model else ""
    return f"### Answer of {turn.model}" if turn.model not in ("", usual) else "### Answer"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))


def _fence(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}\n{text.rstrip(chr(10))}\n{fence}"
