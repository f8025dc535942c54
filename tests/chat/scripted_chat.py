"""``python -m tests.chat.scripted_chat REPLIES``: the real chat on this terminal, scripted engine.

REPLIES is a JSON list of replies, each a list of chunks; ``!`` as a chunk is a crash. The second
argument is the number of seconds before each chunk.
"""

from __future__ import annotations

import json
import sys

from localmoe.chat.commands import standard_commands
from localmoe.cli.chat import _line_reader
from localmoe.cli.output import Output
from localmoe.errors import EngineCrashError
from tests.chat.room import run_chat
from tests.chat.scripted import ScriptedEngine


def main() -> int:
    replies = [
        [EngineCrashError("the engine process died") if chunk == "!" else chunk for chunk in reply]
        for reply in json.loads(sys.argv[1])
    ]
    engine = ScriptedEngine(replies, delay=float(sys.argv[2]))
    return run_chat(engine, _line_reader(standard_commands()), Output())


if __name__ == "__main__":
    sys.exit(main())
