"""Thinking that leaves no room for the answer is ended, wherever its marks come from."""

from __future__ import annotations

import pytest

from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Request, Sampling, Token
from localmoe.engine.grammar import Symbols, with_reasoning

pytestmark = pytest.mark.process

PROMPT = "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n"
LIMIT = 40


def symbols(engine: Engine, mark: str) -> Symbols:
    (parts,) = engine.split_specials([mark])
    return [part.text if part.token is None else part.token for part in parts]


def answer(
    engine: Engine, marks: tuple[str, str] | None, end: str, *, is_open: bool
) -> tuple[str, str, list[Token]]:
    """Text and reason of an answer that is "yes" after thinking, and its tokens."""
    start, stop = symbols(engine, "<think>"), symbols(engine, end)
    grammar = with_reasoning('root ::= "yes"', start, stop, is_open=is_open)
    sampling = Sampling(temperature=1.0, seed=4)
    asked = Request(PROMPT, max_tokens=LIMIT, sampling=sampling, grammar=grammar, thinking=marks)
    events = list(engine.generate(asked))
    tokens = [event for event in events if isinstance(event, Token)]
    done = events[-1]
    assert isinstance(done, Finished)
    return "".join(token.text for token in tokens), done.reason, tokens


@pytest.mark.parametrize("end", ["</think>", "<<over>>", "</think>\nwell,"])
def test_thinking_has_half_of_the_tokens(engine: Engine, end: str) -> None:
    """Its end is written after half of them, as a token where it is one; the answer follows."""
    text, reason, tokens = answer(engine, ("", end), end, is_open=True)
    thought, met, said = text.partition(end)
    assert (met, said.strip(" \n"), reason) == (end, "yes", "stop")
    before = "".join(token.text for token in tokens[: LIMIT // 2])
    assert thought.startswith(before), "it was ended before half of the tokens"
    assert any(token.special for token in tokens) == end.startswith("</think>")
    text, reason, _ = answer(engine, None, end, is_open=True)
    assert (end in text, reason) == (False, "length")


def test_thinking_that_the_model_begins(engine: Engine) -> None:
    """It is ended where it was begun; an answer without it is left alone."""
    bias = symbols(engine, "<think>")[0]
    assert isinstance(bias, int)
    for begins in (True, False):
        start, stop = symbols(engine, "<think>"), symbols(engine, "</think>")
        grammar = with_reasoning('root ::= "yes" [a-z ]*', start, stop)
        sampling = Sampling(seed=4, logit_bias=((bias, 100.0 if begins else -100.0),))
        asked = Request(
            PROMPT, max_tokens=LIMIT, sampling=sampling, grammar=grammar,
            thinking=("<think>", "</think>"),
        )  # fmt: skip
        text = "".join(e.text for e in engine.generate(asked) if isinstance(e, Token))
        assert text.startswith("<think>" if begins else "yes")
        assert text.count("</think>") == begins


def test_thinking_that_ends_by_itself_is_left_alone(engine: Engine) -> None:
    """The mark comes once, where the model has written it."""
    text, reason, _ = answer(engine, ("", "e"), "e", is_open=True)
    thought, _, said = text.partition("e")
    assert (said.strip(" \n"), reason) == ("yes", "stop")
    assert len(thought) < LIMIT // 2
