"""``python -m tests.server.scripted_serve SCRIPT …``: the real server over a scripted engine.

SCRIPT is JSON: the calls, each a name and arguments, that the model makes one after the other, and
what it says in the end. Which of them comes next is seen from the results in the prompt, so that a
client may ask other things in between. What follows SCRIPT are options of ``localmoe serve``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from localmoe.app.model import LoadedModel
from localmoe.chat.generic_tools import RESULT_START, call_text
from localmoe.chat.session import ToolCall
from localmoe.cli.main import main
from localmoe.engine.events import Finished, PrefillProgress, Request, Token
from localmoe.server import models
from tests.chat import scripted

CONTEXT = 200_000  # tokens: agents send long prompts
scripted.CONTEXT = CONTEXT

from tests.cli.chat.scripted_model import scripted_model  # noqa: E402 - after the context is set


class Agent(scripted.ScriptedEngine):
    """An engine that makes the calls of a script."""

    def __init__(self, script: dict[str, Any]) -> None:
        super().__init__([])
        self._script = script

    def generate(
        self, request: Request
    ) -> Generator[PrefillProgress | Token | Finished, None, None]:
        calls, done = self._script["calls"], request.prompt.count(f"{RESULT_START}\n")
        if "<tool_call>" not in request.prompt:
            said = "A title"
        elif done < len(calls):
            name, arguments = calls[done]
            said = call_text(ToolCall("", name, json.dumps(arguments)))
        else:
            said = self._script["end"]
        self.replies = [[said[at : at + 7] for at in range(0, len(said), 7)]]
        yield from super().generate(request)


def serve(path: Path, arguments: list[str]) -> int:
    engine = Agent(json.loads(path.read_text()))

    @contextmanager
    def opened(*_: object) -> Iterator[LoadedModel]:
        with scripted_model(engine) as model:
            yield model

    models.opened = opened  # type: ignore[attr-defined, assignment]
    return main(["serve", *arguments])


if __name__ == "__main__":
    sys.exit(serve(Path(sys.argv[1]), sys.argv[2:]))
