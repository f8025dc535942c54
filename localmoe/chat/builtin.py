"""The commands of every chat that need no terminal, no files and no other model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from localmoe.chat import settings as settings_module
from localmoe.chat.attachments import Attachment, read_attachment, with_files
from localmoe.chat.columns import flowed, two_columns
from localmoe.chat.commands import KEYS, Again, Command, ExitChat, Registry, Result
from localmoe.chat.context import Meter, answer_room, bar, larger_context
from localmoe.chat.session import Message
from localmoe.chat.settings import LEVELS, SETTINGS
from localmoe.chat.state import Chat
from localmoe.errors import UsageError
from localmoe.text import clean_line, counted, format_duration, replaced_note, token_count

CONTEXT = "ctx"  # /set ctx loads the model again; the other settings hold from the next turn on
CONTEXT_WANTED = "a number of tokens, 16k for 16,384: loads the model again"
SHOW_FOLD = ("show", "fold")


def add_builtin(registry: Registry) -> None:
    """Help, settings, figures and the end."""

    def help_(chat: Chat, argument: str) -> str:
        width = chat.columns()
        text = registry.help(argument, width)
        return text if argument else f"{text}\n\n{flowed(KEYS, width)}"

    def names(chat: Chat, argument: str) -> Iterable[str]:
        return registry.commands

    registry.add(
        Command("help", "[COMMAND]", "this list", help_, names, aliases=("?", "h", "")),
        Command("regen", "", "ask your last message again", _regen, aliases=("retry", "r")),
        Command("undo", "[N]", "take back the last turn, or the last N", _undo),
        Command("read", "[FILE]", "attach a text file to your next message", _read, files),
        Command("set", "[NAME VALUE]", "show or change settings", _set, _complete_set),
        Command("system", "[TEXT]", "show or change the system prompt (-: none)", _system),
        Command("think", "[LEVEL]", "how much the model reasons", _think, _levels),
        Command("reasoning", "[show|fold]", "show its reasoning, or fold it", _reasoning, _folds),
        Command("stats", "", "speed and tokens of the last turn", _stats),
        Command("context", "", "what fills the context", _context, aliases=("ctx",)),
        Command("clear", "", "begin anew, keep the system prompt", _clear, aliases=("new",)),
        Command("exit", "", "leave (Ctrl-D does too)", _exit, aliases=("quit", "bye", "q")),
    )


def _regen(chat: Chat, argument: str) -> Result:
    if not chat.session.turns:
        raise UsageError("nothing was asked yet")
    return Again()


def _undo(chat: Chat, argument: str) -> str:
    if argument and (not argument.isdecimal() or not 0 < int(argument) < 10_000):
        raise UsageError(f'/undo takes a number of turns, not "{argument}"')
    wanted, left = int(argument or 1), len(chat.session.turns)
    if not left:
        raise UsageError("there is nothing to take back")
    chat.last = None
    taken = [chat.session.undo() for _ in range(min(wanted, left))]
    last = taken[-1]
    assert last is not None
    first = clean_line(last.question.content)
    shown = first if len(first) <= 40 else first[:39] + "…"
    turns = turns_text(len(taken))
    return f"taken back: {turns}, from “{shown}” on; {turns_text(left - len(taken))} left"


def turns_text(count: int) -> str:
    """``1 turn``, ``2 turns``."""
    return counted(count, "turn")


def _read(chat: Chat, argument: str) -> str:
    if argument == "-":
        dropped = len(chat.files)
        chat.files.clear()
        return "nothing is attached" if not dropped else "taken off again"
    if argument:
        chat.files.append(read_attachment(_unquoted(argument)))
    if not chat.files:
        raise UsageError("nothing is attached", hint="/read FILE attaches a text file")
    engine = chat.ready().engine
    return attached(chat.files, engine.count_tokens, chat.context, chat.trained)


def attached(
    files: Sequence[Attachment], count: Callable[[str], int], context: int, trained: int
) -> str:
    """What goes with the next message, and how much of the context that takes."""
    sizes = [count(with_files("", [file])) for file in files]
    lines = [
        f"{file.name} · {counted(tokens, 'token')} of the context's {context:,}"
        for file, tokens in zip(files, sizes, strict=True)
    ]
    lines += [replaced_note(file.name, file.replaced) for file in files if file.replaced]
    lines.append("goes with your next message (/read - takes it off)")
    if sum(sizes) >= context:
        lines.append(f"too much for the context: take it off{larger_context(context, trained)}")
    return "\n".join(lines)


def _unquoted(path: str) -> str:
    """Without the quotes that a shell would take away, unless a file is named like that."""
    quoted = len(path) > 2 and path[0] == path[-1] and path[0] in "'\""
    return path[1:-1] if quoted and not Path(path).exists() else path


def files(chat: Chat, argument: str) -> Iterable[str]:
    """File names below what is typed so far."""
    folder, slash, start = argument.rpartition("/")
    where = Path(f"{folder}{slash}" or ".").expanduser()
    try:
        found = sorted(where.iterdir())
    except (OSError, RuntimeError, ValueError):
        return ()
    hidden = start.startswith(".")
    return (
        f"{folder}{slash}{entry.name}" + ("/" if entry.is_dir() else "")
        for entry in found
        if entry.name.isprintable() and (hidden or not entry.name.startswith("."))
    )


def _set(chat: Chat, argument: str) -> str:
    if not argument:
        width = max(map(len, SETTINGS))
        rows = [
            (f"{name:<{width}}  {settings_module.show(chat.settings, name):<8}", setting.wanted)
            for name, setting in SETTINGS.items()
        ]
        if chat.resize is not None:
            rows.insert(0, (f"{CONTEXT:<{width}}  {chat.context:<8}", CONTEXT_WANTED))
        return two_columns(rows, chat.columns())
    name, _, value = argument.replace("=", " ", 1).partition(" ")
    if name == CONTEXT and chat.resize is not None:
        return _resized(chat, value.strip(), chat.resize)
    if not value.strip():
        setting = settings_module.find(name)
        return f"{name} {settings_module.show(chat.settings, name)} ({setting.wanted})"
    chat.set(name, value.strip())
    return _now(chat, name)


def _resized(chat: Chat, value: str, resize: Callable[[int], str]) -> str:
    if not value:
        return f"{CONTEXT} {chat.context} ({CONTEXT_WANTED})"
    try:
        tokens = token_count(value)
    except ValueError:
        raise UsageError(f'{CONTEXT} is {CONTEXT_WANTED}, not "{value}"') from None
    if tokens == chat.context:
        return f"{CONTEXT} {tokens} already"
    how = resize(tokens)
    return f"{CONTEXT} {chat.context}" + (f"; {how}" if how else "")


def _now(chat: Chat, name: str) -> str:
    shown = f"{name} {settings_module.show(chat.settings, name)}"
    note = chat.ready().think_note() if name == "think" else None
    return f"{shown} ({note})" if note else shown


def _complete_set(chat: Chat, argument: str) -> Iterable[str]:
    name, space, _ = argument.partition(" ")
    if not space:
        return (CONTEXT, *SETTINGS) if chat.resize is not None else SETTINGS
    return [f"{name} {value}" for value in SETTINGS[name].choices] if name in SETTINGS else ()


def _system(chat: Chat, argument: str) -> str:
    session = chat.session
    if not argument:
        return session.system or "no system prompt; /system TEXT sets one, /system - removes it"
    session.system = "" if argument == "-" else argument
    if not session.system:
        return "no system prompt from now on"
    return "system prompt changed; the conversation so far stays"


def _think(chat: Chat, argument: str) -> str:
    if not argument:
        choices = ", ".join(LEVELS)
        return f"{_now(chat, 'think')}; there are {choices}"
    chat.set("think", argument)
    return _now(chat, "think")


def _levels(chat: Chat, argument: str) -> Iterable[str]:
    return LEVELS


def _reasoning(chat: Chat, argument: str) -> str:
    if argument and argument not in SHOW_FOLD:
        raise UsageError(f'/reasoning is show or fold, not "{argument}"')
    if argument:
        chat.show_reasoning = argument == "show"
        return "reasoning is shown" if chat.show_reasoning else "reasoning is folded to a counter"
    turns = chat.session.turns
    if turns and turns[-1].answer.reasoning:
        return turns[-1].answer.reasoning
    state = "shown" if chat.show_reasoning else "folded"
    return f"reasoning is {state}; the last answer came without any"


def _folds(chat: Chat, argument: str) -> Iterable[str]:
    return SHOW_FOLD


def _stats(chat: Chat, argument: str) -> str:
    lines = [chat.about] if chat.about else []
    turns = len(chat.session.turns)
    done = chat.last
    if done is None:
        lines.append(
            f"turns    {turns}; nothing asked since they were opened"
            if turns
            else "nothing asked yet"
        )
        return "\n".join(lines)
    usage, timings = done.usage, done.timings
    lines.append(
        f"answer   {counted(usage.completion_tokens, 'token')}{_speed(timings.decode_tps)}"
    )
    lines.append(
        f"prompt   {counted(usage.prompt_tokens, 'token')}{_speed(timings.prefill_tps)}"
        f" ({usage.reused_tokens:,} kept from the turn before)"
    )
    lines.append(f"first    token after {format_duration(timings.ttft_s)}")
    lines.append(f"context  {chat.meter}")
    lines.append(f"turns    {turns}")
    if chat.name:
        lines.append(f"session  {chat.name}")
    return "\n".join(lines)


def _speed(tps: float | None) -> str:
    return f" at {tps:.1f} tok/s" if tps is not None else ""


def _context(chat: Chat, argument: str) -> str:
    conversation = chat.ready()
    session, context = chat.session, chat.context
    turns = len(session.turns)
    question = Message("user", "", files=tuple(chat.files)) if chat.files else None
    empty = conversation.prompt_tokens(Message("user", ""), skip=turns)
    talk = conversation.prompt_tokens(Message("user", "")) - empty
    waiting = conversation.prompt_tokens(question, skip=turns) - empty if question else 0
    used = empty + talk + waiting
    room = answer_room(context, chat.settings.max_tokens)
    sent = turns_text(turns - session.skipped) + (f" of {turns}" if session.skipped else "")
    system = "system prompt and summary" if session.summary else "system prompt and template"
    rows = [(system, empty), (sent, talk)]
    rows += [(f"attached: {', '.join(f.name for f in chat.files)}", waiting)] if waiting else []
    rows.append(("free", max(0, context - used)))
    lines = [f"{used:,} of {context:,} tokens ({100 * used / max(context, 1):.0f} %)"]
    lines.append(bar(Meter(used, context), 36))
    lines += [f"{count:>9,}  {what}" for what, count in rows]
    lines.append(
        f"when the next turn does not fit ({room:,} are set aside for an answer): "
        f"{chat.settings.overflow} (/set overflow)"
    )
    return "\n".join(lines)


def _clear(chat: Chat, argument: str) -> str:
    return chat.start_over()


def _exit(chat: Chat, argument: str) -> Result:
    raise ExitChat
