"""llama.cpp's own parser of answers as an oracle: who reads what the engine's templates write?"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import engine_source, llama_chat_parser
from tests.chat.calls_of_templates import Family, patient_renderer
from tests.chat.test_calls_of_templates import ARGUMENTS, LOSSY, NO_CALLS, SCHEMAS
from tests.soak.conftest import Figures

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "It.", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
MOST_ENDS = 12
ASK = [{"role": "user", "content": "4850731"}]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    path = llama_chat_parser.program(Path.home() / ".cache" / "localmoe-dev" / "llama-chat-parser")
    with subprocess.Popen(
        [path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process
        assert process.stdin
        process.stdin.close()


def reads(
    llama: subprocess.Popen[str], source: str, answers: Iterable[str], calls: list[tuple[str, Any]]
) -> bool:
    """Whether it reads these calls, of any of the answers, where the model may think or not."""
    return any(
        said_by(llama, source, answer, thinking=thinking) == calls
        for answer in answers
        for thinking in (True, False)
    )


def said_by(
    llama: subprocess.Popen[str], source: str, answer: str, *, thinking: bool
) -> list[tuple[str, Any]] | str:
    """The calls that it reads, or its error."""
    assert llama.stdin and llama.stdout
    asked = {"template": source, "bos": "<s>", "eos": "</s>", "messages": ASK, "tools": TOOLS}
    llama.stdin.write(json.dumps(asked | {"answer": answer, "thinking": thinking}) + "\n")
    llama.stdin.flush()
    reply = json.loads(llama.stdout.readline())
    if "error" in reply:
        return str(reply["error"])
    try:
        return [(call["name"], json.loads(call["arguments"])) for call in reply["calls"]]
    except ValueError:
        return f"arguments that are no JSON: {reply['calls']}"


def test_llama_reads_no_call_that_is_lost_here(
    llama: subprocess.Popen[str], figures: Figures
) -> None:
    """Where the two disagree about what a template wrote, it is llama.cpp that lost something."""
    figures |= {"answers": 0, "read by both": 0, "read here alone": 0}
    lost = []
    with patient_renderer() as renderer:
        for name, source in sorted(engine_source.templates().items()):
            if name in NO_CALLS or name in LOSSY:
                continue
            family = Family.of(source, renderer)
            for arguments in ARGUMENTS:
                calls: list[tuple[str, Any]] = [("get_weather", arguments)]
                if arguments and family.calls.several:
                    calls.append(("get_time", {"city": "Rome"}))
                answers = ways_to_end(family, family.written(SCHEMAS, calls))
                here = family.read(answers[0], SCHEMAS, (3,)).parsed() == calls
                there = reads(llama, source, answers, calls)
                figures["answers"] += 1
                figures["read by both"] += here and there
                figures["read here alone"] += here and not there
                if here and not there:
                    print(name, ARGUMENTS.index(arguments), repr(answers[0]))
                if there and not here:
                    lost.append((name, answers[0]))
    assert not lost


def ways_to_end(family: Family, text: str) -> list[str]:
    """An answer up to the result of its last call, and up to each mark that it may end with."""
    calls = family.calls
    text = text.partition("9172640")[0]
    marks = {calls.end.strip(), calls.call_end.strip(), *"]})>"} - {""}
    ends = {found.end() for mark in marks for found in re.finditer(re.escape(mark), text)}
    return [text, *(text[:end] for end in sorted(ends, reverse=True)[:MOST_ENDS])]
