"""Answers that others have collected, with what should be read of them: canitoolcall.

They are recorded or rendered answers of nine families, true and broken. Here the engine's chat
templates give the formats; what is decided otherwise here is named below.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from localmoe.chat.renderer import Renderer
from localmoe.chat.thinking import ThinkLevel
from localmoe.errors import EngineError
from scripts import engine_source
from tests.chat.calls_of_templates import SPECIAL, Family, patient_renderer
from tests.needs import missing

pytestmark = pytest.mark.process

LLAMA_4 = (
    "{% for m in messages %}<|header_start|>{{ m.role }}<|header_end|>\n\n{{ m.content }}<|eot|>"
    "{% endfor %}{# <|python_start|> #}"
)
TEMPLATES = {
    "deepseek-ai/DeepSeek-V3-0324": "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-ai/DeepSeek-V3.1": "deepseek-ai-DeepSeek-V3.1",
    "deepseek-ai/DeepSeek-V3.2": "deepseek-ai-DeepSeek-V3.2",
    "deepseek-ai/DeepSeek-V4-Flash": "deepseek-ai-DeepSeek-V4",
    "deepseek-ai/DeepSeek-V4.1-Flash": "DeepSeek-V4.1",
    "google/gemma-4-31B-it": "google-gemma-4-31B-it",
    "zai-org/GLM-4.5": "GLM-4.6",
    "zai-org/GLM-4.7": "GLM-4.7-Flash",
    "zai-org/GLM-5.3": "GLM-4.7-Flash",
    "openai/gpt-oss-20b": "openai-gpt-oss-120b",
    "moonshotai/Kimi-K2-Instruct-0905": "Kimi-K2-Instruct",
    "moonshotai/Kimi-K2.6": "Kimi-K2-Thinking",
    "moonshotai/Kimi-K3": "Kimi-K3",
    "meta-llama/Llama-3.3-70B-Instruct": "meta-llama-Llama-3.3-70B-Instruct",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "Llama-4",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistralai-Mistral-Nemo-Instruct-2407",
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": "Mistral-Small-3.2-24B-Instruct-2506",
    "mistralai/Ministral-3-14B-Instruct-2512": "mistralai-Ministral-3-14B-Reasoning-2512",
    "mistralai/Ministral-3-14B-Reasoning-2512": "mistralai-Ministral-3-14B-Reasoning-2512",
    "mistralai/Magistral-Small-2509": "mistralai-Ministral-3-14B-Reasoning-2512",
    "mistralai/Magistral-Small-2506": "unsloth-mistral-Devstral-Small-2507",
    "mistralai/Devstral-Small-2507": "unsloth-mistral-Devstral-Small-2507",
    "Qwen/Qwen3-0.6B": "Qwen-Qwen3-0.6B",
    "Qwen/Qwen3-4B-Instruct-2507": "Qwen-Qwen3-0.6B",
    "Qwen/Qwen3-4B-Thinking-2507": "Qwen-QwQ-32B",
    "Qwen/Qwen3.5-9B": "Qwen3.5-4B",
    "Qwen/Qwen3.8-27B": "Qwen3.5-4B",
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": "Qwen3-Coder",
    "Qwen/Qwen3-Coder-Next": "Qwen3-Coder",
}
"""Model → the chat template of the engine's collection that writes as its own does."""
KNOWN_MISSES = {
    "deepseek/sglang-v4-self-closing-invoke": "a tag that closes itself, as no template writes it",
    "glm/glm47-missing-last-close-arg-value": "an end mark is missing: text for the reader",
    "qwen3-xml/vllm-coder-missing-close-parameter": "the same",
    "qwen3-xml/bug-missing-close-parameter-before-function": "the same",
    "qwen3-xml/llamacpp-q35-call-inside-think": "within thinking that has not ended",
    "kimi/k3-control-marker-text-in-value": "its ids make text of what this test takes for tokens",
    "llama/l3-sglang-text-before-python-tag": "Llama 3 without its template's form",
    "llama/l4-truncated-missing-close-bracket": "the first call is whole, and kept",
}


def with_own(sources: Mapping[str, str]) -> dict[str, str]:
    """The engine's templates, and two that are made here.

    Llama 4's form is in a list. DeepSeek V4.1 comes with a program in place of a template: its
    calls are V4's with other marks.
    """
    other_marks = r"dsml_token \+ '(?:tool_)?(calls|invoke|parameter)"
    v4 = sources["deepseek-ai-DeepSeek-V4"]
    v4_1 = re.sub(other_marks, r"dsml_token + ' \1", v4)
    return {**sources, "DeepSeek-V4.1": v4_1, "Llama-4": LLAMA_4}


def fixtures() -> list[dict[str, Any]]:
    found = importlib.util.find_spec("canitoolcall")
    if found is None or found.origin is None:
        missing("canitoolcall is not installed", expected=False)
    folder = Path(found.origin).parent / "_data" / "fixtures"
    files = sorted(folder.glob("*/*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with patient_renderer() as shared:
        yield shared


def test_calls_that_others_collected(renderer: Renderer) -> None:
    """From three cuts each, the calls and no others; a broken or cut-off call is none."""
    try:
        sources = with_own(engine_source.templates())
    except (EngineError, OSError) as error:
        missing(f"the engine's source package cannot be had: {error}", expected=False)
    families: dict[tuple[str, object], Family] = {}
    wrong, judged = [], Counter[str]()
    for fixture in fixtures():
        model = fixture["models"][0]
        thinking = fixture.get("thinking")
        key = (TEMPLATES[model], thinking)
        if key not in families:
            families[key] = family_of(sources[key[0]], thinking, renderer)
        judged[fixture["family"]] += 1
        if fixture["id"] not in KNOWN_MISSES and not reads(families[key], fixture):
            wrong.append(fixture["id"])
    assert not wrong
    assert sum(judged.values()) >= 469, judged


def family_of(source: str, thinking: bool | None, renderer: Renderer) -> Family:
    levels = {None: ThinkLevel.AUTO, True: ThinkLevel.HIGH, False: ThinkLevel.OFF}
    family = Family.of(source, renderer)
    arguments = family.template.think_control.attempts(levels[thinking])[0]
    return Family.of(source, renderer, **arguments)


def reads(family: Family, fixture: dict[str, Any]) -> bool:
    """Whether the calls of a fixture are read, and the same from every cut."""
    text, answers = fixture["raw_output"], family.answers
    marks = answers.thinking[0]
    begins = fixture.get("generation_prompt") or ""
    opened = begins.rstrip().endswith(marks.start) if marks.start and begins else None
    if opened is None:  # the answer shows whether its thinking was begun
        opened = marks.end in text and bool(marks.start) and marks.start not in text
    answers = dataclasses.replace(answers, is_open=opened)
    schemas = {
        tool["function"]["name"]: tool["function"].get("parameters") or {}
        for tool in fixture["tools"]
    }
    specials = sorted({*family.specials, *SPECIAL.findall(text)})
    found = [
        family.read(
            text,
            schemas,
            sizes,
            specials=specials,
            answers=answers,
            cut_off="truncated" in fixture["tags"],
        )
        for sizes in ((len(text),), (1,), (4, 2))
    ]
    expected = fixture.get("expected") or {"tool_calls": []}
    calls = [(call["name"], call["arguments"]) for call in expected["tool_calls"]]
    return found[0] == found[1] == found[2] and found[0].parsed() == calls
