"""How each chat template of the engine's collection calls tools: docs/tools-families.md.

    python -m scripts.tools_table > docs/tools-families.md

Minutes. Read: the arguments of ``tests/chat/test_calls_of_templates.py`` as the template writes
them, read back from three cuts. Constrained: answers that had to be a call in this form, and are
valid ones; half of them by nano, which knows no tools and has no tokens for the marks, half by a
model that has such tokens and draws among all that is allowed. Others: the answers of canitoolcall
that are judged with this template.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import localmoe
from localmoe.chat.template import ChatTemplate
from localmoe.errors import LocalmoeError
from scripts import engine_source
from tests.chat.calls_of_templates import Family, constrained, drawing, patient_renderer
from tests.chat.test_call_grammar import SCHEMAS as TOOLS
from tests.chat.test_calls_of_others import TEMPLATES, family_of, fixtures, reads, with_own
from tests.chat.test_calls_of_templates import ARGUMENTS, SCHEMAS

DRAWS = 2  # of each model
MOST_TOKENS = 1600
HEAD = """\
# How each chat template calls tools

Written by `python -m scripts.tools_table`, which says what the columns count.

| template | form | found | read | streamed | constrained | others |
|---|---|---|--:|---|--:|--:|"""


def main() -> None:
    sources = with_own(engine_source.templates())
    judged, passed = Counter[str](), Counter[str]()
    print(HEAD)
    with (
        patient_renderer() as renderer,
        tempfile.TemporaryDirectory() as folder,
        localmoe.load("nano", context=8192, wishes=localmoe.Wishes(threads=1)) as nano,
    ):
        for fixture in fixtures():
            name = TEMPLATES[fixture["models"][0]]
            judged[name] += 1
            family = family_of(sources[name], fixture.get("thinking"), renderer)
            passed[name] += reads(family, fixture)
        for name, source in sorted(sources.items()):
            family = Family.of(source, renderer)
            read, pieces = _read(family)
            valid = _valid(nano, source)
            with drawing(Path(folder) / "drawing.gguf", source) as model:
                valid += _valid(model, source)
            calls = family.calls
            found = "derived" if calls.derived else "generic" if calls.is_generic else "listed"
            others = f"{passed[name]} of {judged[name]}" if judged[name] else "–"
            row = (
                name,
                calls.body.value,
                found,
                read,
                pieces,
                f"{valid} of {2 * DRAWS}",
                others,
            )
            print(f"| {' | '.join(row)} |", flush=True)


def _read(family: Family) -> tuple[str, str]:
    """How many of the arguments are read back, and whether they arrive in pieces."""
    same, whole = 0, ""
    for arguments in ARGUMENTS:
        calls: list[tuple[str, Any]] = [("get_weather", arguments)]
        try:
            text = family.written(SCHEMAS, calls)
        except LocalmoeError:
            continue
        cuts = ((1,), (4, 2), (len(text),))
        same += all(family.read(text, SCHEMAS, sizes).parsed() == calls for sizes in cuts)
    if not family.calls.derived and same == 0:
        return "writes none", "yes"
    whole = "by argument" if family.calls.body.value == "python" or family.calls.item_key else "yes"
    return f"{same} of {len(ARGUMENTS)}", whole


def _valid(model: localmoe.LoadedModel, source: str) -> int:
    """How many of the answers are valid calls, where one is demanded."""
    made = 0
    template = ChatTemplate(source, "<s>", "</s>", renderer=model.renderer)
    for seed in range(DRAWS):
        how = {"temperature": 1.5, "seed": seed, "max_tokens": MOST_TOKENS}
        try:
            done = constrained(model.engine, template, TOOLS, **how)
        except LocalmoeError as error:
            print(error, file=sys.stderr)
            continue
        made += done.finish_reason == "tool_calls"
    return made


if __name__ == "__main__":
    main()
