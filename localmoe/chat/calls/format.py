"""How a model writes calls of tools: the marks around them, as records. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from localmoe.chat import generic_tools

ANY = "\0"  # in a mark: a word that differs from call to call, such as its number
KEY = "\1"  # in ``value_end``: the key once more
NAME = "\2"  # in ``name_end``: the name once more


class Body(StrEnum):
    """How name and arguments stand in a call."""

    OBJECT = "object"  # {"name": NAME, "arguments": {…}}
    KEYED = "keyed"  # {NAME: {…}}
    NAMED = "named"  # NAME, a mark, {…}
    TAGGED = "tagged"  # NAME, then key and value of each argument between marks
    PYTHON = "python"  # NAME(key="value", …)
    GEMMA = "gemma"  # NAME{key:value}, strings between tokens of their own
    CHANNEL = "channel"  # the name in the header of a message, {…} is the message (gpt-oss)


@dataclass(frozen=True, slots=True)
class CallFormat:
    """The marks around calls, as the template writes them. Blank space in them may vary.

    ``start`` and ``end`` stand around all calls of an answer, ``call_start`` and ``call_end``
    around each, ``between`` two of them.
    """

    body: Body
    start: str = ""
    end: str = ""
    call_start: str = ""
    call_end: str = ""
    between: str = ""
    name_end: str = ""  # between name and arguments (NAMED, TAGGED)
    name_key: str = "name"  # of an OBJECT
    arguments_key: str = "arguments"
    in_list: bool = False  # the objects stand in one JSON list
    key_start: str = ""  # TAGGED: key_start KEY key_end VALUE value_end
    key_end: str = ""
    value_end: str = ""
    text_word: str = ""  # what stands for ANY in ``key_end`` where the value is text
    other_word: str = ""  # and where it is a number
    item_key: str = ""  # TAGGED: objects and lists are tags within tags, an item's is this one
    lead: str = ""  # with which an answer begins, as the prompt has written it: of the first call
    bare: bool = False  # calls may come without these marks, at the beginning of an answer
    several: bool = True  # an answer may have more than one call
    derived: bool = False  # from the template; else it is from the list

    @property
    def is_generic(self) -> bool:
        """Whether the model has to be told of the form."""
        return self == GENERIC

    @property
    def is_unmarked(self) -> bool:
        """Whether a call is known by its name alone."""
        return self.body is not Body.CHANNEL and not (self.start + self.call_start).strip()

    @property
    def marks(self) -> tuple[str, ...]:
        """All marks, in which special tokens may be."""
        around = (self.start, self.end, self.call_start, self.call_end, self.between, self.lead)
        name_end = self.name_end.replace(NAME, ANY)
        return (
            *around,
            name_end,
            self.key_start,
            self.key_end,
            self.value_end,
            *_MARKS.get(self.body, ()),
        )


QUOTE = '<|"|>'  # around strings in a GEMMA call
TO, MESSAGE, CALL, CONSTRAIN, CHANNEL, NEXT = (
    " to=functions.", "<|message|>", "<|call|>", "<|constrain|>", "<|channel|>", "<|start|>",
)  # fmt: skip
_MARKS = {Body.GEMMA: (QUOTE,), Body.CHANNEL: (MESSAGE, CALL, CONSTRAIN, CHANNEL, NEXT)}

GENERIC = CallFormat(
    Body.OBJECT,
    call_start=f"{generic_tools.CALL_START}\n",
    call_end=f"\n{generic_tools.CALL_END}",
    between="\n",
)
"""What models are told to write whose template knows no tools."""

_PYTHON_LIST = CallFormat(
    Body.PYTHON, start="<|tool_call_start|>[", end="]<|tool_call_end|>", between=", "
)
LISTED: tuple[tuple[tuple[str, ...], CallFormat], ...] = (
    (("<|channel|>", "commentary", "to="), CallFormat(Body.CHANNEL, several=False)),
    (("<|tool_call_start|>",), _PYTHON_LIST),  # LFM2
    (("<|tool_list_start|>",), _PYTHON_LIST),
    (("List of tools: [", "<|im_start|>"), _PYTHON_LIST),
    (("<|tool_call|>",), CallFormat(Body.OBJECT, start="<|tool_call|>", in_list=True)),  # Granite 3
    (("[TOOL_CALLS]",), CallFormat(Body.OBJECT, start="[TOOL_CALLS]", in_list=True)),  # Mistral
    (
        ("<|python_start|>",),  # Llama 4
        CallFormat(
            Body.PYTHON,
            start="<|python_start|>[",
            end="]<|python_end|>",
            between=", ",
            bare=True,
        ),
    ),
)
"""Words that a template must all have in it, and the format of its family; the first one counts."""


def listed(source: str) -> CallFormat | None:
    """The format of the family that a template belongs to by its words."""
    return next((f for words, f in LISTED if all(word in source for word in words)), None)
