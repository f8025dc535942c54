"""``localmoe`` as a program of ``tests.forked``."""

from __future__ import annotations

import importlib
import sys

from tests import forked_workers


def ready() -> None:
    from localmoe.cli.main import HANDLERS

    for module, _ in HANDLERS.values():
        importlib.import_module(module)
    importlib.import_module("httpx2")
    forked_workers.install(at_once=True)
    assert "huggingface_hub" not in sys.modules, "it reads the environment when it is imported"


def main() -> int:
    from localmoe.__main__ import main as run

    sys.argv[0] = "localmoe"
    return run()
