"""Starting, ending, and broken standard streams: nothing here needs a model."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

import localmoe as package
from tests.cli.command import Localmoe, assert_clear_error, environment

pytestmark = pytest.mark.process

HEAVY = ("rich", "numpy", "psutil", "jinja2", "prompt_toolkit", "llama_cpp", "multiprocessing")


def test_version(localmoe: Localmoe) -> None:
    done = localmoe("--version")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"localmoe {package.__version__}\n",
        "",
    )


def test_help_without_arguments(localmoe: Localmoe) -> None:
    """``localmoe`` alone explains itself; so does ``COMMAND --help``."""
    assert localmoe().stdout == localmoe("--help").stdout
    assert localmoe("fit", "--help").stdout.startswith("usage: localmoe fit")


def test_start_imports_nothing_heavy() -> None:
    """``--version`` and ``--help`` answer before any large library is loaded, start no process and
    open no connection. How fast that is: scripts/bench_startup.py."""
    script = f"""
import sys
costly = []
def watch(event, _):
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "socket.connect"):
        costly.append(event)
sys.addaudithook(watch)
from localmoe.cli.main import main
main(["--version"])
main(["--help"])
print([name for name in {HEAVY!r} if name in sys.modules], costly, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == "[] []\n"


def test_an_answer_waits_for_no_numpy() -> None:
    """Neither ``run`` nor ``chat`` imports it; whoever records or reads a trace does."""
    script = """
import sys
import localmoe.app.loading, localmoe.cli.chat.command, localmoe.cli.run.command
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_unknown_command(localmoe: Localmoe) -> None:
    assert_clear_error(localmoe("fetch", "nano"), 2, 'no command "fetch"')
    assert_clear_error(localmoe("shwo"), 2, "did you mean show?")


def test_wrong_option(localmoe: Localmoe) -> None:
    assert_clear_error(localmoe("fit", "--ctx", "many"), 2, "--ctx", '"many"')
    assert_clear_error(localmoe("fit", "--cxt", "8"), 2, "did you mean", "--ctx")


def test_errors_as_json(localmoe: Localmoe) -> None:
    """Even the errors of the command line itself are documents, and nothing else is said."""
    done = localmoe("fit", "--ctx", "many", "--json")
    assert (done.returncode, done.stderr) == (2, "")
    document = json.loads(done.stdout)
    assert set(document) == {"schema_version", "error"}
    assert set(document["error"]) == {"code", "message", "hint"}
    assert document["error"]["code"] == "usage"
    done = localmoe("fit", "--ctx", "many", "--jsonl")
    assert len(done.stdout.splitlines()) == 1 and json.loads(done.stdout) == document


def test_control_characters_in_words_do_not_reach_the_screen(localmoe: Localmoe) -> None:
    """What the user typed is told back without escape codes, and never read as markup."""
    done = localmoe("[bold]\x1b]52;c;AAAA\x07\x9b31m\u202e[/bold]")
    assert done.returncode == 2
    assert "[bold]" in done.stderr and "[/bold]" in done.stderr
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(done.stderr)


def test_full_disk_behind_stdout(localmoe: Localmoe) -> None:
    done = localmoe.shell("localmoe --help > /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: could not write the output: No space left on device\n"


def test_full_disk_behind_both(localmoe: Localmoe) -> None:
    """With nowhere to complain the exit code still tells."""
    done = localmoe.shell("localmoe fit --nonsense > /dev/full 2>&1")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_closed_streams(localmoe: Localmoe, closed: str) -> None:
    """Closed stdin and stderr do not matter to a command that does not need them."""
    done = localmoe.shell(f"localmoe --help {closed}")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: localmoe")


def test_closed_stdout(localmoe: Localmoe) -> None:
    done = localmoe.shell("localmoe --help >&-")
    assert (done.returncode, done.stderr) == (1, "error: standard output is closed\n")


def test_reader_that_leaves(localmoe: Localmoe) -> None:
    """A reader that has gone is no reason for a traceback."""
    done = localmoe.shell("(sleep 0.3; localmoe --help) | true")
    assert done.stderr == ""


def test_internal_errors_are_one_line(localmoe: Localmoe) -> None:
    """A mistake of ours: one line that asks for a report; the traceback only when asked for."""
    script = (
        "import localmoe.cli.main as m; "
        "m.HANDLERS['list'] = ('localmoe.cli.no_such_module', 'x'); "
        "raise SystemExit(m.main(['list']))"
    )

    def run(**extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env=environment(localmoe.home, **extra),
            check=False,
        )

    assert_clear_error(run(), 1, "internal error: ModuleNotFoundError", "please report it")
    assert "Traceback" in run(LOCALMOE_DEBUG="1").stderr


@pytest.mark.parametrize(
    ("module", "code"),
    [("localmoe.cli.options", -signal.SIGINT), ("localmoe.cli.config.command", 130)],
)
def test_ctrl_c_while_imports_last(localmoe: Localmoe, module: str, code: int) -> None:
    """However early it comes, there is no traceback."""
    script = f"""
import os, runpy, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = ["localmoe", "config"]
runpy.run_module("localmoe", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment(localmoe.home),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
