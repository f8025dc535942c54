"""The commands of a chat that need its terminal, its model, or another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from localmoe.app.expert_use import experts_text
from localmoe.chat.builtin import files
from localmoe.chat.commands import Ask, Command, Registry, Result
from localmoe.chat.state import Chat
from localmoe.cli.chat.model import ChatModel
from localmoe.cli.output import Output
from localmoe.errors import UsageError
from localmoe.terminal import tty
from localmoe.terminal.markdown import code_blocks
from localmoe.text import clean


def add_terminal_commands(
    registry: Registry, output: Output, current: ChatModel, *, models: Callable[[], Iterable[str]]
) -> None:
    """``models`` lists names for completion."""

    def copy(chat: Chat, argument: str) -> Result:
        text = clean(_to_copy(chat, argument))
        how = tty.copy(text, output.stdout.file)
        return f"copied {len(text):,} characters, {how}"

    def model(chat: Chat, argument: str) -> Result:
        if argument:
            return current.switch(argument)
        found = "\n".join(f"  {name}" for name in models())
        return f"{chat.about}\n\nothers, for /model NAME:\n{found}" if found else chat.about

    def names(chat: Chat, argument: str) -> Iterable[str]:
        return files(chat, argument) if argument.startswith(("/", ".", "~")) else models()

    def experts(chat: Chat, argument: str) -> Result:
        return experts_text(current.loaded().plan, chat.last.finished if chat.last else None)

    registry.add(
        Command(
            "edit",
            "[new]",
            "change your last message in $EDITOR and ask again; new: write one",
            _edit,
            lambda chat, argument: ("new",),
        ),
        Command(
            "copy",
            "[code|all]",
            "the last answer, or its code, or all, into the clipboard",
            copy,
            lambda chat, argument: ("code", "all"),
        ),
        Command("model", "[NAME]", "go on with another model", model, names),
        Command("experts", "", "where the experts live, and came from", experts),
    )


def _edit(chat: Chat, argument: str) -> Result:
    if argument not in ("", "new"):
        raise UsageError(f'/edit or /edit new, not "{argument}"')
    last = chat.session.turns[-1] if chat.session.turns and not argument else None
    before = last.question.content if last else ""
    text = tty.edit(before)
    if not text.strip() or (last and text == before):
        return "not sent: the text is " + ("unchanged" if text.strip() else "empty")
    return Ask(text, replace=last is not None)


def _to_copy(chat: Chat, argument: str) -> str:
    turns = chat.session.turns
    if not turns:
        raise UsageError("there is no answer yet")
    answer = turns[-1].answer.content.strip("\n")
    if argument == "all":
        return "\n\n".join(
            f"> {turn.question.content}\n\n{turn.answer.content.strip(chr(10))}" for turn in turns
        )
    if argument == "code":
        blocks = code_blocks(answer)
        if not blocks:
            raise UsageError("the last answer has no code block")
        return "\n\n".join(blocks)
    if argument:
        raise UsageError(f'/copy, /copy code or /copy all, not "{argument}"')
    if not answer:
        raise UsageError("the last answer is empty")
    return answer
