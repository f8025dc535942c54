"""Errors name a setting as their reader calls it: by option, or by argument."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import localmoe
from localmoe import wording
from localmoe.cli.options import OPTIONS
from localmoe.engine.protocol import error_to_message, message_to_error
from localmoe.errors import ContextOverflowError

SOURCE = Path(localmoe.__file__).parent
# Rooms whose errors only a command line meets: its own, measuring, building, serving a worker.
NOT_PYTHON = ("cli", "terminal", "bench", "routing")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


@pytest.mark.parametrize(
    ("marked", "typed", "python"),
    [
        (wording.option("ctx", 8192), "--ctx 8192", "context=8192"),
        (f"a smaller {wording.option('ctx')}", "a smaller --ctx", "a smaller context"),
        (wording.option("think", "low"), "--think low", 'think="low"'),
        (wording.option("cache", "off"), "--cache off", 'wishes=Wishes(cache="off")'),
        (wording.option("vram"), "--vram", "Wishes.vram"),
        (
            wording.marked("it fits with --gpu-layers all --n-cpu-moe 3"),
            "it fits with --gpu-layers all --n-cpu-moe 3",
            "it fits with wishes=Wishes(gpu_layers=-1, n_cpu_moe=3)",
        ),
        (
            wording.marked("it fits with --kv-type q8_0 --ctx 4096"),
            "it fits with --kv-type q8_0 --ctx 4096",
            'it fits with context=4096, wishes=Wishes(type_k="q8_0", type_v="q8_0")',
        ),
        (
            wording.marked("it fits without --experts-on and --override"),
            "it fits without --experts-on and --override",
            "it fits without Wishes.experts_on and Wishes.overrides",
        ),
        (wording.marked("--no-history, --context"), "--no-history, --context", None),
    ],
)
def test_a_setting_in_either_language(marked: str, typed: str, python: str | None) -> None:
    """The same text for a command line and for a program; what is no setting stays."""
    assert wording.typed(marked) == typed
    assert wording.in_python(marked) == (typed if python is None else python)


def test_the_tables_name_what_there_is() -> None:
    """Each option exists, and each argument is one of ``load``, ``chat`` or ``Wishes``."""
    options = {flag.removeprefix("--") for option in OPTIONS for flag in option.flags}
    assert {*wording.ARGUMENTS, *wording.WISHES, *wording.CALLS} <= options
    arguments = {
        *inspect.signature(localmoe.load).parameters,
        *inspect.signature(localmoe.LoadedModel.chat).parameters,
    }
    assert {text.partition("=")[0] for text in wording.ARGUMENTS.values()} <= arguments
    fields = {field.name for field in dataclasses.fields(localmoe.Wishes)}
    written = {name for text in wording.WISHES.values() for name in re.findall(r"(\w+)=", text)}
    assert written <= fields
    for text in wording.CALLS.values():
        assert hasattr(localmoe.LoadedModel, text.removeprefix("model."))


def test_an_error_speaks_to_its_reader_also_from_the_worker() -> None:
    """``hint`` for a program, ``typed`` and the JSON document for a command line."""
    first = ContextOverflowError("too long", hint=f"or use {wording.option('ctx', 4096)}")
    for error in (first, message_to_error(error_to_message(first))):
        assert error.hint == "or use context=4096"
        assert error.typed() == ("too long", "or use --ctx 4096")
        assert error.to_json()["error"] == {
            "code": "context_full",
            "message": "too long",
            "hint": "or use --ctx 4096",
        }


def texts_of_errors(path: Path) -> list[tuple[int, str]]:
    """Every text in a call of an error class, and in what is assigned to a name like HINT."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        name = ""
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id.replace("HINT", "Error").replace("hint", "Error")
        if name.endswith("Error"):
            found += [
                (part.lineno, part.value)
                for part in ast.walk(node)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
    return found


def test_no_error_of_the_api_names_an_option_unmarked() -> None:
    """An option in an error's text stands in a command that the text quotes, or is marked."""
    allowed = re.compile(
        r"localmoe [a-z]+ .*--|--machine|--yes|--remote|--overflow|--session|--no-history|--port"
        r"|pip install|hf download|--include|--local-dir|--dry-run|--host|--no-cache-dir|--ram, or"
        r"|--domains"
    )
    for path in sorted(SOURCE.rglob("*.py")):
        if path.relative_to(SOURCE).parts[0] in NOT_PYTHON:
            continue
        for line, text in texts_of_errors(path):
            if OPTION.search(text):
                assert allowed.search(text), f"{path}:{line}: {text}"


def test_a_plan_told_to_a_program_names_no_option() -> None:
    """Whatever options the planner's texts name, the words for a program name arguments."""
    seen = set()
    for path in sorted((SOURCE / "planning").glob("*.py")):
        if path.name == "llama_args.py":  # llama.cpp's options, which are none of ours
            continue
        tree = ast.parse(path.read_text("utf-8"))
        docs = {
            ast.get_docstring(node, clean=False)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        }
        for node in ast.walk(tree):
            text = getattr(node, "value", None)
            if not isinstance(text, str) or text in docs:
                continue
            seen |= set(OPTION.findall(text))
            left = OPTION.findall(wording.for_program(text))
            assert left in ([], ["--remote"]), f"{path}: {text}"  # no program names other machines
    assert {"--ctx", "--n-cpu-moe", "--kv-type", "--ram"} <= seen
