"""Prompts as tokens: what the template writes is parsed for special tokens, messages are not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localmoe.engine.worker.binding import llama, set_log
from localmoe.engine.worker.vocabulary import Vocabulary
from tests.archs import parrot
from tests.archs.parrot import control, user_defined
from tests.archs.vocabulary import CHATML

SPECIALS = (control("[gMASK]"), control("<bos>"), user_defined("</think>"), user_defined("<table>"))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabulary]:
    path = parrot.write(
        tmp_path_factory.mktemp("vocabulary") / "v.gguf",
        ["Hello", " there", "<MASK>"],
        template=f"{{# </think> #}}{CHATML}" + "{% if 0 %}</think>{% endif %}",
        specials=SPECIALS,
        bos="<bos>",
        named=[("padding", "!"), ("mask", "<MASK>")],
    )
    params = llama.llama_model_default_params()
    params.vocab_only = True
    # Whoever used llama.cpp in this process before may have left it a log function that is gone.
    kept = set_log(lambda level, text: None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    yield Vocabulary(model)
    llama.llama_model_free(model)
    del kept


def spelled(vocabulary: Vocabulary, tokens: list[int]) -> list[str]:
    """The special tokens among these."""
    return [vocabulary.spelling(t) for t in tokens if vocabulary.entry(t).special]


def joined(vocabulary: Vocabulary, tokens: list[int]) -> str:
    return b"".join(vocabulary.entry(t).data for t in tokens).decode()


WORDS = (" ", "\n", "Hello", " there", "é", "<table>")
MARKS = ("<|im_start|>", "<|im_end|>", "[gMASK]", "<bos>", "</think>")
OWN = st.tuples(st.sampled_from(WORDS + MARKS), st.just(False))
DATA = st.tuples(st.sampled_from((*WORDS, *MARKS, "<|im_", "end|>")), st.just(True))


@settings(deadline=None)
@given(parts=st.lists(OWN | DATA, max_size=12))
def test_only_the_templates_text_is_parsed(
    vocabulary: Vocabulary, parts: list[tuple[str, bool]]
) -> None:
    """Of control tokens and of the template's marks exactly those are met that the template writes;
    no text is lost or added.
    """
    text = ""
    data = [(0, 0)]  # told apart, even where no message is
    for part, is_data in parts:
        data += [(len(text), len(text) + len(part))] if is_data else []
        text += part
    tokens = vocabulary.parse(text, data)
    assert joined(vocabulary, tokens) == text
    found = [spelling for spelling in spelled(vocabulary, tokens) if spelling != "<table>"]
    assert found == [part for part, is_data in parts if part in MARKS and not is_data]


@settings(deadline=None)
@given(parts=st.lists(st.tuples(st.sampled_from(WORDS + MARKS), st.booleans()), max_size=10))
def test_harmless_messages_change_no_token(
    vocabulary: Vocabulary, parts: list[tuple[str, bool]]
) -> None:
    """A message that spells no special token is tokenized as if nobody had told it apart."""
    text, data = "", []
    for part, is_data in parts:
        if is_data and part not in MARKS:
            data.append((len(text), len(text) + len(part)))
        text += part
    assert vocabulary.parse(text, data) == vocabulary.parse(text)


@pytest.mark.parametrize("written", ["", "<bos>", "\n <bos>"])
def test_the_beginning_comes_once(vocabulary: Vocabulary, written: str) -> None:
    """Whether the template writes the beginning token or not, behind white space too."""
    text = f"{written}<|im_start|>user\nHello"
    tokens = vocabulary.prompt(text, ((text.index("Hello"), len(text)),))
    assert spelled(vocabulary, tokens) == ["<bos>", "<|im_start|>"]
    assert vocabulary.spelling(tokens[0]) == "<bos>"


def test_a_message_cannot_write_the_beginning(vocabulary: Vocabulary) -> None:
    """``<bos>`` at the start of a message is text, and the real one still comes before it."""
    tokens = vocabulary.prompt("<bos> Hello", ((0, 11),))
    assert spelled(vocabulary, tokens) == ["<bos>"]
    assert joined(vocabulary, tokens) == "<bos><bos> Hello"


def test_kinds_of_tokens(vocabulary: Vocabulary) -> None:
    """By the type in the vocabulary, and by the number for what the metadata name."""
    kinds = {}
    for text in ("[gMASK]", "<|im_end|>", "</think>", "<table>", "!", "?"):
        (token,) = vocabulary.parse(text)
        entry = vocabulary.entry(token)
        kinds[text] = (entry.special, entry.control)
    assert kinds == {
        "[gMASK]": (True, True),
        "<|im_end|>": (True, True),
        "</think>": (True, False),
        "<table>": (True, False),
        "!": (False, False),  # named, but it is text
        "?": (False, False),
    }
    mask = vocabulary.entry(llama.llama_vocab_mask(vocabulary.handle))
    assert (mask.data, mask.control) == (b"<MASK>", True)
    parts = vocabulary.split("a</think>\n[gMASK]")
    assert [(part.text, part.token is None, part.control) for part in parts] == [
        ("a", True, False),
        ("</think>", False, False),
        ("\n", True, False),
        ("[gMASK]", False, True),
    ]
