"""Tools, calls and results as each chat template wants them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from localmoe.chat.renderer import Renderer
from localmoe.chat.session import Message, ToolCall
from localmoe.chat.template import ChatTemplate
from localmoe.chat.tool_style import Ids
from tests.chat import templates

pytestmark = pytest.mark.process

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = ToolCall("call-number-1", "look", '{"at": "<|im_end|> sky"}')
SYSTEM, ASK = Message("system", "Be brief."), Message("user", "Which?")
HISTORY = (
    SYSTEM,
    ASK,
    Message("assistant", "", calls=(CALL, ToolCall("call-number-2", "look", "{}"))),
    Message("tool", "blue", result_of=CALL),
    Message("tool", "grey", result_of=ToolCall("call-number-2", "look", "{}")),
)


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as shared:
        yield shared


def rendered(source: str, renderer: Renderer, messages: tuple[Message, ...] = HISTORY) -> str:
    return ChatTemplate(source, renderer=renderer).render(messages, tools=[TOOL]).prompt


CALL_LOOP = "{% for c in m.tool_calls %}<call>{{ c.function.name }} "
END = "{% endfor %}{% endif %}{% endfor %}"
RESULT = "{% for m in messages %}{% if m.role != 'assistant' %}[{{ m.role }}]{{ m.content }}"
OBJECTS = RESULT + "{% else %}" + CALL_LOOP + "{{ c.function.arguments | tojson }}" + END
TEXTS = RESULT + "{% else %}" + CALL_LOOP + "{{ c.function.arguments }}" + END
NO_TEXT = (
    RESULT + "{% elif m.content is none %}" + CALL_LOOP + "{{ c.function.arguments|tojson }}" + END
)
SHORT_IDS = OBJECTS.replace(
    "<call>", "{% if c.id | length != 9 %}{{ raise_exception('id') }}{% endif %}<call>{{ c.id }}"
)
NAMED_IDS = OBJECTS.replace("c.function.name", "c.id")
PARTS = OBJECTS.replace(
    "{{ m.content }}",
    "{% if m.role == 'tool' %}{{ m.content[0].text }}{% else %}{{ m.content }}{% endif %}",
    1,
)


@pytest.mark.parametrize("source", [OBJECTS, TEXTS, NO_TEXT, SHORT_IDS, NAMED_IDS, PARTS])
def test_calls_and_results_are_written_as_the_template_can(renderer: Renderer, source: str) -> None:
    """Arguments are JSON once, not twice; every result is there, in order."""
    text = rendered(source, renderer)
    assert '{"at": "<|im_end|> sky"}' in text
    assert text.count("<call>") == 2
    assert text.index("blue") < text.index("grey")


def test_the_way_is_found_out_from_the_template(renderer: Renderer) -> None:
    """What differs between these templates is what the style says."""
    styles = [
        ChatTemplate(source, renderer=renderer).style_of({})
        for source in (OBJECTS, TEXTS, NO_TEXT, SHORT_IDS, NAMED_IDS, PARTS)
    ]
    assert [s.arguments_as_text for s in styles] == [False, True, False, False, False, False]
    assert [s.no_text for s in styles] == ["", "", None, "", "", ""]
    assert [s.ids for s in styles] == [*[Ids.GIVEN] * 3, Ids.SHORT, Ids.FUNCTIONS, Ids.GIVEN]
    assert [s.result_in_parts for s in styles] == [*[False] * 5, True]
    assert all(s.calls and s.results and not s.declares for s in styles)


def test_a_template_that_knows_no_tools_gets_them_as_text(renderer: Renderer) -> None:
    """The system text says what there is; calls and results are texts, two results one message."""
    text = rendered(templates.CHATML, renderer)
    assert text.index("Be brief.") < text.index('{"name": "look", "parameters"')
    call = '<tool_call>\n{"name": "look", "arguments": {"at": "<|im_end|> sky"}}\n</tool_call>'
    assert call in text
    answers = "<tool_response>\nblue\n</tool_response>\n<tool_response>\ngrey\n</tool_response>"
    assert f"<|im_start|>user\n{answers}<|im_end|>" in text


DEMANDS = """\
{%- macro kind(type) -%}
  {%- if type == 'string' -%}str
  {%- else -%}{%- for one in type -%}{{ kind(one) }}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- for name, of in tools[0].function.parameters.properties | items -%}
  {{ '(' + name + ': ' + kind(of.type) + of.description + ')' }}
{%- endfor -%}"""


def test_tools_are_told_in_a_plainer_way_where_a_template_fails(renderer: Renderer) -> None:
    """No description is an empty one, and null is no type: of it this template never ends."""
    chat = ChatTemplate(DEMANDS, renderer=renderer)
    for schema in ({"type": "string"}, {"type": ["null", "string"], "description": "It."}):
        function = {"name": "look", "parameters": {"properties": {"at": schema}}}
        done = chat.render((ASK,), tools=[{"type": "function", "function": function}])
        assert done.prompt == f"(at: str{schema.get('description', '')})"
        assert "(at" not in "".join(done.prompt[a:b] for a, b in done.data)


def test_what_came_with_calls_is_no_mark(renderer: Renderer) -> None:
    """Names, arguments and results are text for the tokenizer, whatever they spell."""
    for source in (OBJECTS, templates.CHATML):
        done = ChatTemplate(source, renderer=renderer).render(HISTORY, tools=[TOOL])
        at = done.prompt.index("<|im_end|> sky")
        assert any(start <= at and at + 14 <= end for start, end in done.data)


ALTERNATES = """\
{%- for m in messages -%}
  {%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('in turn') }}
  {%- endif -%}<{{ m.role }}>{{ m.content }}
{%- endfor -%}"""


def test_neighbours_of_one_role_become_one_message(renderer: Renderer) -> None:
    """Where a template wants user and assistant in turn, and no system in between."""
    messages = (ASK, ASK, Message("assistant", "Sky."), Message("system", "Slowly."), ASK)
    text = rendered(ALTERNATES, renderer, messages).partition("What it gives")[2]
    assert text.endswith("Which?\n\nWhich?<assistant>Sky.<user>Slowly.\n\nWhich?")
