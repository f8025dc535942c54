"""Agents that others have written do a task of three calls, over loopback, each in its own dialect.

``LOCALMOE_AGENTS`` names the folder with their programs: where ``npm install @openai/codex
@anthropic-ai/claude-code opencode-ai`` was done, its ``node_modules/.bin``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.cli.command import environment
from tests.needs import missing
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.process

TASK = (
    "Write the lines one and two into notes.txt, read it, and write the number of its lines into "
    "count.txt."
)
WRITE, COUNT = "printf 'one\\ntwo\\n' > notes.txt", "wc -l < notes.txt > count.txt"
END = "notes.txt has two lines; the count is in count.txt."
Call = tuple[str, dict[str, str]]


def codex(home: Path, url: str) -> tuple[Sequence[str], dict[str, str]]:
    (home / ".codex").mkdir()
    (home / ".codex" / "config.toml").write_text(
        'model = "nano"\nmodel_provider = "local"\napproval_policy = "never"\n'
        'sandbox_mode = "danger-full-access"\n[model_providers.local]\nname = "local"\n'
        f'base_url = "{url}/v1"\nwire_api = "responses"\n'
    )
    return ("exec", "--skip-git-repo-check", TASK), {}


def claude(home: Path, url: str) -> tuple[Sequence[str], dict[str, str]]:
    variables = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "x"}
    variables["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] = "1"
    return ("-p", TASK, "--allowedTools", "Bash Read"), variables


def opencode(home: Path, url: str) -> tuple[Sequence[str], dict[str, str]]:
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "local",
        "options": {"baseURL": f"{url}/v1", "apiKey": "x"},
        "models": {"nano": {"name": "nano"}},
    }
    config = home / "opencode.json"
    config.write_text(json.dumps({"provider": {"local": provider}, "permission": "allow"}))
    variables = {"OPENCODE_CONFIG": str(config), "OPENCODE_DISABLE_AUTOUPDATE": "1"}
    variables |= {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_LSP_DOWNLOAD": "1"}
    return ("run", "--model", "local/nano", TASK), variables


Prepare = Callable[[Path, str], tuple[Sequence[str], dict[str, str]]]
AGENTS: dict[str, tuple[Prepare, str, str, str]] = {  # its tools for commands and for files
    "codex": (codex, "exec_command", "cmd", ""),
    "claude": (claude, "Bash", "command", "Read/file_path"),
    "opencode": (opencode, "bash", "command", "read/filePath"),
}


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_does_its_task(tmp_path: Path, name: str) -> None:
    """Three calls and their results; then the files are there, and the answer is told."""
    program = Path(os.environ.get("LOCALMOE_AGENTS", ""), name)
    if not (os.environ.get("LOCALMOE_AGENTS") and program.exists()):
        missing(f"LOCALMOE_AGENTS names no folder with {name}", expected=False)
    prepare, shell, key, reader = AGENTS[name]
    tool, _, file_key = reader.partition("/")
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    reading: Call = (shell, {key: "cat notes.txt"})
    if tool:
        reading = (tool, {file_key: str(work / "notes.txt")})
    calls: list[Call] = [(shell, {key: WRITE}), reading, (shell, {key: COUNT})]
    if name != "codex":
        calls = [
            (tool_name, arguments | ({"description": "It."} if tool_name == shell else {}))
            for tool_name, arguments in calls
        ]
    (tmp_path / "script.json").write_text(json.dumps({"calls": calls, "end": END}))
    log = tmp_path / "serve.log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            [sys.executable, "-m", "tests.server.scripted_serve", tmp_path / "script.json",
             "nano", "--port", "0"],
            stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            env=environment(tmp_path / "served") | {"PYTHONPATH": str(Path.cwd())},
        ) as server,
    ):  # fmt: skip
        try:
            wait_until(lambda: "listening on http" in log.read_text())
            url = log.read_text().partition("listening on ")[2].split()[0]
            words, variables = prepare(home, url)
            done = subprocess.run(
                [program, *words], cwd=work, stdin=subprocess.DEVNULL, capture_output=True,
                text=True, timeout=PATIENCE,
                env={**os.environ, "HOME": str(home), "PWD": str(work), **variables},
            )  # fmt: skip
        finally:
            server.terminate()
    assert done.returncode == 0, (done.stdout, done.stderr, log.read_text())
    assert END in done.stdout
    assert (work / "notes.txt").read_text() == "one\ntwo\n"
    assert (work / "count.txt").read_text().strip() == "2"
