"""Marks of thinking and of answers, found out from a chat template alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from localmoe.chat.answer_format import KNOWN, AnswerFormat, Marks
from localmoe.chat.renderer import Renderer
from localmoe.chat.template import ChatTemplate
from localmoe.chat.thinking import ThinkLevel
from localmoe.errors import EngineError
from scripts import engine_source
from tests.chat import templates
from tests.needs import missing

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as shared:
        yield shared


def format_of(source: str, renderer: Renderer, level: ThinkLevel = ThinkLevel.AUTO) -> AnswerFormat:
    template = ChatTemplate(source, "<s>", "</s>", renderer=renderer)
    return template.format_of(template.think_control.attempts(level)[0])


HEAD = "{% for m in messages %}{% if m.role == 'user' %}[U]{{ m.content }}[/U]{% else %}[A]"
TAIL = "[/A]{% endif %}{% endfor %}{% if add_generation_prompt %}[A]GENERATION{% endif %}"
SHOWN = (
    f"{HEAD}{{% if m.KEY %}}START\n{{{{ m.KEY }}}}\nEND\n\n{{% endif %}}{{{{ m.content }}}}{TAIL}"
)
HIDDEN = f"{HEAD}{{{{ m.content.split('END')[-1] }}}}{TAIL}"
EMPTY = (
    f"{HEAD}START{{{{ m.KEY | default('') }}}}END<answer>{{{{ m.content | trim }}}}</answer>{TAIL}"
)
OPENED = (
    f"{HEAD}{{{{ m.content }}}}[/A]{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}[A]"
    "{% if enable_thinking is defined and not enable_thinking %}START\n\nEND{% endif %}{% endif %}"
)

LETTERS = st.text("abcdefghijkxyzäö_", min_size=2, max_size=8)
FRAMES = st.sampled_from(
    [("<{}>", "</{}>"), ("<|{}|>", "<|/{}|>"), ("[{}]", "[/{}]"), ("⟪{}:on⟫", "⟪{}:off⟫"),
     ("<|{}_begin|>", "<|{}_end|>"), ("<{}:x>", "</{}:x>"), ("«{}»", "«!{}»")]
)  # fmt: skip
KEYS = st.sampled_from(["reasoning_content", "reasoning", "thinking"])


def marked(source: str, start: str, end: str, key: str, generation: str = "") -> str:
    source = source.replace("GENERATION", generation)
    return source.replace("START", start).replace("END", end).replace("KEY", key)


SLOW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SLOW
@given(name=LETTERS, frame=FRAMES, key=KEYS, opens=st.booleans())
def test_any_marks_are_found_where_a_template_shows_thinking(
    renderer: Renderer, name: str, frame: tuple[str, str], key: str, opens: bool
) -> None:
    """Start, end, the key under which thinking is given, and whether the prompt opens it."""
    start, end = (part.format(name) for part in frame)
    source = marked(SHOWN, start, end, key, f"{start}\n" if opens else "")
    found = format_of(source, renderer)
    assert (found.told, found.key, found.is_open) == (True, key, opens)
    assert found.thinking[0].end == end
    assert found.thinking[0].start == start


@SLOW
@given(name=LETTERS, frame=FRAMES, opens=st.booleans())
def test_any_marks_are_found_where_a_template_cuts_thinking_off(
    renderer: Renderer, name: str, frame: tuple[str, str], opens: bool
) -> None:
    """A template that drops earlier thinking says with what it ends, and with what it begins where
    the prompt opens it. Else only the end may be known, and text before it is then thinking.
    """
    start, end = (part.format(name) for part in frame)
    source = marked(HIDDEN, start, end, "", f"{start}\n" if opens else "")
    found = format_of(source, renderer)
    assert (found.told, found.is_open, found.thinking[0].end) == (True, opens, end)
    if opens:
        assert found.thinking[0].start == start
    else:
        assert found.thinking[0].start == start or found.thinking[0].end_alone


@SLOW
@given(name=LETTERS, frame=FRAMES, key=KEYS)
def test_marks_around_answers_are_found(
    renderer: Renderer, name: str, frame: tuple[str, str], key: str
) -> None:
    """Where earlier answers carry an empty thinking and marks of their own."""
    start, end = (part.format(name) for part in frame)
    assume(" " not in start)
    found = format_of(marked(EMPTY, start, end, key, start), renderer)
    assert found.told
    assert found.is_open
    assert found.thinking[0].end == f"{end}<answer>"
    assert found.answer_end.startswith("</answer>")


@SLOW
@given(name=LETTERS, frame=FRAMES)
def test_marks_are_found_in_the_switch(
    renderer: Renderer, name: str, frame: tuple[str, str]
) -> None:
    """A template that shows no thinking may still write an empty one when it is switched off."""
    start, end = (part.format(name) for part in frame)
    found = format_of(marked(OPENED, start, end, ""), renderer)
    assert found.thinking == (Marks(start, end),)
    assert not format_of(marked(OPENED, start, end, ""), renderer, ThinkLevel.OFF).is_open


def test_a_template_that_shows_nothing_gets_the_list(renderer: Renderer) -> None:
    """Then all marks in use are looked for."""
    found = format_of(templates.CHATML, renderer)
    assert (found.told, found.thinking) == (False, KNOWN)
    assert found == format_of("{{ raise_exception('no') }}", renderer)


EXPECTED = {  # of templates in the engine's source package: start, end, does the prompt open it?
    "Kimi-K3": ("", "<|close|>think<|sep|><|open|>response<|sep|>", True),
    "muse-glimmer": ("to=self<|message|>", "<|eom|><|start|>assistant", False),
    "openai-gpt-oss-120b": (
        "<|channel|>analysis<|message|>", "<|end|><|start|>assistant", False
    ),
    "upstage-Solar-Open-100B": ("<|think|>", "<|end|><|begin|>assistant", False),
    "google-gemma-4-31B-it": ("<|channel>thought", "<channel|>", False),
    "MiniMax-M3": ("<mm:think>", "</mm:think>", False),
    "tencent-Hy3": ("<think:opensource>", "</think:opensource>", False),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("[THINK]", "[/THINK]", False),
    "Apriel-1.6-15b-Thinker-fixed": (
        "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", True
    ),
    "ByteDance-Seed-OSS": ("<seed:think>", "</seed:think>", False),
    "Qwen-Qwen3-0.6B": ("<think>", "</think>", False),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": ("<think>", "</think>", True),
}  # fmt: skip


def test_templates_of_the_engine(renderer: Renderer) -> None:
    """Each of them is read without an error, and these give the marks that are written here."""
    try:
        texts = engine_source.templates()
    except (EngineError, OSError) as error:
        missing(f"the engine's source package cannot be had: {error}", expected=False)
    found = {name: format_of(text, renderer) for name, text in texts.items()}
    assert len(found) >= 60
    for name, (start, end, is_open) in EXPECTED.items():
        marks = found[name].thinking[0]
        assert (marks.start, marks.end, found[name].is_open) == (start, end, is_open), name
    assert sum(format_.told for format_ in found.values()) >= 40
