"""Addresses to listen at: who reaches them, and how another machine connects to its memory."""

from __future__ import annotations

import contextlib
import getpass
import ipaddress
import socket

from localmoe.engine.rpc_serving import ANY

LOOPBACK = "127.0.0.1"


def warning_for(host: str, port: int) -> str | None:
    """What is dangerous about an address that others can reach. Pure but for our own names."""
    if is_loopback(host):
        return None
    return (
        f"anyone who reaches {host}:{port} can use this machine's memory and crash the server: the "
        "protocol has no password and no encryption. Safer: listen on 127.0.0.1 and, on the other "
        f"machine, {ssh_line(port)}"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def ssh_line(port: int) -> str:
    """A tunnel from the other machine to this one."""
    return f"ssh -N -L {port}:127.0.0.1:{port} {getpass.getuser()}@{socket.gethostname()}"


def how_to_connect(host: str, port: int) -> list[str]:
    """What to type on the other machine."""
    if is_loopback(host):
        return [
            f"on the other machine: {ssh_line(port)}",
            f"and there: localmoe chat MODEL --remote 127.0.0.1:{port}",
        ]
    name = socket.gethostname() if host == ANY else host
    return [f"on the other machine: localmoe chat MODEL --remote {name}:{port}"]
