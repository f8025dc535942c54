"""What has been read is not read again: on real engines, of every kind of memory that models have.

Plain attention (qwen3moe), sliding windows (gpt-oss, gemma4), recurrent and convolutional layers
(qwen3next, qwen35moe, nemotron_h_moe, granitehybrid, lfm2moe), compressed caches (deepseek4).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import localmoe
from localmoe import (
    AnswerDelta,
    Conversation,
    LoadedModel,
    PrefillProgress,
    ReasoningDelta,
    TurnDone,
)
from localmoe.engine.worker.kv import CHECKPOINT_TOKENS, least_useful
from tests.chat import templates

pytestmark = pytest.mark.process

ARCHITECTURES = (
    "qwen3moe", "gpt-oss", "gemma4", "qwen3next", "qwen35moe", "nemotron_h_moe", "granitehybrid",
    "lfm2moe", "deepseek4",
)  # fmt: skip
STRIPPING = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
"""Opens a thought, and leaves the thoughts of earlier turns out."""
LONG = "A mixture of experts has many small networks and a router. " * 8
NEAR = 60  # tokens: a question, an answer and the marks around them; the long part has over 200
BATCH = 64  # tokens
LOST = CHECKPOINT_TOKENS + 2 * BATCH  # tokens that going back may cost: a checkpoint is at a batch


Begin = Callable[[str], Conversation]


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALMOE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module", params=ARCHITECTURES)
def begin(request: pytest.FixtureRequest, arch_file: Callable[..., Path]) -> Iterator[Begin]:
    """``begin(template)`` → a conversation with a real engine, which the tests of one architecture
    share: each begins with words of its own (``long``)."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def load(template: str) -> LoadedModel:
            path = arch_file(request.param, template=template)
            wishes = localmoe.Wishes(threads=1, batch=BATCH)
            return stack.enter_context(localmoe.load(path, context=2048, wishes=wishes))

        yield lambda template: load(template).begin(temperature=0, max_tokens=8)


@pytest.fixture
def long(request: pytest.FixtureRequest) -> str:
    """A first question that no other test has asked."""
    return f"{request.node.name}: {LONG}"


def ask(conversation: Conversation, text: str) -> TurnDone:
    return localmoe.result(conversation.ask(text))


def fresh(done: TurnDone) -> int:
    """Tokens of the prompt that had to be read."""
    return done.usage.prompt_tokens - done.usage.reused_tokens


def test_next_turns_regenerating_and_undoing(begin: Begin, long: str) -> None:
    """The long first question is read once, whatever follows it."""
    conversation = begin(templates.CHATML)
    assert fresh(ask(conversation, long)) > 200
    assert fresh(ask(conversation, "Why?")) < NEAR
    again = localmoe.result(conversation.regenerate())
    assert fresh(again) < NEAR
    conversation.session.undo()
    assert fresh(ask(conversation, "And how?")) < NEAR
    conversation.session.undo()
    conversation.session.undo()
    assert conversation.session.turns == ()
    another_first_question = long + "Really?"
    assert fresh(ask(conversation, another_first_question)) < 200


def test_templates_that_strip_old_reasoning(begin: Begin, long: str) -> None:
    """The thoughts of a turn are gone in the next prompt; what stood before them is kept."""
    conversation = begin(STRIPPING)
    first = ask(conversation, long)
    assert first.reasoning and fresh(first) > 200
    second = ask(conversation, "Why?")
    assert (
        first.reasoning
        not in conversation.template.render(conversation.session.prompt_messages()).prompt
    )
    assert fresh(second) < NEAR
    assert fresh(localmoe.result(conversation.regenerate())) < NEAR
    assert fresh(ask(conversation, "And how?")) < NEAR


@pytest.mark.parametrize("kind", [AnswerDelta, PrefillProgress])
def test_ctrl_c(begin: Begin, long: str, kind: type[AnswerDelta | PrefillProgress]) -> None:
    """In an answer the turn is kept, in a prefill what was read so far: both are built on."""
    conversation = begin(templates.CHATML)
    ask(conversation, long)
    short = conversation.settings
    conversation.settings = dataclasses.replace(short, max_tokens=1000)
    seen = 0
    for event in conversation.ask("Why? " * 60):
        seen += isinstance(event, kind | ReasoningDelta if kind is AnswerDelta else kind)
        if seen == 2:
            conversation.engine.cancel()
    assert isinstance(event, TurnDone) and event.finish_reason == "interrupted"
    conversation.session.undo()
    conversation.settings = short
    assert fresh(ask(conversation, "Why?")) < NEAR


def test_a_first_prefill_that_was_interrupted_is_gone_on_with(begin: Begin, long: str) -> None:
    """The first long prompt, stopped in the middle: what was read is not read again."""
    conversation = begin(templates.CHATML)
    read = 0
    events = conversation.ask(long * 5)
    for event in events:
        if isinstance(event, PrefillProgress) and read == 0 and event.done > event.total // 2:
            read = event.done
            conversation.engine.cancel()
    assert isinstance(event, TurnDone) and event.finish_reason == "interrupted"
    conversation.session.undo()
    done = ask(conversation, long * 5)
    assert done.usage.reused_tokens > read - LOST


def test_how_far_back_is_a_matter_of_tokens(begin: Begin, long: str) -> None:
    """Another end of a long prompt: however fast it was read, so much of it is read again."""
    conversation = begin(templates.CHATML)
    words = long * 5
    for share in (0.9, 0.7, 0.5):
        ask(conversation, words)
        conversation.session.undo()
        begun = words[: int(share * len(words))]
        common = conversation.engine.count_tokens(begun)
        assert common > LOST
        other = ask(conversation, begun + " xyz")
        conversation.session.undo()
        assert other.usage.reused_tokens > common - LOST


@pytest.mark.parametrize(("checkpoints", "factor"), [(8, 10), (16, 4)])
def test_checkpoints_lie_closer_the_nearer(checkpoints: int, factor: int) -> None:
    """While 20,000 tokens come, every way back is at most ``factor`` times as far as it had to be,
    or leads to the beginning."""
    kept: list[int] = []
    for now in range(100, 20_000, 100):
        if len(kept) == checkpoints:
            del kept[least_useful(kept, now)]
        kept.append(now)
        assert kept == sorted(kept)
        for wanted in range(100, now, 100):
            reached = max((length for length in kept if length <= wanted), default=0)
            assert reached == 0 or now - reached <= factor * (now - wanted), (now, wanted, kept)
