"""``worker``: lends this machine's memory to a localmoe on another one, by llama.cpp's RPC."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

from localmoe.app.addresses import LOOPBACK, how_to_connect, warning_for
from localmoe.cli.arguments import Options, no_words
from localmoe.cli.output import Output
from localmoe.cli.placement_options import DEFAULT_PORT
from localmoe.engine.rpc_serving import Server
from localmoe.facts import hardware
from localmoe.terminal.live_line import LiveLine
from localmoe.text import clean_line, format_bytes


def worker_command(options: Options, output: Output) -> int:
    """Serve until Ctrl-C; exit code 0."""
    no_words(options)
    host, port = options.host or LOOPBACK, options.port or DEFAULT_PORT
    warning = warning_for(host, port)
    if warning:
        output.warn(warning)
    threads = options.threads or hardware.detect().cores_physical
    with (
        contextlib.suppress(KeyboardInterrupt),  # the way to end it
        Server(host, port, threads, options.ram) as server,
    ):
        if output.as_json:
            output.json(document(server, warning))
        else:
            for device in server.devices:
                memory = f"{format_bytes(device.free)} free of {format_bytes(device.total)}"
                output.print(f"serving {device.name} ({clean_line(device.description)}): {memory}")
            output.print(f"at {server.endpoint}, one client at a time; Ctrl-C ends it")
            for how in how_to_connect(host, port):
                output.print(f"  {how}")
        with LiveLine(output.stderr) as line:
            while True:
                event = server.next_event()
                if event == "ended":
                    output.warn(f"the server ended and was started again: {server.last_words}")
                line.show("in use" if event == "connected" else "waiting")
    return 0


def document(server: Server, warning: str | None) -> dict[str, object]:
    """``worker --json``, written when the server listens."""
    return {
        "endpoint": server.endpoint,
        "pid": server.pid,
        "devices": [asdict(device) for device in server.devices],
        "warning": warning,
    }
