"""Splitting thinking from answers, whatever the pieces."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe.chat.reasoning import (
    CHANNELS,
    FORMATS,
    THINK,
    TURN_TOKENS,
    Answer,
    MarkerScanner,
    ReasoningFormat,
    ReasoningSplitter,
    find_format,
    turn_tokens,
)

GEMMA = next(f for f in FORMATS if f.sign == "<|channel>")
THINKING = next(f for f in FORMATS if f.start == "<thinking>")
MISTRAL = next(f for f in FORMATS if f.start == "[THINK]")


def split(
    chunks: Sequence[str], format_: ReasoningFormat = THINK, *, open_: bool = False
) -> tuple[str, str]:
    """(reasoning, answer) of a text that arrives in these chunks."""
    splitter = ReasoningSplitter(format_, open_=open_)
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)]
    pieces += splitter.finish()
    assert all(piece.text for piece in pieces)
    answer = "".join(p.text for p in pieces if isinstance(p, Answer))
    return "".join(p.text for p in pieces if not isinstance(p, Answer)), answer


CASES = {
    "think": (THINK, False, "<think>\nhm, 2\n</think>\n\nIt is 2.", "hm, 2", "It is 2."),
    "no thinking": (THINK, False, "It is 2.", "", "It is 2."),
    "blank before": (THINK, False, " \n<think>a</think>b", "a", "b"),
    "indented answer": (THINK, False, "    x = 1", "", "    x = 1"),
    "only blank": (THINK, False, " \n", "", " \n"),
    "opened by the prompt": (THINK, True, "hm\n</think>\nYes", "hm", "Yes"),
    "opened twice": (THINK, True, "<think>\nhm</think>Yes", "hm", "Yes"),
    "never closed": (THINK, False, "<think>hm", "hm", ""),
    "empty thinking": (THINK, False, "<think>\n\n</think>\n\nYes", "", "Yes"),
    "tags in an answer": (THINK, False, "Write <think>x</think>.", "", "Write <think>x</think>."),
    "tags after the answer began": (THINK, True, "a</think>b<think>c", "a", "b<think>c"),
    "turn tokens": (THINK, False, "<think>a</think>b<|im_end|>\n", "a", "b\n"),
    "turn token first": (THINK, False, "<|im_start|><think>a</think>b", "a", "b"),
    "broken tag": (THINK, False, "<thin", "", "<thin"),
    "thinking": (THINKING, False, "<thinking>a</thinking>b", "a", "b"),
    "mistral": (MISTRAL, False, "[THINK]a[/THINK]b [1]", "a", "b [1]"),
    "gemma": (GEMMA, False, "<|channel>thought\na\n<channel|>b<turn|>", "a", "b"),
    "gemma without": (GEMMA, False, "b<turn|>", "", "b"),
    "channels": (
        CHANNELS,
        False,
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
        "a",
        "b",
    ),
    "channels, two thoughts": (
        CHANNELS,
        False,
        "<|channel|>analysis<|message|>a <|end|><|start|>assistant<|channel|>analysis<|message|> c"
        "<|end|><|start|>assistant<|channel|>final<|message|>b",
        "a\n\nc",
        "b",
    ),
    "channels, straight to the answer": (CHANNELS, False, "<|channel|>final<|message|>b", "", "b"),
    "channels, no channel": (CHANNELS, False, "<|message|>b", "", "b"),
    "channels, plain text": (CHANNELS, False, "b", "", "b"),
    "channels, commentary": (
        CHANNELS,
        False,
        "<|channel|>commentary<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b",
        "a",
        "b",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_known_forms(name: str) -> None:
    """Each form splits as written here, in one piece and letter by letter."""
    format_, open_, text, reasoning, answer = CASES[name]
    assert split([text], format_, open_=open_) == (reasoning, answer)
    assert split(list(text), format_, open_=open_) == (reasoning, answer)


WORDS = st.sampled_from(
    ["<think>", "</think>", "<|channel|>", "analysis", "final", "<|message|>", "<|end|>",
     "<|start|>", "assistant", "<|im_end|>", "<|channel>thought", "<channel|>", "[THINK]",
     "[/THINK]", "<", "<|", " ", "\n", "a", "é😀", "</s>"]
)  # fmt: skip


@given(st.lists(WORDS, max_size=14), st.data(), st.sampled_from(FORMATS), st.booleans())
def test_chunking_never_matters(
    words: list[str], data: st.DataObject, format_: ReasoningFormat, open_: bool
) -> None:
    """Any two ways to cut a text give the same reasoning and the same answer."""
    text = "".join(words)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(chunks, format_, open_=open_) == split([text], format_, open_=open_)


@given(st.text(alphabet="<>|/ab \n", max_size=40))
def test_plain_text_passes_unchanged(text: str) -> None:
    """Text without a marker is all answer, to the last character."""
    if "<think>" not in text and not any(token in text for token in TURN_TOKENS):
        assert split(list(text)) == ("", text)


@given(st.lists(st.sampled_from(["ab", "abc", "b", "c", "a", "x"]), max_size=10), st.integers(1, 4))
def test_scanner_loses_nothing(words: list[str], size: int) -> None:
    """All parts together are the text, and the longest marker wins."""
    text = "".join(words)
    scanner = MarkerScanner(["ab", "abc"])
    parts = [p for i in range(0, len(text), size) for p in scanner.feed(text[i : i + size])]
    parts += scanner.finish()
    assert "".join(part for part, _ in parts) == text
    assert sum(marker for _, marker in parts) == text.count("ab")
    assert all("ab" not in part for part, marker in parts if not marker)
    assert ("abc", True) in parts or "abc" not in text


def test_answer_is_not_held_back() -> None:
    """Words appear at once: only what may begin a marker waits."""
    splitter = ReasoningSplitter()
    assert list(splitter.feed("Hello wor")) == [Answer("Hello wor")]
    assert list(splitter.feed("ld <")) == [Answer("ld ")]
    assert list(splitter.feed("b>")) == [Answer("<b>")]


def test_format_comes_from_the_template() -> None:
    """The signature of a family, an open tag at the prompt's end, else ``<think>``."""
    assert find_format("…<|channel|>…", "") is CHANNELS
    assert find_format("'<|channel>thought\\n'", "") is GEMMA
    assert find_format("nothing", "") is THINK
    assert find_format("", "user<think:open>\n").ends == ("</think:open>",)


def test_turn_tokens_of_a_template() -> None:
    """Special tokens named in a template are left out of answers; those about tools stay."""
    tokens = turn_tokens("{{'<|user|>' + x}} <|tool_call|> <｜User｜>", "<s>", "")
    assert {"<|user|>", "<｜User｜>", "<s>", "<|im_end|>"} <= set(tokens)
    assert "<|tool_call|>" not in tokens
    assert "" not in tokens
