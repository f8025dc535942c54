"""Tab in the real shells, and what it may propose."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import pexpect
import pytest

from localmoe.cli.commands import COMMANDS
from localmoe.cli.config import completion
from localmoe.cli.config.completion import candidates
from localmoe.cli.config.defaults import SETTINGS
from localmoe.cli.option import FILES
from localmoe.cli.options import FLAGS, OPTIONS
from tests.cli.command import Localmoe, assert_clear_error, environment
from tests.waiting import PATIENCE


def texts(*words: str) -> list[str]:
    return [candidate.text for candidate in candidates(words)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a model of the Hub, an alias, and a text file in it."""
    for name in ("LOCALMOE_HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    hub = tmp_path / ".cache/huggingface/hub/models--someone--Tiny-GGUF/snapshots/0"
    hub.mkdir(parents=True)
    (hub / "Tiny-Q8_0.gguf").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / ".config/localmoe").mkdir(parents=True)
    (tmp_path / ".config/localmoe/config.toml").write_text('[aliases]\nfavourite = "nano"\n')
    return tmp_path


def test_commands_come_first() -> None:
    assert texts("") == [*COMMANDS, "help"]
    assert texts("help", "") == list(COMMANDS)
    assert texts("help", "experts", "si") == ["simulate"]
    assert texts("ls", "--jso") == ["--json", "--jsonl"]
    assert texts("-q", "do") == ["doctor"]


def test_options_are_those_of_the_command() -> None:
    assert "--temp" in texts("run", "--")
    assert "--temp" not in texts("show", "--")
    assert texts("run", "--kv-t") == ["--kv-type"]


def test_values_of_options() -> None:
    assert texts("run", "--kv-type", "q8") == ["q8_0"]
    assert texts("run", "--think=l") == ["--think=low"]
    assert texts("run", "-f", "") == [FILES]
    assert texts("run", "--schema", "x") == [FILES]
    assert texts("run", "--temp", "") == []
    assert texts("run", "--", "--t") == [FILES]


def test_what_is_shown_of_an_option_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all help texts and names of values changed, the proposals are the same."""
    lines = [
        line.split(" ")
        for line in (
            *("run -f ", "bench --log ", "run --think ", "run --temp ", "run --plain --kv-t"),
            *("config set plain ", "experts --", "experts report --"),
        )
    ]
    before = [texts(*line) for line in lines]
    changed = {o: dataclasses.replace(o, help="x", value="FILE") for o in OPTIONS}
    monkeypatch.setattr(completion, "OPTIONS", tuple(changed.values()))
    monkeypatch.setattr(completion, "FLAGS", {f: changed[o] for f, o in FLAGS.items()})
    settings = {name: changed[o] for name, o in SETTINGS.items()}
    monkeypatch.setattr(completion, "SETTINGS", settings)
    assert [texts(*line) for line in lines] == before


def test_models(home: Path) -> None:
    """Aliases, what is here, the catalog, and files; a word of a prompt has no completion."""
    assert "nano" in texts("run", "na")
    assert texts("show", "fav") == ["favourite", FILES]
    assert texts("chat", "Ti") == ["Tiny-Q8_0", FILES]
    assert texts("chat", "someone/") == ["someone/Tiny-GGUF:Q8_0", FILES]
    assert "qwen3-30b-a3b" in texts("run", "-m", "qwen3")
    assert "qwen3-30b-a3b" in texts("--temp", "0", "fit", "qwen3")
    assert texts("run", "./") == [FILES]
    assert texts("run", "nano", "wor") == []


def test_rm_proposes_what_can_be_removed(home: Path) -> None:
    """Models of localmoe's folder and the Hub cache: no catalog, no alias, no other file."""
    own = home / ".local/share/localmoe/models"
    own.mkdir(parents=True)
    (own / "mine-Q4_K_M.gguf").write_bytes(b"")
    assert sorted(texts("rm", "")) == ["Tiny-Q8_0", "mine-Q4_K_M"]
    assert texts("rm", "someone/") == ["someone/Tiny-GGUF:Q8_0"]
    assert texts("rm", "no") == texts("rm", "Tiny-Q8_0", "") == []
    assert texts("rm", "./") == [FILES]


def test_sessions_are_proposed_by_name(home: Path) -> None:
    folder = home / ".local/share/localmoe/sessions"
    folder.mkdir(parents=True)
    (folder / "trip.jsonl").write_text('{"kind":"turn","question":"Where to?","answer":"There."}\n')
    assert texts("chat", "--session", "t") == ["trip"]


def test_words_of_config(home: Path) -> None:
    assert texts("config", "s") == ["show", "set"]
    assert texts("config", "set", "top") == ["top-k", "top-p"]
    assert texts("config", "set", "think", "h") == ["high"]
    assert texts("config", "set", "plain", "") == ["true", "false"]
    assert texts("completion", "") == ["bash", "zsh", "fish"]


def test_words_of_engine_and_experts(home: Path) -> None:
    assert texts("engine", "") == ["install", "remove"]
    assert texts("engine", "install", "vu") == ["vulkan", FILES]
    assert texts("experts", "s") == ["show", "simulate"]
    assert "nano" in texts("experts", "record", "na")
    assert texts("experts", "compare", "a.trace", "") == [FILES]


def test_another_shell(localmoe: Localmoe) -> None:
    assert_clear_error(localmoe("completion", "tcsh"), 2, "bash, zsh, fish")


SHELLS = {
    "bash": (["bash", "--noprofile", "--norc", "-i"], 'eval "$(localmoe completion bash)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -U compinit; compinit -u -D; eval "$(localmoe completion zsh)"',
    ),
    "fish": (["fish", "--no-config", "-i"], "localmoe completion fish | source"),
}
LINES = [
    ("localmoe doc", "localmoe doctor"),
    ("localmoe run --kv-type q8", "localmoe run --kv-type q8_0"),
    ("localmoe run --think=hi", "localmoe run --think=high"),
    ("localmoe show favou", "localmoe show favourite"),
    ("localmoe show someone/Tiny-GGUF:Q", "localmoe show someone/Tiny-GGUF:Q8_0"),
    ("localmoe run -f not", "localmoe run -f notes.txt"),
    ("localmoe engine inst", "localmoe engine install"),
]


@pytest.mark.parametrize("shell", SHELLS)
def test_in_the_real_shell(shell: str, home: Path) -> None:
    """Typed, Tab, and the line is complete: names with colons, values, files."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    binaries = home / "bin"
    binaries.mkdir()
    command = binaries / "localmoe"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m localmoe "$@"\n')
    command.chmod(0o755)
    arguments, setup = SHELLS[shell]
    env = environment(home, PATH=f"{binaries}:{os.environ['PATH']}", TERM="vt100", PS1="> ")
    child = pexpect.spawn(
        program, arguments[1:], env=env, cwd=str(home), encoding="utf-8", timeout=PATIENCE,
        dimensions=(24, 200),
    )  # fmt: skip
    try:
        child.sendline(setup + "; echo rea''dy")
        child.expect_exact("ready")
        for typed, wanted in LINES:
            child.send(typed)
            child.send("\t")
            # To the beginning of the line: what the shell made of it is printed, not run.
            child.send("\x01printf '<%s>' \x05\n")
            child.expect_exact("".join(f"<{word}>" for word in wanted.split()))
    finally:
        child.close(force=True)
