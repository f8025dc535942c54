"""``python -m tests.cli.chat.scripted_chat REPLIES``: the real chat here, over a scripted engine.

REPLIES is a JSON list of replies, each a list of chunks; ``!`` as a chunk is a crash. The second
argument is the number of seconds before each chunk.
"""

from __future__ import annotations

import json
import signal
import sys
import time

from localmoe.app.sessions import open_session
from localmoe.chat.commands import Command
from localmoe.chat.state import Chat
from localmoe.cli.arguments import parse
from localmoe.cli.chat.command import line_reader
from localmoe.cli.main import _terminate
from localmoe.cli.output import Output
from localmoe.cli.requests import session_request
from localmoe.errors import EngineCrashError
from localmoe.terminal.tty import kept
from tests.chat.scripted import ScriptedEngine
from tests.cli.chat.scripted_model import make_loop


def slow(chat: Chat, seconds: str) -> str:
    """A command that takes its time, as planning another model does."""
    time.sleep(float(seconds))
    return f"that took {seconds} s"


def main() -> int:
    replies = [
        [EngineCrashError("the engine process died") if chunk == "!" else chunk for chunk in reply]
        for reply in json.loads(sys.argv[1])
    ]
    engine = ScriptedEngine(replies, delay=float(sys.argv[2]))
    output = Output()
    options = parse(["chat", *sys.argv[3:]])
    store, log = open_session(session_request(options))
    loop, notices = make_loop(engine, output, options, store=store, log=log)
    loop.commands.add(Command("slow", "SECONDS", "takes so long", slow))
    signal.signal(signal.SIGTERM, _terminate)
    with kept():
        return loop.run("tiny", line_reader(loop, notices, private=options.no_history))


if __name__ == "__main__":
    sys.exit(main())
