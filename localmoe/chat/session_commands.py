"""The commands for conversations on disk: /save, /load, /sessions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from localmoe import storage
from localmoe.chat.builtin import files, turns_text
from localmoe.chat.commands import Command, Registry
from localmoe.chat.export import to_document, to_markdown
from localmoe.chat.state import Chat
from localmoe.chat.store import Entry
from localmoe.errors import StorageError, UsageError
from localmoe.text import clean, clean_line

OVER = "!"  # behind a file: it may be there, and is replaced
EXPORTS = {".md": to_markdown, ".json": to_document}


def add_session_commands(registry: Registry) -> None:
    registry.add(
        Command(
            "save", "[NAME|FILE.md|FILE.json [!]]", "name this chat, or export it", _save, files
        ),
        Command("load", "NAME", "go on with another conversation", _load, _sessions_named),
        Command("sessions", "[delete NAME]", "the conversations on this machine", _sessions, _del),
    )


def _save(chat: Chat, argument: str) -> str:
    if not argument:
        if chat.log is None:
            return "nothing is written; /save NAME writes it, /save FILE.md exports it"
        if not chat.log.begun:
            return f"it will be written as you talk, to {chat.log.path}"
        return f"written as you talk, to {chat.log.path}"
    name, over = argument.removesuffix(OVER).rstrip(), argument.endswith(OVER)
    path = Path(name).expanduser()
    if path.suffix.lower() not in EXPORTS:
        return chat.save_as(argument)
    if not chat.session.turns:
        raise UsageError("nothing was said yet")
    if path.exists() and not over:
        raise UsageError(f"{path} exists already", hint=f"/save {name} {OVER} replaces it")
    title = chat.name or "Conversation"
    try:
        private = storage.private_dir(path.parent) / path.name
        storage.atomic_write(private, EXPORTS[path.suffix.lower()](chat.session, title))
    except ValueError as error:
        raise StorageError(f"cannot write {argument}: {error}") from error
    return f"{turns_text(len(chat.session.turns))} exported to {path}"


def _load(chat: Chat, argument: str) -> str:
    if not argument:
        raise UsageError("/load takes the name of a conversation", hint="/sessions lists them")
    store = chat.store
    if store is None:
        raise UsageError("--no-history: no conversation is read or written")
    if argument == chat.name:
        return f"{argument} is this conversation"
    if not store.exists(argument):
        raise store.unknown(argument)
    chat.open_log(store.open(argument))
    return resumed(chat)


def resumed(chat: Chat) -> str:
    """Name, last question and last answer of a conversation that was opened, as a reminder."""
    turns = chat.session.turns
    if not turns:
        return f"{chat.name}: nothing was said yet"
    last = turns[-1]
    lines = [f"{chat.name} · {turns_text(len(turns))}" + (f" · {last.model}" if last.model else "")]
    lines.append(f"> {_first_line(last.question.content)}")
    lines.append(f"  {_first_line(last.answer.content)}")
    return "\n".join(lines)


def _first_line(text: str, cells: int = 72) -> str:
    line = clean_line(clean(text).strip().partition("\n")[0])
    return line if len(line) <= cells else line[: cells - 1] + "…"


def _sessions(chat: Chat, argument: str) -> str:
    store = chat.store
    if store is None:
        raise UsageError("--no-history: no conversation is read or written")
    verb, _, name = argument.partition(" ")
    if verb in ("delete", "rm") and name:
        if name == chat.name:
            raise UsageError("this conversation is open", hint="/clear begins another one first")
        store.delete(name)
        return f"{name} is deleted"
    if argument:
        raise UsageError("/sessions lists them, /sessions delete NAME deletes one")
    entries = store.entries()
    if not entries:
        return "no conversations yet"
    return "\n".join([*_listed(entries, chat.name), "/load NAME goes on with one"])


def _listed(entries: list[Entry], here: str) -> list[str]:
    """A line for each conversation: name, turns, model, the beginning of its first question."""
    rows = [(e.name, f"{turns_text(e.turns):>9}", clean_line(e.model)) for e in entries]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for entry, row in zip(entries, rows, strict=True):
        mark = "*" if entry.name == here else " "
        cells = [f"{text:<{width}}" for text, width in zip(row, widths, strict=True) if width]
        lines.append(f"{mark} {'  '.join([*cells, entry.title])}")
    return lines


def _sessions_named(chat: Chat, argument: str) -> Iterable[str]:
    return chat.store.names() if chat.store else ()


def _del(chat: Chat, argument: str) -> Iterable[str]:
    return [f"delete {name}" for name in _sessions_named(chat, "")]
