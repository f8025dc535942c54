"""``localmoe`` as a process of its own, talking to a local Hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cli.command import environment, run
from tests.hub.server import HubServer

COMMAND = [sys.executable, "-m", "localmoe"]


class HubCommand:
    """Runs commands with ``HF_ENDPOINT`` and a cache of their own in ``home``."""

    def __init__(self, hub: HubServer, home: Path) -> None:
        self.hub = hub
        self.home = home
        self.cache = home / "hf" / "hub"

    def environment(self, **extra: str) -> dict[str, str]:
        """Without the caller's tokens and proxies."""
        env = environment(self.home, HF_HOME=str(self.home / "hf"), HF_ENDPOINT=self.hub.url)
        env["HF_HUB_OFFLINE"] = "0"
        return {k: v for k, v in env.items() if not k.lower().endswith("_proxy")} | extra

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start a command and do not wait."""
        return subprocess.Popen(
            [*COMMAND, *args],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.home,
            env=self.environment(**env),
        )

    def __call__(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return run(args, self.environment(**env), self.home)
