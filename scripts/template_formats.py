"""The table of docs/templates.md: what is found out from each template of the engine's package.

python -m scripts.template_formats > docs/templates.md
"""

from __future__ import annotations

from localmoe.chat.answer_format import AnswerFormat
from localmoe.chat.renderer import Renderer
from localmoe.chat.template import ChatTemplate
from scripts import engine_source

HEAD = """\
# Formats found out from chat templates

The chat templates in the source package of the engine (`vendor/llama.cpp/models/templates`), and
what `localmoe/chat/answer_format.py` finds out from each without knowing its name: the marks of
thinking, what a model writes before its answer, and what ends it. "From the list": the template
shows nothing, so the marks in use (`KNOWN`) are looked for. "Open": the prompt itself ends inside
the thinking. Thinking is left as the template does it by itself (`--think auto`).
Made by `python -m scripts.template_formats`.

| template | thinking | prompt | before the answer | after it |
|---|---|---|---|---|
"""


def main() -> None:
    rows = []
    with Renderer() as renderer:
        for name, text in engine_source.templates().items():
            template = ChatTemplate(text, "<s>", "</s>", renderer=renderer)
            rows.append(row(name, template.format_of({})))
    print(HEAD + "\n".join(sorted(rows, key=str.lower)))


def row(name: str, found: AnswerFormat) -> str:
    marks = found.thinking[0]
    thinking = f"{code(marks.start)} … {code(marks.end)}" if found.told else "from the list"
    state = "open" if found.is_open else ""
    end = found.answer_end if len(found.answer_end) < 80 else f"{found.answer_end[:60]}…"
    return f"| {name} | {thinking} | {state} | {code(found.answer_start)} | {code(end)} |"


def code(text: str) -> str:
    shown = text.strip().replace("|", "\\|").replace("\n", "⏎")
    return f"`{shown}`" if shown else ""


if __name__ == "__main__":
    main()
