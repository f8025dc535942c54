"""A program written against the package as pip installs it passes the strictest type check."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
PACKAGED = ("localmoe", "models", "LICENSE", "README.md", "pyproject.toml", "setup.py")
BUILD = "from setuptools import build_meta; build_meta.build_wheel('dist')"

PROGRAM = """\
import asyncio
from collections.abc import AsyncIterator
from typing import Unpack, assert_never

import localmoe


def tell(event: localmoe.ChatEvent) -> str:
    if isinstance(event, localmoe.PrefillProgress):
        return f"{event.done / event.total:.0%}"
    if isinstance(event, localmoe.ReasoningDelta | localmoe.AnswerDelta):
        return event.text
    if isinstance(event, localmoe.ToolCallBegin):
        return event.name
    if isinstance(event, localmoe.ToolCallDelta | localmoe.ToolCallEnd):
        return ""
    if isinstance(event, localmoe.TurnDone):
        return f"{event.usage.completion_tokens} tokens, {event.finish_reason}"
    assert_never(event)


def ask(model: localmoe.LoadedModel, **options: Unpack[localmoe.SamplingOptions]) -> str:
    messages = [{"role": "user", "content": "Three rivers?"}]
    with model.chat(messages, think="off", max_tokens=99, stop=["END"], **options) as stream:
        told = [tell(event) for event in stream]
    done = stream.result()
    return done.answer + "".join(told) if done.no_answer is None else done.no_answer.message


async def pieces(model: localmoe.LoadedModel, question: str) -> AsyncIterator[str]:
    async with model.chat(question, schema={"type": "string"}) as stream:
        async for event in stream:
            if isinstance(event, localmoe.AnswerDelta):
                yield event.text


async def main() -> None:
    options: localmoe.SamplingOptions = {"temperature": 0.5, "top_k": 40, "seed": None}
    wishes = localmoe.Wishes(threads=2, cache="off")
    try:
        with localmoe.load("nano", context=2048, wishes=wishes, progress=print) as model:
            print(ask(model, **options), model.count_tokens("Hello"), model.plan.verdict.fits)
            talk: localmoe.Conversation = model.begin(system="Be brief.", **options)
            files = [localmoe.read_attachment("a.txt")]
            print(localmoe.result(talk.ask("Why?", files)).answer, talk.session.undo())
            print([piece async for piece in pieces(model, "Which?")])
    except (localmoe.UnknownModelError, localmoe.EngineBusyError) as error:
        print(error.code, error.message, error.hint or "", error.to_json())


asyncio.run(main())
"""
WRONG = """\
import localmoe

with localmoe.load(context="8k") as model:
    model.chat("Hello", temperature="0.5")
    model.chat("Hello", tempreature=0.5)
    model.chat(5).result().answr
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment into which the built wheel was unpacked, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    skip = shutil.ignore_patterns("__pycache__", "*.so", "*.gguf")
    for name in PACKAGED:
        source, target = ROOT / name, folder / "source" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=skip)
        else:
            shutil.copy(source, target)
    # The compiled helper has no types: the package installs without it where nothing compiles it.
    run([sys.executable, "-c", BUILD], cwd=folder / "source", env=os.environ | {"CC": "false"})
    run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
    (wheel,) = (folder / "source/dist").glob("*.whl")
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return folder / "venv/bin/python"


def run(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def checked(python: Path, program: str, folder: Path) -> list[str]:
    """The lines of mypy about a program that stands in an empty folder."""
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
    command += ["--cache-dir", str(python.parents[1] / "cache"), "--python-executable", str(python)]
    done = subprocess.run([*command, "program.py"], cwd=folder, capture_output=True, text=True)
    return (done.stdout + done.stderr).splitlines()


def test_a_strict_program(python: Path, tmp_path: Path) -> None:
    """Options in ``**``, every kind of event, streams of both kinds, errors: nothing is Any."""
    assert checked(python, PROGRAM, tmp_path) == []


def test_a_wrong_program(python: Path, tmp_path: Path) -> None:
    """The check can fail: each wrong line is found, so types were read at all."""
    lines = {line.split(":")[1] for line in checked(python, WRONG, tmp_path) if "error:" in line}
    assert lines == {"3", "4", "5", "6"}
