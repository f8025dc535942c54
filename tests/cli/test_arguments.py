"""The command line, parsed: no file is read and nothing is started."""

from __future__ import annotations

import argparse
import dataclasses
import re

import pytest

from localmoe.cli.arguments import (
    ModelAndPrompt,
    Options,
    model_and_prompt,
    only_model,
    parse,
)
from localmoe.cli.commands import COMMANDS
from localmoe.cli.config.completion import candidates
from localmoe.cli.option import Option
from localmoe.cli.options import EVERY, OPTIONS
from localmoe.cli.parser import help_text
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
    ("command", "argv", "field", "value"),
    [
        ("fit", ["-c", "4096"], "context", 4096),
        ("run", ["-c", "4096"], "context", 4096),
        ("fit", ["--ctx", "8k"], "context", 8192),
        ("run", ["--ctx", "8k"], "context", 8192),
        ("fit", ["-t", "3"], "threads", 3),
        ("run", ["-t", "3"], "threads", 3),
        ("fit", ["--kv-type", "q8_0"], "type_k", "q8_0"),
        ("run", ["--kv-type", "q8_0"], "type_k", "q8_0"),
        ("fit", ["--kv-type", "q8_0"], "type_v", "q8_0"),
        ("run", ["--kv-type", "q8_0"], "type_v", "q8_0"),
        ("fit", ["-ctk", "q4_0", "--kv-type", "q8_0"], "type_k", "q4_0"),
        ("run", ["-ctk", "q4_0", "--kv-type", "q8_0"], "type_k", "q4_0"),
        ("fit", ["-ctv", "q4_0"], "type_v", "q4_0"),
        ("run", ["-ctv", "q4_0"], "type_v", "q4_0"),
        ("fit", ["--ram", "7.5"], "ram", 7.5 * GIB),
        ("run", ["--ram", "7.5"], "ram", 7.5 * GIB),
        ("fit", ["--vram", "0"], "vram", 0),
        ("run", ["--vram", "0"], "vram", 0),
        ("fit", ["--machine", "m.json"], "machine", "m.json"),
        ("plan", ["--machine", "m.json"], "machine", "m.json"),
        ("fit", ["-ngl", "99"], "gpu_layers", 99),
        ("run", ["-ngl", "99"], "gpu_layers", 99),
        ("fit", ["-ngl", "-1"], "gpu_layers", -1),
        ("run", ["-ngl", "-1"], "gpu_layers", -1),
        ("fit", ["--gpu-layers", "all"], "gpu_layers", -1),
        ("run", ["--gpu-layers", "all"], "gpu_layers", -1),
        ("fit", ["--n-cpu-moe", "4"], "n_cpu_moe", 4),
        ("run", ["--n-cpu-moe", "4"], "n_cpu_moe", 4),
        ("fit", ["-b", "256"], "batch", 256),
        ("run", ["-b", "256"], "batch", 256),
        ("run", ["--seed", "7"], "seed", 7),
        ("chat", ["--seed", "7"], "seed", 7),
        ("run", ["--seed", "-1"], "seed", None),
        ("chat", ["--seed", "-1"], "seed", None),
        ("run", ["--temp", "0"], "temperature", 0.0),
        ("chat", ["--temp", "0"], "temperature", 0.0),
        ("run", ["--top-k", "20"], "top_k", 20),
        ("chat", ["--top-k", "20"], "top_k", 20),
        ("run", ["--top-p", "0.9"], "top_p", 0.9),
        ("chat", ["--top-p", "0.9"], "top_p", 0.9),
        ("run", ["--min-p=0.1"], "min_p", 0.1),
        ("chat", ["--min-p=0.1"], "min_p", 0.1),
        ("run", ["-n", "20"], "max_tokens", 20),
        ("chat", ["-n", "20"], "max_tokens", 20),
        ("run", ["-n", "-1"], "max_tokens", None),
        ("chat", ["-n", "-1"], "max_tokens", None),
        ("run", ["--think", "low"], "think", "low"),
        ("chat", ["--think", "low"], "think", "low"),
        ("run", ["--system", "Be brief."], "system", "Be brief."),
        ("chat", ["--system", "Be brief."], "system", "Be brief."),
        ("run", ["--plain"], "plain", True),
        ("chat", ["--plain"], "plain", True),
        ("bench", ["--memory", "0.4x,6.5"], "memory", (0.4, int(6.5 * GIB))),
        ("bench", ["--regimes", "plain, page,plain"], "regimes", ("plain", "page")),
        ("bench", ["--runs", "5"], "runs", 5),
        ("bench", ["--prompt-tokens", "16"], "prompt_tokens", 16),
        ("bench", ["--tokens", "32"], "max_tokens", 32),
        ("bench", ["--replay", "a.trace"], "replay", "a.trace"),
        ("serve", ["--port", "0"], "port", 0),
        ("serve", ["--temp", "0"], "temperature", 0.0),
        ("serve", ["--idle", "10m"], "idle", 600.0),
        ("serve", ["--alias", "a=b:Q8"], "alias", (("a", "b:Q8"),)),
        ("serve", ["--cors", "https://x", "--cors", "*"], "cors", ("https://x", "*")),
        ("serve", ["--overflow", "error"], "overflow", "stop"),
        ("fit", ["--json"], "json", True),
        ("run", ["--json"], "json", True),
        ("fit", ["--jsonl"], "jsonl", True),
        ("run", ["--jsonl"], "jsonl", True),
        ("fit", ["--quiet"], "quiet", True),
        ("run", ["--quiet"], "quiet", True),
    ],
)
def test_options_before_and_after_the_command(
    command: str, argv: list[str], field: str, value: object
) -> None:
    """A command takes its options on both sides of its name."""
    assert getattr(parse([command, *argv]), field) == value
    assert getattr(parse([*argv, command]), field) == value


@pytest.mark.parametrize(
    "argv",
    [
        ["--ctx", "0"],
        ["--ctx", "-5"],
        ["--ctx", "many"],
        ["--idle", "soon"],
        ["--idle", "0s"],
        ["--alias", "name"],
        ["--port", "65536"],
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


def typed(option: Option) -> list[str]:
    """The option with a value that it can have."""
    if option.is_switch:
        return [f"--{option.name}"]
    for value in (*option.choices, "1", "gpu", "a=CPU", "here:1"):
        try:
            option.parse(value)
        except argparse.ArgumentTypeError:
            continue
        return [f"--{option.name}", value]
    raise AssertionError(f"no value for --{option.name}")


@pytest.mark.parametrize("scope", EVERY)
def test_an_option_is_taken_shown_and_proposed_or_none_of_it(scope: str) -> None:
    """Each command and action: what its help shows and Tab proposes is what it takes.

    Any other option is refused by an error that names it, the command, and who takes it.
    """
    words = scope.split()
    rows = re.findall(r"^  (-.*?)(?:   |$)", help_text(scope), re.MULTILINE)
    shown = set(re.findall(r"--[a-z][a-z-]*", " ".join(rows)))
    proposed = {candidate.text for candidate in candidates([*words, "--"])}
    for option in OPTIONS:
        if option.name in ("help", "version"):
            continue
        flag = f"--{option.name}"
        argv = [*typed(option), *words]
        if scope in option.commands:
            fields = ("type_k", "type_v") if option.name == "kv-type" else (option.field,)
            assert parse(argv).typed == set(fields)
            assert flag in shown and flag in proposed
            continue
        with pytest.raises(UsageError) as caught:
            parse(argv)
        assert caught.value.exit_code == 2
        assert caught.value.message == f"{scope} takes no {flag}"
        assert caught.value.hint is not None and flag in caught.value.hint
        others = [name for name in EVERY if name not in option.commands]
        named = option.commands if len(option.commands) <= len(others) else others
        assert all(name in caught.value.hint for name in named)
        if not any(name.startswith(f"{scope} ") for name in option.commands):
            assert flag not in shown and flag not in proposed


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("rm x --temp 2", False),
        ("rm x --ctx 8k", False),
        ("list --seed 1", False),
        ("doctor --ctx 8k", False),
        ("engine --ram 8", False),
        ("config --threads 2", False),
        ("config set ctx 8k --temp 1", False),
        ("completion bash --ram 8", False),
        ("worker --temp 2", False),
        ("worker --ram 8 --threads 2", True),
        ("doctor --remote here", True),
        ("fit x --ctx 8k --ram 8 --experts-on ram", True),
        ("fit x --temp 1", False),
        ("plan x --n-cpu-moe 4 -ot exps=CPU --cache page", True),
        ("plan x --max-tokens 9", False),
        ("pull x --ram 8", True),
        ("pull x --seed 1", False),
        ("show x --ram 8", True),
        ("run x hi --ctx 8k --temp 1 --min-p 0.1", True),
        ("run x --memory 0.4x", False),
        ("chat --top-k 3 --vram 8 --think low", True),
        ("chat --json", False),
        ("bench x --ctx 8k -n 9", True),
        ("bench x --temp 1", False),
        ("experts record x --ctx 8k --temp 1", True),
        ("experts show x --temp 1", False),
        ("experts compare x -c 8k", False),
        ("experts simulate x --cache-ram 4 --machine f", True),
        ("experts report x --png f", True),
        ("experts report x --domains", False),
        ("engine install cuda --yes --dry-run", True),
        ("engine --dry-run", False),
        ("config set ctx 8k -m x", True),
        ("config path -m x", False),
        ("run x --machine f", False),
        ("plan x --machine f", True),
    ],
)
def test_placement_where_a_plan_is_made_sampling_where_tokens_are(line: str, taken: bool) -> None:
    """Decision 6: a command takes the options that change what it does, and no others."""
    if taken:
        parse(line.split())
    else:
        with pytest.raises(UsageError, match=" takes no -"):
            parse(line.split())


def test_all_that_is_refused_is_named_at_once_as_it_was_typed() -> None:
    """So that ``run`` in a command line can be replaced by ``plan`` with one correction."""
    with pytest.raises(UsageError) as caught:
        parse(["plan", "x", "-n", "20", "--temp=0", "-c", "8k", "-v"])
    assert caught.value.message == "plan takes no -v, -n and --temp"
    assert caught.value.hint is not None
    assert "--temp is for run, chat, experts record and serve" in caught.value.hint


def test_who_asks_for_help_is_helped() -> None:
    """An option too many is no reason to refuse the text that says which there are."""
    assert parse(["rm", "--temp", "2", "--help"]).help
    assert parse(["--temp", "2", "--version"]).version


def test_a_mistyped_option_is_compared_with_those_of_the_command() -> None:
    with pytest.raises(UsageError, match=r"Did you mean --temp"):
        parse(["run", "--tmp", "2"])
    with pytest.raises(UsageError, match=r'no option "--tmp"\.$'):
        parse(["rm", "--tmp", "2"])


def test_every_field_has_an_option() -> None:
    """None of ``Options`` is out of reach, and no option is without effect."""
    own = {"command", "words", "after_dashes", "typed", "type_k", "type_v"}
    fields = {field.name for field in dataclasses.fields(Options)}
    assert {option.field for option in OPTIONS} - {"kv_type"} | own == fields


def test_the_overview_says_who_takes_what() -> None:
    text = " ".join(help_text(None).split())
    plans = "fit, pull, plan, run, chat, serve, show, bench, experts record"
    assert f"memory and placement: {plans}" in text
    assert "the answer: run, chat, experts record" in text
    assert "is refused" in text


@pytest.mark.parametrize(
    ("argv", "command", "words"),
    [
        (["help"], None, ()),
        (["help", "help"], None, ()),
        (["help", "run"], "run", ()),
        (["help", "ls"], "list", ()),
        (["help", "experts", "record"], "experts", ("record",)),
        (["help", "run", "--temp", "0"], "run", ()),
    ],
)
def test_help_is_a_command_too(
    argv: list[str], command: str | None, words: tuple[str, ...]
) -> None:
    """``help COMMAND`` is ``COMMAND --help``."""
    options = parse(argv)
    assert (options.help, options.command, options.words) == (True, command, words)


def test_help_for_what_is_no_command() -> None:
    """The nearest command is named, as for the command itself."""
    with pytest.raises(UsageError, match=r'no command "rum"\. Did you mean rm or run'):
        parse(["help", "rum"])
    with pytest.raises(UsageError, match=r'no command "hlep"\. Did you mean help'):
        parse(["hlep"])


def test_ls_is_list() -> None:
    """With its options, and with its errors for those of others."""
    assert parse(["ls", "--json"]).command == "list"
    with pytest.raises(UsageError, match="list takes no --temp"):
        parse(["ls", "--temp", "0"])
    with pytest.raises(UsageError, match=r'no option "--jsno"\. Did you mean --json'):
        parse(["ls", "--jsno"])
