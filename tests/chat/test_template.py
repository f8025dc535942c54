"""Chat templates: what they render, and that a hostile one can do no harm."""

from __future__ import annotations

import datetime
import os
import signal
from collections.abc import Iterator

import pytest

from localmoe.chat.renderer import Renderer
from localmoe.chat.session import Message
from localmoe.chat.template import ChatTemplate
from localmoe.chat.thinking import ThinkLevel
from localmoe.errors import TemplateError
from tests.chat import templates

pytestmark = pytest.mark.process

SYSTEM = Message("system", "Be brief.")
HELLO = Message("user", "Hello")
MESSAGES = (SYSTEM, HELLO, Message("assistant", "Hi.", "They greet."), Message("user", "Bye"))


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as shared:
        yield shared


def template(source: str | None, renderer: Renderer) -> ChatTemplate:
    return ChatTemplate.from_model(source, "<s>", "</s>", renderer=renderer)


def test_chatml_renders_as_the_hub_does(renderer: Renderer) -> None:
    """Blocks are trimmed, and the stable part ends where the generation prompt begins."""
    rendered = template(templates.CHATML, renderer).render((SYSTEM, HELLO))
    turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    assert rendered.prompt == turns + "<|im_start|>assistant\n"
    assert rendered.prompt[: rendered.stable_chars] == turns
    assert rendered.prompt[slice(*rendered.data[-1])] == "Hello"
    assert rendered.format and not rendered.format.is_open


def test_stable_part_is_a_prefix_of_the_next_prompt(renderer: Renderer) -> None:
    """The engine may keep a checkpoint at ``stable_chars``: the next turn starts with it."""
    for source in (templates.CHATML, templates.BOS, templates.EFFORT, templates.OPENS_THINKING):
        chat = template(source, renderer)
        first = chat.render(MESSAGES[:2])
        second = chat.render(MESSAGES)
        assert 0 < first.stable_chars < len(first.prompt)
        assert second.prompt.startswith(first.prompt[: first.stable_chars])


def test_special_tokens_come_from_the_vocabulary(renderer: Renderer) -> None:
    """``bos_token`` and ``eos_token`` are the model's."""
    rendered = template(templates.BOS, renderer).render((HELLO,))
    assert rendered.prompt == "<s>[USER] Hello</s>\n[ASSISTANT]"


def test_no_template_is_plain_completion(renderer: Renderer) -> None:
    """Without a template the text goes to the model as it is."""
    chat = template(None, renderer)
    rendered = chat.render((Message("user", "Once upon a"),))
    assert chat.is_plain
    assert rendered.prompt == "Once upon a"
    assert rendered.stable_chars == len("Once upon a")
    assert rendered.format is None


@pytest.mark.parametrize("source", [templates.NO_SYSTEM, templates.IGNORES_SYSTEM])
def test_system_text_moves_into_the_first_user_message(renderer: Renderer, source: str) -> None:
    """A template that refuses or drops the system message gets its text another way."""
    rendered = template(source, renderer).render((SYSTEM, HELLO))
    assert rendered.prompt == "<user>Be brief.\n\nHello</user><assistant>"


def test_a_refusal_that_is_not_about_the_system_message_stays(renderer: Renderer) -> None:
    """The template's own words reach the user."""
    source = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TemplateError, match="roles must alternate") as caught:
        template(source, renderer).render((SYSTEM, HELLO))
    assert "--plain" in (caught.value.typed()[1] or "")


def test_undefined_helpers_of_the_hub_are_there(renderer: Renderer) -> None:
    """``strftime_now``, ``tojson`` without HTML escapes, loop controls."""
    source = (
        "{{ strftime_now('%Y') }} {{ {'a': '<ü>'} | tojson }}"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %} {{ i }}{% endfor %}"
    )
    rendered = template(source, renderer).render((HELLO,))
    assert rendered.prompt == f'{datetime.date.today().year} {{"a": "<ü>"}} 0 1'


def test_generation_blocks_are_only_text(renderer: Renderer) -> None:
    """``{% generation %}`` matters to training alone."""
    rendered = template(templates.GENERATION, renderer).render(MESSAGES[1:])
    assert rendered.prompt == "U:Hello;A:Hi.;U:Bye;"


def test_tools_reach_the_template(renderer: Renderer) -> None:
    """A list of tools is passed on, and absent otherwise."""
    chat = template("{% if tools %}{{ tools[0].name }}{% else %}none{% endif %}", renderer)
    assert chat.render((HELLO,), tools=[{"name": "add"}]).prompt == "add"
    assert chat.render((HELLO,)).prompt == "none"


def test_an_empty_interrupted_answer_is_not_empty_for_the_template(renderer: Renderer) -> None:
    """Many templates refuse an empty assistant message; an interrupted turn may be one."""
    messages = (HELLO, Message("assistant", "", interrupted=True), HELLO)
    rendered = template(templates.REFUSES_EMPTY, renderer).render(messages)
    assert rendered.prompt == "<user>Hello<assistant>…<user>Hello"


class TestThinking:
    def test_switch(self, renderer: Renderer) -> None:
        """Qwen3's ``enable_thinking``: off closes the thinking in the prompt; auto adds nothing."""
        chat = template(templates.SWITCHED, renderer)
        off = chat.render((HELLO,), think=ThinkLevel.OFF)
        assert off.prompt.endswith("<think>\n\n</think>\n\n")
        assert off.format and not off.format.is_open
        assert chat.render((HELLO,), think=ThinkLevel.HIGH).prompt.endswith("assistant\n")
        assert chat.think_control.note(ThinkLevel.OFF) is None
        assert "on or off" in (chat.think_control.note(ThinkLevel.LOW) or "")

    def test_prompt_may_open_the_thinking(self, renderer: Renderer) -> None:
        """DeepSeek's ``thinking``: the prompt ends inside the thinking, unless switched off."""
        chat = template(templates.OPENS_THINKING, renderer)
        rendered = chat.render((HELLO,))
        assert rendered.format and rendered.format.is_open
        assert rendered.format.thinking[0].end == "</think>"
        off = chat.render((HELLO,), think=ThinkLevel.OFF).format
        assert off and not off.is_open

    def test_earlier_reasoning_is_given_back(self, renderer: Renderer) -> None:
        """What becomes of earlier thinking is the template's choice."""
        prompt = template(templates.OPENS_THINKING, renderer).render(MESSAGES).prompt
        assert "<think>They greet.</think>Hi." in prompt

    def test_effort(self, renderer: Renderer) -> None:
        """gpt-oss' ``reasoning_effort`` takes the level; it knows no off, and that is said."""
        chat = template(templates.EFFORT, renderer)
        assert "Reasoning: high<" in chat.render((HELLO,), think=ThinkLevel.HIGH).prompt
        assert "Reasoning: medium<" in chat.render((HELLO,)).prompt
        assert "Reasoning: low<" in chat.render((HELLO,), think=ThinkLevel.OFF).prompt
        assert "cannot stop" in (chat.think_control.note(ThinkLevel.OFF) or "")

    def test_effort_words_differ(self, renderer: Renderer) -> None:
        """A template without ``medium`` gets the next word that it takes."""
        chat = template(templates.TWO_EFFORTS, renderer)
        words = {
            level: chat.render((HELLO,), think=level).prompt.split("|")[0] for level in ThinkLevel
        }
        assert words == {
            ThinkLevel.AUTO: "effort=none given",
            ThinkLevel.OFF: "effort=no_think",
            ThinkLevel.LOW: "effort=low",
            ThinkLevel.MEDIUM: "effort=high",
            ThinkLevel.HIGH: "effort=high",
        }

    def test_no_control(self, renderer: Renderer) -> None:
        """A template that mentions none of the names says so, and renders the same."""
        chat = template(templates.CHATML, renderer)
        assert "no control" in (chat.think_control.note(ThinkLevel.HIGH) or "")
        assert chat.render((HELLO,), think=ThinkLevel.HIGH) == chat.render((HELLO,))


HOSTILE = {
    "class access": "{{ ''.__class__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "globals of a helper": "{{ raise_exception.__globals__['json'] }}",
    "attr filter": "{{ messages | attr('__class__') }}",
    "format string": "{{ '{0.__class__}'.format(messages) }}",
    "builtins by self": "{{ self.__init__.__globals__.__builtins__.open('/etc/passwd').read() }}",
    "import": "{% import 'os' as os %}{{ os }}",
    "include": "{% include '/etc/passwd' %}",
    "long range": "{% for i in range(10**9) %}{% endfor %}",
    "1 GB string": "{{ 'x' * 10**9 }}",
    "1 GB format": "{{ '%1000000000d' % 1 }}",
    "1 GB of output": "{% for i in range(9**5) %}{{ 'x' * 20000 }}{% endfor %}",
    "6,000 brackets": "{{ " + "[" * 6000 + "]" * 6000 + " }}",
    "6,000 parentheses": "{{ " + "(" * 6000 + "1" + ")" * 6000 + " }}",
    "6,000 blocks": "{% if 1 %}" * 6000 + "{% endif %}" * 6000,
    "endless loop": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}"
    ),
    "huge power": "{{ 9 ** (9 ** 9) }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "syntax": "{% for %}",
    "3 MB source": "x" * 3_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_is_refused_in_time(renderer: Renderer, name: str) -> None:
    """Every attack ends as a typed error, by a timer at the latest, and the next render works."""
    with pytest.raises(TemplateError) as caught:
        template(HOSTILE[name], renderer).render((HELLO,))
    assert "model.generate" in (caught.value.hint or "")
    assert "Hello" in template(templates.CHATML, renderer).render((HELLO,)).prompt


def test_a_template_changes_nothing_but_its_own_lists(renderer: Renderer) -> None:
    """Some collect ids in one; what they do to the messages is gone with the render."""
    own = "{% set a = [] %}{{ a.append('a') or '' }}{{ a.pop() }}{{ messages.pop().content }}"
    for _ in range(2):
        assert template(own, renderer).render((HELLO,)).prompt == "aHello"


def test_an_error_text_cannot_act_on_the_terminal(renderer: Renderer) -> None:
    """What a template raises is untrusted text."""
    with pytest.raises(TemplateError) as caught:
        template("{{ raise_exception('a\\x1b]52;c;eA==\\x07b') }}", renderer).render((HELLO,))
    assert "\x1b" not in caught.value.message
    assert "\x07" not in caught.value.message


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
def test_a_renderer_that_was_killed_costs_nothing() -> None:
    """Killed while nobody asked it, or with a question under way: the template is not blamed."""
    with Renderer() as own:
        chat = template(templates.CHATML, own)
        prompt = chat.render((HELLO,)).prompt
        assert own._process is not None
        os.kill(own._process.pid, signal.SIGKILL)
        own._process.wait()
        assert chat.render((HELLO,)).prompt == prompt
        os.kill(own._process.pid, signal.SIGKILL)  # perhaps not dead yet when it is asked
        assert chat.render((HELLO,)).prompt == prompt


@pytest.mark.parametrize("source", ["{# nothing #}", "{{ '' }}", "{% set x = 1 %}\n"])
def test_a_template_that_writes_nothing(source: str) -> None:
    """It is the template that is blamed, with the way around it; a blank one is none at all."""
    with Renderer() as own, pytest.raises(TemplateError, match="writes nothing") as caught:
        template(source, own).render((HELLO,))
    assert "model.generate" in (caught.value.hint or "")
    assert ChatTemplate.from_model(" \n", "", "").is_plain


def test_what_a_template_says_is_bounded(renderer: Renderer) -> None:
    """A refusal of 100,000 characters is one line on the screen."""
    with pytest.raises(TemplateError) as caught:
        template("{{ raise_exception('x' * 100000) }}", renderer).render((HELLO,))
    assert len(caught.value.message) < 500
