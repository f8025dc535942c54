"""One model, several clients: their conversations beside each other, and this user's commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import Localmoe, environment
from tests.server.served import Served
from tests.waiting import PATIENCE

pytestmark = pytest.mark.process

TALK = "Experts are small networks. A router chooses a few of them for each token. " * 20


def test_a_title_does_not_cost_the_conversation(nano: Served) -> None:
    """After another client's prompt the second turn is read from where the first one ended."""
    question = {"role": "user", "content": TALK + "What is a router?"}
    first = nano.post("/v1/chat/completions", messages=[question], temperature=0, max_tokens=16)
    title = nano.chat("Write a title of three words for a talk about networks.", max_tokens=8)
    assert title["usage"]["prompt_tokens_details"]["cached_tokens"] < 16
    answer = first["choices"][0]["message"]
    turns = [question, answer, {"role": "user", "content": "Thank you!"}]
    second = nano.post("/v1/chat/completions", messages=turns, temperature=0, max_tokens=8)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached >= first["usage"]["prompt_tokens"]


def test_run_uses_the_served_model(nano: Served) -> None:
    """In one line on stderr, with the server's words; with another context it loads its own."""
    home = Path(f"/proc/{nano.process.pid}/cwd").readlink()
    command = Localmoe(home)
    question = "What is a mixture of experts?"
    expected = nano.chat(question, max_tokens=16)["choices"][0]["message"]["content"]
    asked = ("run", "nano", question, "--temp", "0", "-n", "16")
    done = command(*asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected.strip()
    said = [line for line in done.stderr.splitlines() if "answered by the server" in line]
    assert len(said) == 1 and said[0].endswith(nano.url)
    document = command.document(*asked)
    assert (document["text"], document["plan"]["context"]) == (expected, 2048)
    assert "answered by" not in command(*asked, "-c", "512").stderr
    served = [name for name in os.listdir(home / ".local/state/localmoe/served") if name]  # noqa: PTH208
    assert len(served) == 1


LATE = (
    *("rich", "numpy", "psutil", "jinja2", "filelock", "huggingface_hub", "hashlib", "asyncio"),
    *("tomllib", "subprocess"),
)
ATTACHED = f"""
import sys
from localmoe.cli.main import main
code = main(["run", "nano", "What is a router?", "-n", "4", "--no-history"])
print(code, [name for name in {LATE!r} if name in sys.modules])
"""


def test_run_on_a_served_model_waits_for_few_imports(nano: Served) -> None:
    """An answer in a pipe waits for what it does not use; the imports are what it waits for."""
    home = Path(f"/proc/{nano.process.pid}/cwd").readlink()
    done = subprocess.run(
        [sys.executable, "-c", ATTACHED], env=environment(home), cwd=home,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    assert "answered by the server" in done.stderr
    assert done.stdout.splitlines()[-1] == "0 []"
