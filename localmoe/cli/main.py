"""The entry point: a command line in, an exit code out, and no traceback in between.

Exit codes: 0 done · 1 failure · 2 usage · 3 does not fit · 4 bad model file · 5 download or
integrity · 130 interrupted · 143 terminated. Commands are imported when they are called: this
module and what it imports are all that ``--version`` and ``--help`` wait for.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from errno import ENOMEM
from types import FrameType
from typing import NoReturn

from localmoe import __version__
from localmoe.cli.arguments import Options, parse, scope_of
from localmoe.cli.commands import COMMANDS
from localmoe.cli.output import Output
from localmoe.cli.parser import help_text
from localmoe.errors import (
    INTERRUPTED,
    LIFT,
    REFUSED,
    EngineMemoryError,
    LocalmoeError,
    StorageError,
)
from localmoe.terminal import standard_streams

TERMINATED = 143  # exit code after SIGTERM

Handler = Callable[[Options, Output], int]

HANDLERS = {
    "fit": ("localmoe.cli.fit.command", "fit_command"),
    "plan": ("localmoe.cli.fit.command", "plan_command"),
    "pull": ("localmoe.cli.pull", "pull_command"),
    "rm": ("localmoe.cli.rm", "rm_command"),
    "run": ("localmoe.cli.run.command", "run_command"),
    "chat": ("localmoe.cli.chat.command", "chat_command"),
    "serve": ("localmoe.cli.serve", "serve_command"),
    "list": ("localmoe.cli.models", "list_command"),
    "show": ("localmoe.cli.models", "show_command"),
    "bench": ("localmoe.cli.bench.command", "bench_command"),
    "engine": ("localmoe.cli.engine", "engine_command"),
    "experts": ("localmoe.cli.experts.command", "experts_command"),
    "worker": ("localmoe.cli.worker", "worker_command"),
    "config": ("localmoe.cli.config.command", "config_command"),
    "completion": ("localmoe.cli.config.completion", "completion_command"),
    "doctor": ("localmoe.cli.doctor", "doctor_command"),
}


class InternalError(LocalmoeError):
    """A bug of localmoe."""

    code = "internal"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not standard_streams.claim():
        return 1
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _told(argv)
    finally:
        standard_streams.flush_or_drop(sys.stderr)


def _told(argv: Sequence[str]) -> int:
    """Run the command and print its errors; returns the exit code."""
    output = _output_before_parsing(argv)
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as exit_:  # SIGTERM, or rich after a broken pipe
        return exit_.code if isinstance(exit_.code, int) else 1
    except BrokenPipeError:
        standard_streams.drop(sys.stdout)
        return 1
    except LocalmoeError as error:
        return _fail(output, error)
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        if _is_short_of_memory(error):
            return _fail(output, EngineMemoryError(f"no memory is left: {line}"[:300], hint=LIFT))
        if isinstance(error, OSError):
            what = f"{error.filename}" if error.filename else "could not write the output"
            return _fail(output, StorageError(f"{what}: {error.strerror or error}"))
        hint = "please report it, with what LOCALMOE_DEBUG=1 prints"
        return _fail(output, InternalError(f"internal error: {line}", hint=hint))


def _is_short_of_memory(error: Exception) -> bool:
    """Python has no class for a thread or a library that there is no address space for."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == ENOMEM):
        return True
    return any(words in str(error) for words in REFUSED)


def _run(argv: Sequence[str]) -> int:
    options = parse(argv)
    if options.version:
        print(f"localmoe {__version__}")
        return 0
    if options.help or options.command is None:
        scope = scope_of(options.command, options.words) if options.command else None
        print(help_text(scope), end="")
        return 0
    output = Output(as_json=options.json, lines=options.jsonl, quiet=options.quiet)
    handler = _handler(options.command)
    if COMMANDS[options.command].takes_model:
        from localmoe.cli.config.defaults import configured

        options = configured(options)
        output.quiet = options.quiet
    return handler(options, output)


def _handler(command: str) -> Handler:
    """The function of a command, importing only what that command needs."""
    module, name = HANDLERS[command]
    handler: Handler = getattr(importlib.import_module(module), name)
    return handler


def _output_before_parsing(argv: Sequence[str]) -> Output:
    """Where errors go that occur before the options are parsed."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    return Output(as_json="--json" in options, lines="--jsonl" in options)


def _fail(output: Output, error: LocalmoeError) -> int:
    if os.environ.get("LOCALMOE_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    try:
        output.error(error)
        sys.stdout.flush()
    except OSError:  # stdout is broken: try stderr
        standard_streams.drop(sys.stdout)
        with contextlib.suppress(OSError):
            Output().error(error)
    return error.exit_code


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)
