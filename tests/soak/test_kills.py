"""Kill loops: whatever is killed at whatever moment, the next start goes on from there."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.engine.client import Engine
from localmoe.engine.events import Request, Sampling, Token
from localmoe.errors import EngineCrashError
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings
from tests.chat import templates
from tests.cli.chat.test_real import Running
from tests.cli.command import Localmoe
from tests.hub.command import HubCommand
from tests.hub.content import Generated
from tests.hub.pulling import FILE, KEY, REPO, blobs, sha256, snapshots
from tests.hub.server import Fault, HubServer
from tests.soak.conftest import Figures
from tests.waiting import wait_until

pytestmark = pytest.mark.soak
SIZE = 60_000_000  # larger ones have an invented sha256
IN_FLIGHT = 16 << 20  # bytes of a connection that may be sent and never written


def test_downloads(tmp_path: Path, under_way: Callable[[], bool], figures: Figures) -> None:
    """A download that is killed again and again ends whole, and fetches next to nothing twice."""
    rng = random.Random(1)
    downloads = kills = twice = 0
    with HubServer() as hub:
        while under_way():
            home = tmp_path / str(downloads)
            home.mkdir()
            localmoe = HubCommand(hub, home)
            content = Generated(SIZE, b"GGUF", seed=downloads)
            hub.add(REPO, {FILE: content})
            hub.fault("content", KEY, Fault(rate=20_000_000))
            hub.forget()
            killed, before = 0, 0
            while killed < 20:
                child = localmoe.start("pull", REPO, "--yes")
                while not hub.count(FILE) and child.poll() is None:
                    time.sleep(0.01)
                time.sleep(rng.uniform(0.3, 1.0))
                child.send_signal(rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)))
                child.communicate()
                if child.returncode == 0:
                    break
                killed += 1
                kept = sum(blobs(localmoe.cache).values())
                assert kept >= before, "what was there is gone"
                before = kept
            hub.heal()
            done = localmoe("pull", REPO, "--yes", "--json")
            assert done.returncode == 0, done.stderr
            assert sha256(Path(json.loads(done.stdout)["path"])) == content.sha256
            assert snapshots(localmoe.cache) == [FILE]
            again = hub.sent(FILE) - SIZE
            assert again <= killed * IN_FLIGHT
            downloads, kills, twice = downloads + 1, kills + killed, twice + again
            figures |= {"downloads": downloads, "kills": kills, "bytes sent twice": twice}
            for path in sorted(home.rglob("*"), reverse=True):
                path.unlink() if not path.is_dir() or path.is_symlink() else path.rmdir()


def test_engines(
    arch_file: Callable[..., Path], under_way: Callable[[], bool], figures: Figures
) -> None:
    """An engine that is killed in the middle is an error, comes back, and answers as before."""
    rng = random.Random(2)
    settings = EngineSettings(context=2048, threads=1, threads_batch=1)
    long = Request("Go on.", max_tokens=1000, sampling=Sampling(temperature=0), ignore_end=True)
    asked = Request("Hello there.", max_tokens=12, sampling=Sampling(temperature=0))
    kills = 0
    with Engine(read_model(arch_file("qwen3moe")), settings, remember=False) as engine:

        def answer() -> str:
            events = engine.generate(asked)
            return "".join(event.text for event in events if isinstance(event, Token))

        list(engine.load())
        expected = answer()
        while under_way():
            fatal = rng.randrange(1, 400)
            with pytest.raises(EngineCrashError):
                for event in engine.generate(long):
                    if isinstance(event, Token) and event.tokens >= fatal:
                        os.kill(engine.pid, signal.SIGKILL)
            if rng.random() < 0.3:  # and again while it loads
                with contextlib.suppress(EngineCrashError):
                    for _ in engine.load():
                        os.kill(engine.pid, signal.SIGKILL)
                wait_until(lambda: not engine.alive)
            list(engine.load())
            assert answer() == expected
            kills += 1
            figures["kills"] = kills


def test_chats(
    tmp_path: Path,
    arch_file: Callable[..., Path],
    under_way: Callable[[], bool],
    figures: Figures,
) -> None:
    """A chat that is killed at any moment has kept every turn that had ended."""
    rng = random.Random(3)
    model = arch_file("qwen3moe", template=templates.CHATML)
    log = tmp_path / ".local/share/localmoe/sessions/s.jsonl"
    ended = kills = 0
    while under_way():
        chat = Running(tmp_path, "chat", model, "--session", "s", "-n", "8", "--overflow", "drop")
        for number in range(rng.randrange(3)):
            chat.tell(f"question {number}")
            while chat.read(1) != b"\n":
                pass
        chat.tell("and one more")
        time.sleep(rng.uniform(0.0, 0.2))
        before = _turns(log)
        chat.process.kill()
        chat.process.communicate()
        kills += 1
        assert _turns(log) >= before >= ended
        ended = _turns(log)
        figures |= {"kills": kills, "turns kept": ended}
    done = Localmoe(tmp_path)("chat", model, "--session", "s", stdin="/stats\n")
    assert done.returncode == 0, done.stderr


def _turns(log: Path) -> int:
    """Whole turns in a session's file; a last line that was cut off is none."""
    if not log.exists():
        return 0
    lines = log.read_text(errors="replace").splitlines(keepends=True)
    return sum('"kind":"turn"' in line and line.endswith("\n") for line in lines)
