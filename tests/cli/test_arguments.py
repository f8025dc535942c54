"""The command line, parsed: no file is read and nothing is started."""

from __future__ import annotations

import re

import pytest

from localmoe.cli.arguments import (
    ModelAndPrompt,
    Options,
    help_text,
    model_and_prompt,
    only_model,
    parse,
)
from localmoe.cli.commands import COMMANDS
from localmoe.errors import UsageError

GIB = 1 << 30
NAMES = {"nano", "qwen3-30b-a3b", "qwen3-30b-a3"}  # the last: a near miss of an alias


def looks_like_model(word: str) -> bool:
    """A stand-in for the catalog: three names, files and repositories."""
    return word in NAMES or word.endswith(".gguf") or "/" in word


@pytest.mark.parametrize(
    ("argv", "model", "prompt"),
    [
        (["run"], None, ()),
        (["run", "hello"], None, ("hello",)),
        (["run", "hello", "world"], None, ("hello", "world")),
        (["run", "nano"], "nano", ()),
        (["run", "nano", "hello", "world"], "nano", ("hello", "world")),
        (["run", "hello", "nano"], None, ("hello", "nano")),
        (["run", "nano is what?"], None, ("nano is what?",)),
        (["run", "what is a/b testing"], None, ("what is a/b testing",)),
        (["run", "a/b", "hi"], "a/b", ("hi",)),
        (["run", "no-such.gguf"], "no-such.gguf", ()),
        (["run", "qwen3-30b-a3", "hi"], "qwen3-30b-a3", ("hi",)),
        (["run", "-m", "nano", "qwen3-30b-a3b", "hi"], "nano", ("qwen3-30b-a3b", "hi")),
        (["run", "hi", "-m", "nano"], "nano", ("hi",)),
        (["run", "--", "nano", "--temp"], None, ("nano", "--temp")),
        (["run", "mystery", "--", "nano"], "mystery", ("nano",)),
        (["run", "nano", "--temp", "0", "hi"], "nano", ("hi",)),
        (["run", "-m", "nano", "--", "--", "x"], "nano", ("--", "x")),
        (["run", "-"], None, ("-",)),
        (["run", "nano", "summarize", "-"], "nano", ("summarize", "-")),
        (["run", ""], None, ("",)),
        (["run", "two\nlines.gguf"], None, ("two\nlines.gguf",)),
    ],
)
def test_which_word_is_the_model(
    argv: list[str], model: str | None, prompt: tuple[str, ...]
) -> None:
    """The first word is MODEL only when it looks like one; ``-m`` and ``--`` settle the rest."""
    assert model_and_prompt(parse(argv), looks_like_model) == ModelAndPrompt(model, prompt)


@pytest.mark.parametrize(
    ("argv", "field", "value"),
    [
        (["-c", "4096"], "context", 4096),
        (["--ctx", "8k"], "context", 8192),
        (["-t", "3"], "threads", 3),
        (["--kv-type", "q8_0"], "type_k", "q8_0"),
        (["--kv-type", "q8_0"], "type_v", "q8_0"),
        (["-ctk", "q4_0", "--kv-type", "q8_0"], "type_k", "q4_0"),
        (["-ctv", "q4_0"], "type_v", "q4_0"),
        (["--ram", "7.5"], "ram", 7.5 * GIB),
        (["--vram", "0"], "vram", 0),
        (["--machine", "m.json"], "machine", "m.json"),
        (["-ngl", "99"], "gpu_layers", 99),
        (["-ngl", "-1"], "gpu_layers", -1),
        (["--gpu-layers", "all"], "gpu_layers", -1),
        (["--n-cpu-moe", "4"], "n_cpu_moe", 4),
        (["-b", "256"], "batch", 256),
        (["--seed", "7"], "seed", 7),
        (["--seed", "-1"], "seed", None),
        (["--temp", "0"], "temperature", 0.0),
        (["--top-k", "20"], "top_k", 20),
        (["--top-p", "0.9"], "top_p", 0.9),
        (["--min-p=0.1"], "min_p", 0.1),
        (["-n", "20"], "max_tokens", 20),
        (["-n", "-1"], "max_tokens", None),
        (["--think", "low"], "think", "low"),
        (["--system", "Be brief."], "system", "Be brief."),
        (["--plain"], "plain", True),
        (["--memory", "0.4x,6.5"], "memory", (0.4, int(6.5 * GIB))),
        (["--regimes", "plain, page,plain"], "regimes", ("plain", "page")),
        (["--runs", "5"], "runs", 5),
        (["--prompt-tokens", "16"], "prompt_tokens", 16),
        (["--tokens", "32"], "max_tokens", 32),
        (["--replay", "a.trace"], "replay", "a.trace"),
        (["--predicted", "0.886"], "predicted", 0.886),
        (["--at-most", "0"], "at_most", 0),
        (["--json"], "json", True),
        (["--jsonl"], "jsonl", True),
        (["--quiet"], "quiet", True),
    ],
)
@pytest.mark.parametrize("command", ["fit", "run"])
def test_options_before_and_after_the_command(
    command: str, argv: list[str], field: str, value: object
) -> None:
    """Every option is accepted everywhere, on both sides of the command."""
    assert getattr(parse([command, *argv]), field) == value
    assert getattr(parse([*argv, command]), field) == value


@pytest.mark.parametrize(
    "argv",
    [
        ["--ctx", "0"],
        ["--ctx", "-5"],
        ["--ctx", "many"],
        ["--ctx", "1e400"],
        ["-t", "0"],
        ["--kv-type", "q9"],
        ["--ram", "0"],
        ["--ram", "nan"],
        ["--ram", "-1"],
        ["--vram", "inf"],
        ["-ngl", "-3"],
        ["--seed", str(2**32)],
        ["--temp", "-0.1"],
        ["--temp", "nan"],
        ["--top-p", "1.5"],
        ["--min-p", "x"],
        ["-n", "0"],
        ["--think", "hard"],
        ["--batch", "0"],
        ["--ram"],
        ["--no-such-option"],
        ["-z"],
    ],
)
def test_bad_values_are_usage_errors(argv: list[str]) -> None:
    """One clear line that names the option, with a hint."""
    with pytest.raises(UsageError) as caught:
        parse(["fit", *argv])
    assert argv[0] in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


def test_a_mistyped_option_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean --threads"):
        parse(["fit", "--thread", "2"])


def test_an_unknown_command_names_the_nearest() -> None:
    """A command that does not exist is an error, never taken for a model or a prompt."""
    with pytest.raises(UsageError, match=r'no command "shwo"\. Did you mean show\?'):
        parse(["shwo", "nano"])
    with pytest.raises(UsageError) as caught:
        parse(["fetch", "nano"])
    assert caught.value.hint is not None and "fit" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        parse(["big.gguf"])
    assert caught.value.hint is not None and "localmoe chat big.gguf" in caught.value.hint


def test_commands_that_take_one_model() -> None:
    """Anything more than one MODEL is refused; ``plan`` and ``show`` need one."""
    assert only_model(parse(["fit"])) is None
    assert only_model(parse(["fit", "a.gguf"])) == "a.gguf"
    assert only_model(parse(["fit", "-m", "a.gguf"])) == "a.gguf"
    assert only_model(parse(["fit", "--", "--odd.gguf"])) == "--odd.gguf"
    for argv in (["fit", "a", "b"], ["chat", "a", "hello"], ["fit", "a", "-m", "b"]):
        with pytest.raises(UsageError) as caught:
            only_model(parse(argv))
        assert caught.value.hint
    with pytest.raises(UsageError, match="plan needs a MODEL"):
        only_model(parse(["plan"]), required=True)


def test_nothing_given_is_none() -> None:
    """Defaults are decided later, by the planner and the model's own file."""
    assert parse(["fit"]) == Options(command="fit")


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_mentions_what_matters(command: str | None) -> None:
    """Every help text has examples and exit codes; the overview lists every command."""
    text = help_text(command)
    assert "examples:" in text and "exit codes:" in text
    assert f"  localmoe {command or 'fit'}" in text
    if command is None:
        assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in COMMANDS)


def test_help_of_a_command_shows_only_its_options() -> None:
    assert "--temp" in help_text("run") and "--temp" not in help_text("fit")
    assert "--ctx" in help_text("fit") and "--ctx" not in help_text("list")
