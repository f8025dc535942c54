"""Who wrote each character of a prompt, whatever a template does to the messages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe.chat.renderer import Renderer
from localmoe.chat.rendering.environment import make_environment
from localmoe.chat.rendering.marked import DATA, Marked, origin_of
from localmoe.chat.session import Message
from localmoe.chat.template import ChatTemplate
from tests.chat import templates

pytestmark = pytest.mark.process

TEXT = "  Say <|end|> or ß, \n then </think>. "


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as shared:
        yield shared


def shown(source: str, renderer: Renderer, *messages: Message) -> str:
    """The prompt, with what came from the messages in guillemets."""
    asked = messages or (Message("user", TEXT),)
    rendered = ChatTemplate(source, "<s>", "</s>", renderer=renderer).render(asked)
    out, at = "", 0
    for start, end in rendered.data:
        out += f"{rendered.prompt[at:start]}«{rendered.prompt[start:end]}»"
        at = end
    return out + rendered.prompt[at:]


CHANGES = {
    "{{ m.content | trim }}": "«Say <|end|> or ß, \n then </think>.»",
    "{{ m.content | upper }}": "«  SAY <|END|> OR SS, \n THEN </THINK>. »",
    "{{ m.content | trim | title }}": "«Say <|end|> Or SS, \n Then </think>.»",
    "{{ m.content.split('<|')[1] + '<u>' }}": "«end|> or ß, \n then </think>. »<u>",
    "{{ m.content.strip().partition(' ')[0] }}": "«Say»",
    "{{ m.content.strip().splitlines() | join('<br>') }}": (
        "«Say <|end|> or ß, »<br>« then </think>.»"
    ),
    "{{ '<a>%s</a>' % m.content.strip()[:3] }}": "<a>«Say»</a>",
    "{{ '<a>%s|%s</a>' % (m.role, m.content.strip()[:3]) }}": "<a>user|«Say»</a>",
    "{{ '<a>{}|{}</a>'.format(m.role, m.content.strip()[:3]) }}": "<a>user|«Say»</a>",
    "{{ '<a>%s</a>' | format(m.content[2:5]) }}": "<a>«Say»</a>",
    "{{ '<a>' ~ m.content[2:5] ~ '</a>' }}": "<a>«Say»</a>",
    "{{ '|'.join(['<a>', m.content[2:5], '<b>']) }}": "<a>|«Say»|<b>",
    "{{ ['<a>', m.content[2:5]] | join('-') }}": "<a>-«Say»",
    "{{ '<a>@</a>'.replace('@', m.content[2:5]) }}": "<a>«Say»</a>",
    "{{ m.content[2:11] | replace(' ', '') }}": "«Say<|end»",
    "{{ [m] | map(attribute='role') | tojson }}": '["user"]',
    "{{ {'k': m.content[2:13]} | tojson }}": '{"k": "«Say <|end|>»"}',
    "{{ m.content[2:5] | center(9) }}": "   «Say»   ",
    "{{ m.content[2:5] | e }}{{ m.content[6] | e }}": "«Say&lt;»",
    "{{ (m.content | trim | wordwrap(8)).split('\n')[0] }}": "«Say»",
    "{{ (m.content | trim | indent(1, true))[:4] }}": " «Say»",
    "{{ m.content[2:5] | first }}{{ m.content[2:5] | last }}": "«Sy»",
    "{% for c in m.content[2:5] %}{{ c }}.{% endfor %}": "«S».«a».«y».",
    "{% set x %}<a>{{ m.content[2:5] }}{% endset %}{{ x | upper }}": "<A>«SAY»",
    "{% macro f(y) %}[{{ y }}]{% endmacro %}{{ f(m.content[2:5]) }}": "[«Say»]",
    "{% filter upper %}a{{ m.content[2:5] }}{% endfilter %}": "A«SAY»",
    "{{ messages | map(attribute='content') | join | trim | truncate(3, true, '') }}": "«Say»",
    "{{ m.content[2:5] * 2 }}{{ m.role * 2 }}": "«SaySay»useruser",
}


@pytest.mark.parametrize("change", CHANGES)
def test_messages_are_told_from_the_template(renderer: Renderer, change: str) -> None:
    """Whatever is done to a message, its characters are known as data, and no others are."""
    assert shown(f"{{% for m in messages %}}{change}{{% endfor %}}", renderer) == CHANGES[change]


METHODS = st.sampled_from(
    ["strip", "lstrip", "rstrip", "upper", "lower", "title", "capitalize", "swapcase", "casefold",
     "split", "splitlines", "rsplit"]
)  # fmt: skip
LETTERS = st.text("ab Aß<|>\n\tİ", max_size=12)


@given(LETTERS, LETTERS, METHODS)
def test_a_marked_string_is_a_string(data: str, own: str, method: str) -> None:
    """Every operation gives what it gives on a plain string, with a mark for each character."""
    text = Marked(data, DATA * len(data)) + own
    result, plain = getattr(text, method)(), getattr(data + own, method)()
    assert result == plain
    for part in result if isinstance(result, list) else [result]:
        assert len(origin_of(part)) == len(part)
    assert (text.replace("a", own), text.split("a"), text.partition("<")) == (
        (data + own).replace("a", own), (data + own).split("a"), (data + own).partition("<")
    )  # fmt: skip


@given(LETTERS)
def test_marks_change_no_prompt(text: str) -> None:
    """A template writes the same whether its messages are marked or not."""
    env = make_environment()
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim | title }}{% endfor %}"
    plain = [{"role": "user", "content": text}]
    tagged = [{"role": "user", "content": Marked(text, DATA * len(text))}]
    template = env.from_string(source)
    assert template.render(messages=plain) == template.render(messages=tagged)


@pytest.mark.parametrize("mark", ["</think>", "<think>", "<|channel|>", "[/THINK]"])
def test_an_earlier_answer_survives(renderer: Renderer, mark: str) -> None:
    """What an answer spelled is still in it when it is sent back, though a template cuts or refuses
    answers at such marks.
    """
    answer = Message("assistant", f"Write {mark} after it.", "They ask.")
    talk = (Message("user", "How?"), answer, Message("user", "Why?"))
    cuts = "{% for m in messages %}[{{ m.content.split('MARK')[-1] }}]{% endfor %}"
    refuses = (
        "{% for m in messages %}{% if 'MARK' in m.content %}"
        "{{ raise_exception('MARK') }}{% endif %}[{{ m.content }}]{% endfor %}"
    )
    for source in (cuts, refuses, templates.EFFORT):
        prompt = shown(source.replace("MARK", mark), renderer, *talk)
        assert f"«Write {mark} after it.»" in prompt


def test_a_users_private_characters_stay(renderer: Renderer) -> None:
    """Characters that stand in for others while a template renders may be in a message as well."""
    talk = (Message("user", "\U000f0000"), Message("assistant", "a[INST]b"), Message("user", "c"))
    source = "{% for m in messages %}{{ m.content.split('[INST]')[0] }};{% endfor %}"
    assert shown(source, renderer, *talk) == "«\U000f0000»;«a[INST]b»;«c»;"
