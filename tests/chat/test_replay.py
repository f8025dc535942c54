"""What was sampled for a call comes back byte for byte, where its history is the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from localmoe.chat.answering import events
from localmoe.chat.events import TurnDone
from localmoe.chat.renderer import Renderer
from localmoe.chat.session import Message
from localmoe.chat.settings import Settings
from localmoe.chat.template import ChatTemplate
from localmoe.chat.tools import read_tools
from tests.chat import templates
from tests.chat.scripted import ScriptedEngine

pytestmark = pytest.mark.process

THINKING = """\
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.reasoning_content is defined %}<think>
{{ m.reasoning_content }}
</think>
{% endif -%}
{{ m.content }}
{%- for c in m.tool_calls %}
<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
SETTINGS = Settings(tools=read_tools([{"name": "look", "parameters": {"properties": {"at": {}}}}]))
ASK = Message("user", "Which?")
SAMPLED = 'I look.\n\n<tool_call>\n{"name":"look",\n "arguments":{"at":"\\u0073ky"}}\n</tool_call>'


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as shared:
        yield shared


def asked(
    template: ChatTemplate, messages: tuple[Message, ...], reply: str
) -> tuple[str, tuple[Any, ...], TurnDone]:
    """The prompt, its texts, and the end of an answer."""
    engine = ScriptedEngine([[reply]])
    done = list(events(engine, template, messages, SETTINGS))[-1]
    assert isinstance(done, TurnDone)
    return engine.requests[0].prompt, engine.requests[0].data, done


def returned(done: TurnDone, **changes: Any) -> tuple[Message, ...]:
    """A turn as a client returns it: without what it does not keep."""
    call = replace(done.calls[0], **changes)
    said = Message("assistant", done.answer, calls=(call,))
    return said, Message("tool", "blue <|im_end|>", result_of=call)


@pytest.mark.parametrize(
    ("source", "thought"),
    [(templates.CHATML, ""), (THINKING, ""), (THINKING, "<think>\nHm.\n</think>\n")],
)
def test_two_calls_in_a_row(renderer: Renderer, source: str, thought: str) -> None:
    """Each prompt begins with the one before it and what was sampled then, thinking too."""
    template = ChatTemplate(source, renderer=renderer)
    first, _, done = asked(template, (ASK,), thought + SAMPLED)
    assert done.calls[0].arguments == '{"at":"\\u0073ky"}'
    history = (ASK, *returned(done))
    second, data, done = asked(template, history, thought + SAMPLED)
    assert second.startswith(f"{first}{thought}{SAMPLED}<|im_end|>\n")
    assert any("blue <|im_end|>" in second[slice(*span)] for span in data)
    third, *_ = asked(template, (*history, *returned(done)), "Blue.")
    assert third.startswith(f"{second}{thought}{SAMPLED}<|im_end|>\n")


def test_another_history_is_written_by_the_template(renderer: Renderer) -> None:
    """An earlier message was changed, or the id is unknown: nothing is put back."""
    template = ChatTemplate(THINKING, renderer=renderer)
    _, _, done = asked(template, (ASK,), SAMPLED)
    unknown = (ASK, *returned(done, id="other"))
    changed = (Message("user", "Who?"), *returned(done))
    for history in (unknown, changed):
        prompt, *_ = asked(template, history, "Blue.")
        assert '{"name": "look", "arguments": {"at": "sky"}}' in prompt
        assert SAMPLED not in prompt


def test_what_is_kept_is_bounded(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls used longest ago are forgotten."""
    monkeypatch.setattr("localmoe.chat.replay.MOST_CHARACTERS", 6000)
    template = ChatTemplate(THINKING, renderer=renderer)
    kept = template.replay
    for _ in range(20):
        asked(template, (ASK,), SAMPLED)
    assert 0 < len(kept._kept) < 20
    assert kept._size <= 6000
