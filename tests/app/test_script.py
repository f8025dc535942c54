"""A program that is no front end of ours: everything it needs is in ``localmoe.app``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

SCRIPT = """
import sys

from localmoe.app.find import model_here
from localmoe.app.listener import Silent
from localmoe.app.loading import opened
from localmoe.app.machine import find_machine
from localmoe.app.plans import plan_for
from localmoe.app.requests import LoadRequest, PlanRequest
from localmoe.planning.plan import Wishes

name, listener = "nano", Silent()
request = PlanRequest(Wishes(context=1024))

model = model_here(name, listener)
machine = find_machine(request, hypothetical=False)
plan = plan_for(model, machine, request, hypothetical=False)
assert plan.verdict.fits and plan.settings.context == 1024

with opened(LoadRequest(name, request, remember=False), listener) as loaded:
    for event in loaded.bring_in():
        pass
    chat = loaded.begin(temperature=0.0)
    for question in ("What is a router?", "Thank you!"):
        print([*chat.ask(question)][-1].answer)

others = ("argparse", "rich", "prompt_toolkit", "localmoe.cli", "localmoe.terminal", "llama_cpp")
assert not [module for module in others if module in sys.modules]
"""


def test_find_plan_load_and_chat_through_app_alone(tmp_path: Path) -> None:
    """Forty lines find a model, plan it, load it and talk to it; no front end is imported."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "router" in done.stdout and len(done.stdout.splitlines()) >= 2
