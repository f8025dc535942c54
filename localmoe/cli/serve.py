"""``serve``: the model for editors, agents and web pages, over HTTP."""

from __future__ import annotations

import dataclasses
import os

from localmoe.cli.arguments import Options, only_model
from localmoe.cli.output import Output
from localmoe.cli.requests import load_request, sample_request
from localmoe.errors import UsageError
from localmoe.server.requests import LOOPBACK, Door, ServeRequest
from localmoe.server.serving import serve
from localmoe.storage import user_path
from localmoe.text import clean_line, shortened

KEY_FILE_SIZE = 65_536  # bytes


def serve_command(options: Options, output: Output) -> int:
    """Serve until SIGTERM or Ctrl-C; exit code 0."""
    request = serve_request(options)

    def ready(address: str) -> None:
        if output.as_json:
            output.json(document(address, request))
        what = f"{clean_line(request.load.name)}: " if request.load.name else ""
        output.announce(f"{what}listening on {address}")

    serve(request, output, ready)
    return 0


def document(address: str, request: ServeRequest) -> dict[str, object]:
    """``serve --json``, written when requests are answered."""
    return {"address": address, "pid": os.getpid(), "model": request.load.name}


def serve_request(options: Options) -> ServeRequest:
    """What was typed, as the server takes it. Raises UsageError."""
    if options.overflow not in (None, "drop", "stop"):
        raise UsageError(
            f"nobody can be asked here: --overflow {options.overflow} is not for serve",
            hint="--overflow error refuses what is too long, --overflow drop leaves out the oldest",
        )
    door = Door(
        host=options.host or LOOPBACK,
        port=options.port,
        keys=(*_keys(options.api_key), *_keys_in(options.api_key_file)),
        origins=options.cors,
        hosts=options.allow_host,
    )
    load = load_request(options, only_model(options))
    wishes = dataclasses.replace(load.plan.wishes, prompt_cache=None)  # many clients, one context
    plan = dataclasses.replace(load.plan, wishes=wishes, roomy=True)
    return ServeRequest(
        load=dataclasses.replace(load, plan=plan),
        sample=sample_request(options),
        door=door,
        aliases=dict(options.alias),
        idle=options.idle,
        may_pull=options.allow_pull,
        drop=options.overflow == "drop",
    )


def _keys(key: str | None) -> tuple[str, ...]:
    if key is None:
        return ()
    if not key.strip() or not key.isascii() or not key.isprintable():
        raise UsageError("a key is made of printable ASCII characters")
    return (key.strip(),)


def _keys_in(path: str | None) -> tuple[str, ...]:
    """One key a line; empty lines and lines with # are none."""
    if path is None:
        return ()
    with user_path(path).open("rb") as stream:
        data = stream.read(KEY_FILE_SIZE)
    lines = [line.strip() for line in data.decode("utf-8", "replace").splitlines()]
    keys = [key for line in lines if line and not line.startswith("#") for key in _keys(line)]
    if not keys:
        raise UsageError(f"there is no key in {clean_line(shortened(path, 100))}")
    return tuple(keys)
