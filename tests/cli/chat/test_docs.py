"""docs/chat.md names what there is."""

from __future__ import annotations

import io
import re
from pathlib import Path

from localmoe.cli.arguments import Options
from localmoe.cli.options import FLAGS
from localmoe.cli.output import Output
from tests.chat.scripted import ScriptedEngine
from tests.cli.chat.scripted_model import make_loop

TEXT = Path(__file__).parents[3].joinpath("docs/chat.md").read_text()


def test_every_command_is_in_the_list_and_no_other() -> None:
    """Those of the registry: a command that is added or renamed must be told of."""
    loop, _ = make_loop(ScriptedEngine([]), Output(err=io.StringIO()), Options())
    named = set(re.findall(r"`/([a-z]+)", TEXT))
    assert named == set(loop.commands.commands)


def test_every_option_that_is_named_exists() -> None:
    """And is one of ``run`` or of ``chat``."""
    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", re.sub(r"Ctrl-\w|Alt-\w+", "", TEXT)))
    assert named
    assert named <= {f for f, o in FLAGS.items() if o.taken_by("run") or o.taken_by("chat")}
