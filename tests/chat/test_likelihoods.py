"""Each piece of an answer has the tokens that it came of, however pieces and tokens are cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import localmoe
from localmoe.chat.events import AnswerDelta, ReasoningDelta
from localmoe.chat.likelihoods import Likelihoods
from localmoe.engine.events import Token
from tests.chat import templates


def token(text: str, *, control: bool = False) -> Token:
    return Token(1, text, 1, control, control, -0.5)


def texts(events: list[localmoe.ChatEvent]) -> list[list[str]]:
    return [[t.text for t in e.tokens] for e in events if isinstance(e, AnswerDelta)]


def test_tokens_of_marks_and_thinking_go_to_none() -> None:
    """Nor does a control token; text that was held back brings all of its tokens."""
    told = Likelihoods()
    events = [
        *told.of(token("hm"), [ReasoningDelta("hm")]),
        *told.of(token("</think>"), []),
        *told.of(token("Hi"), [AnswerDelta("Hi")]),
        *told.of(token(" <"), []),
        *told.of(token("b>"), [AnswerDelta(" <b>")]),
        *told.of(token(""), []),
        *told.of(token("🎈"), [AnswerDelta("🎈")]),
        *told.of(token("<|im_end|>", control=True), []),
        *told.of(token(" E"), []),
        *told.rest([AnswerDelta(" E")]),
    ]
    assert texts(events) == [["Hi"], [" <", "b>"], ["", "🎈"], [" E"]]


@pytest.fixture(scope="module")
def model(arch_file: Callable[..., Path]) -> Iterator[localmoe.LoadedModel]:
    path = arch_file("qwen3moe", template=templates.CHATML)
    with localmoe.load(str(path), context=512, wishes=localmoe.Wishes(threads=1)) as loaded:
        yield loaded


@pytest.mark.process
@pytest.mark.parametrize("stop", [(), ("e",)])
def test_the_figures_of_an_answer(stop: tuple[str, ...], model: localmoe.LoadedModel) -> None:
    """The tokens spell the answer; greedy chose the likeliest; up to a stop text, not beyond."""
    stream = model.chat("Hello", temperature=0, max_tokens=12, top_logprobs=3, stop=stop)
    tokens = [t for e in stream if isinstance(e, AnswerDelta) for t in e.tokens]
    answer = stream.result().answer
    spelled = b"".join(model.spell([t.token for t in tokens])).decode(errors="replace")
    assert spelled.startswith(answer) and (stop or spelled == answer)
    for chosen in tokens:
        assert chosen.logprob is not None and len(chosen.top) == 3
        assert chosen.top[0].logprob == pytest.approx(chosen.logprob)
        assert sum(math.exp(likely.logprob) for likely in chosen.top) <= 1.0001


@pytest.mark.process
def test_without_being_asked_there_are_none(model: localmoe.LoadedModel) -> None:
    events = list(model.chat("Hello", temperature=0, max_tokens=4))
    assert not any(texts(events))
    for wrong in (-1, 21, True, "3", 1.0):
        with pytest.raises(localmoe.UsageError, match="from 0 to 20"):
            model.chat("Hello", top_logprobs=wrong)  # type: ignore[arg-type]
    for bias in ({"x": 1}, {1: 101}, {1: True}, {-1: 1}, [1], {2**31: 1}, {1: "1"}):
        with pytest.raises(localmoe.UsageError, match="logit_bias"):
            model.chat("Hello", logit_bias=bias)  # type: ignore[arg-type]
