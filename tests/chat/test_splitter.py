"""Thinking apart from answers, by tokens, whatever the pieces."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe.chat.answer_format import KNOWN, AnswerFormat, Marks
from localmoe.chat.splitter import Answer, Piece, Reasoning, Splitter
from tests.chat.scripted import split_at

Tokens = Sequence[str]

THINK = AnswerFormat((Marks("<think>", "</think>"),), told=True)
OPEN = AnswerFormat((Marks("<think>", "</think>"),), is_open=True, told=True)
LIST = AnswerFormat(KNOWN)
CHANNELS = AnswerFormat(
    (Marks("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),),
    answer_start="<|channel|>final<|message|>",
    answer_end="<|return|>",
    told=True,
)
CHANNEL_TOKENS = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>")
RECIPIENTS = AnswerFormat(
    (Marks("to=self<|message|>", "<|eom|><|start|>assistant"),),
    answer_start="to=user<|message|>",
    answer_end="<|eot|>",
    told=True,
)
WRAPPED = AnswerFormat(
    (Marks("", "<|close|>think<|sep|><|open|>answer<|sep|>"),),
    is_open=True,
    answer_end="<|close|>answer<|sep|><|close|>message<|sep|>",
    told=True,
)
RESPONSE = AnswerFormat(
    (Marks("<think>", "</think>"),),
    answer_start="<response>",
    answer_end="</response>",
    answer_marks_optional=True,
)


def pieces_of(
    tokens: Tokens, format_: AnswerFormat, specials: Tokens = (), *, constrained: bool = False
) -> list[Piece]:
    splitter = Splitter(
        format_, lambda texts: [split_at(t, specials) for t in texts], constrained=constrained
    )
    pieces: list[Piece] = []
    for token in tokens:
        special = token in specials
        pieces += splitter.feed(token, special=special, control=special)
    return [*pieces, *splitter.finish()]


def split(
    tokens: Tokens, format_: AnswerFormat, specials: Tokens = (), *, constrained: bool = False
) -> tuple[str, str]:
    """(reasoning, answer) of these tokens."""
    pieces = pieces_of(tokens, format_, specials, constrained=constrained)
    answer = [p.text for p in pieces if isinstance(p, Answer)]
    reasoning = [p.text for p in pieces if isinstance(p, Reasoning)]
    assert all((*answer, *reasoning)) and len(pieces) == len(answer) + len(reasoning)
    return "".join(reasoning), "".join(answer)


def cut(text: str, specials: Tokens) -> list[str]:
    """The finest tokens that spell a text: its special tokens, else letters."""
    tokens: list[str] = []
    for part in split_at(text, specials):
        tokens += list(part.text) if part.token is None else [part.text]
    return tokens


BOTH = ("<think>", "</think>")
CASES = {
    "thinking": (THINK, (), "<think>\nhm, 2\n</think>\n\nIt is 2.", "hm, 2", "It is 2."),
    "none": (THINK, (), "It is 2.", "", "It is 2."),
    "blank before": (THINK, (), " \n<think>a</think>b", "a", "b"),
    "indented answer": (THINK, (), "    x = 1", "", "    x = 1"),
    "only blank": (THINK, (), " \n", "", " \n"),
    "opened by the prompt": (OPEN, (), "hm\n</think>\nYes", "hm", "Yes"),
    "opened twice": (OPEN, (), "<think>\nhm</think>Yes", "hm", "Yes"),
    "never closed": (THINK, (), "<think>hm", "hm", ""),
    "empty thinking": (THINK, (), "<think>\n\n</think>\n\nYes", "", "Yes"),
    "tags in an answer": (THINK, (), "Write <think>x</think>.", "", "Write <think>x</think>."),
    "tags after the answer began": (OPEN, (), "a</think>b<think>c", "a", "b<think>c"),
    "two thoughts": (THINK, (), "<think>a </think> <think> c</think>b", "a\n\nc", "b"),
    "broken tag": (THINK, (), "<thin", "", "<thin"),
    "by token": (THINK, BOTH, "<think>a</think>b", "a", "b"),
    "control tokens are no text": (THINK, (*BOTH, "<x9>"), "<x9><think>a</think>b<x9>", "a", "b"),
    "end alone, a control token": (LIST, BOTH, "Let me see</think>Paris.", "Let me see", "Paris."),
    "no end alone in text": (LIST, (), "It is </think>, see?", "", "It is </think>, see?"),
    "listed tag": (LIST, BOTH, "<reasoning>hm hm</reasoning>Answer.", "hm hm", "Answer."),
    "listed tag later": (LIST, BOTH, "I say <reasoning>", "", "I say <reasoning>"),
    "channels": (
        CHANNELS,
        CHANNEL_TOKENS,
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
        "a",
        "b",
    ),
    "channels, two thoughts": (
        CHANNELS,
        CHANNEL_TOKENS,
        "<|channel|>analysis<|message|>a <|end|><|start|>assistant<|channel|>analysis<|message|> c"
        "<|end|><|start|>assistant<|channel|>final<|message|>b",
        "a\n\nc",
        "b",
    ),
    "channels, straight to the answer": (
        CHANNELS, CHANNEL_TOKENS, "<|channel|>final<|message|>b", "", "b"
    ),
    "channels, plain text": (CHANNELS, CHANNEL_TOKENS, "b", "", "b"),
    "channels, another recipient": (
        CHANNELS,
        CHANNEL_TOKENS,
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.get<|channel|>"
        "commentary json<|message|>{}",
        "a\n\n{}",
        "",
    ),
    "channels, spelled": (
        CHANNELS, CHANNEL_TOKENS, "Write '<|', then channel.", "", "Write '<|', then channel."
    ),
    "recipients": (
        RECIPIENTS,
        ("<|message|>", "<|eom|>", "<|start|>", "<|eot|>"),
        " to=self<|message|>a<|eom|><|start|>assistant to=user<|message|>b<|eot|>",
        "a",
        "b",
    ),
    "marks of several tokens": (
        WRAPPED,
        ("<|open|>", "<|close|>", "<|sep|>"),
        "a<|close|>think<|sep|><|open|>answer<|sep|>b<|close|>answer<|sep|><|close|>message<|sep|>",
        "a",
        "b",
    ),
    "wrapped answer": (RESPONSE, (), "<think>a</think><response>b</response>\n", "a", "b"),
    "wrapped, with its end within": (
        RESPONSE, (), "<think>a</think><response>b </response> c</response>", "a", "b </response> c"
    ),
    "no thinking, no wrapping": (
        RESPONSE, (), "<response>b</response>", "", "<response>b</response>"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_known_forms(name: str) -> None:
    """Each form splits as written here, in the largest tokens and in the smallest."""
    format_, specials, text, reasoning, answer = CASES[name]
    assert split([part.text for part in split_at(text, specials)], format_, specials) == (
        reasoning,
        answer,
    )
    assert split(cut(text, specials), format_, specials) == (reasoning, answer)


def test_a_mark_that_is_quoted_is_text() -> None:
    """Where the vocabulary has the mark as a token, text that spells it ends nothing."""
    tokens = ["I write ", "`</", "think", ">`", " now", "</think>", "Yes </th", "ink>"]
    assert split(tokens, OPEN, BOTH) == ("I write `</think>` now", "Yes </think>")


def test_text_that_spells_control_tokens_stays() -> None:
    """No spelling is dropped: ``<s>``, ``[INST]``, ``<|im_end|>`` written as text are text."""
    text = "<s>old</s> [INST] <|im_end|> <eos>"
    assert split(cut(text, ()), THINK, BOTH) == ("", text)


def test_a_control_token_in_json_is_what_the_grammar_took_it_for() -> None:
    """Where a grammar asked for ``<s>`` and a control token spelled it, the text is shown."""
    assert split(['"', "<s>", "x", '"'], THINK, ("<s>",), constrained=True) == ("", '"<s>x"')
    assert split(['"', "<s>", "x", '"'], THINK, ("<s>",)) == ("", '"x"')


def test_an_answer_is_not_held_back() -> None:
    """Words appear at once: only what may begin a mark waits."""
    splitter = Splitter(THINK, lambda texts: [split_at(text, ()) for text in texts])
    assert list(splitter.feed("Hello wor")) == [Answer("Hello wor")]
    assert list(splitter.feed("ld <")) == [Answer("ld <")]
    begun = Splitter(THINK, lambda texts: [split_at(text, ()) for text in texts])
    assert list(begun.feed("<thi")) == []
    assert list(begun.feed("s>")) == [Answer("<this>")]


WORDS = st.sampled_from(
    ["<think>", "</think>", "<|channel|>", "analysis", "final", "<|message|>", "<|end|>",
     "<|start|>", "assistant", "<|return|>", " to=x", "<reasoning>", "</reasoning>", "<response>",
     "</response>", "<", "<|", " ", "\n", "a", "é😀"]
)  # fmt: skip
FORMATS = st.sampled_from([THINK, OPEN, LIST, CHANNELS, RECIPIENTS, WRAPPED, RESPONSE])
SPECIALS = st.sampled_from([(), BOTH, CHANNEL_TOKENS, (*BOTH, *CHANNEL_TOKENS, "</response>")])


@given(st.lists(WORDS, max_size=14), st.data(), FORMATS, SPECIALS, st.booleans())
def test_cutting_never_matters_and_nothing_is_taken_back(
    words: list[str],
    data: st.DataObject,
    format_: AnswerFormat,
    specials: tuple[str, ...],
    constrained: bool,
) -> None:
    """However the text between special tokens is cut, the result is the same; and what has been
    shown after any number of tokens is how the whole begins.
    """
    finest = cut("".join(words), specials)
    tokens: list[str] = []
    for letter in finest:
        joins = tokens and letter not in specials and tokens[-1] not in specials
        if joins and data.draw(st.booleans()):
            tokens[-1] += letter
        else:
            tokens.append(letter)
    whole = split(finest, format_, specials, constrained=constrained)
    assert split(tokens, format_, specials, constrained=constrained) == whole
    splitter = Splitter(
        format_, lambda texts: [split_at(t, specials) for t in texts], constrained=constrained
    )
    shown = ["", ""]
    for token in tokens:
        special = token in specials
        for piece in splitter.feed(token, special=special, control=special):
            assert isinstance(piece, Answer | Reasoning)
            shown[isinstance(piece, Answer)] += piece.text
        assert whole[0].startswith(shown[0])
        assert whole[1].startswith(shown[1])
