"""The values of ``--experts-on``, ``--override`` and ``--remote``, parsed and checked. Pure."""

from __future__ import annotations

import argparse
import re

TIERS = ("gpu", "ram", "disk")
MAX_LAYER = 10_000
DEFAULT_PORT = 50052  # llama.cpp's own

Spans = tuple[tuple[int, int], ...]
"""First and last layer of each span, both included; () = all layers."""


def experts_on(text: str) -> tuple[str, Spans]:
    """``gpu``, ``ram:0-11`` or ``disk:3,20-47`` → (tier, spans)."""
    tier, colon, layers = text.partition(":")
    spans = [_span(part) for part in layers.split(",")] if colon else []
    if tier not in TIERS or None in spans:
        raise argparse.ArgumentTypeError(
            f'"{text}" is not gpu, ram or disk, with or without layers: ram:0-11,15'
        )
    return tier, tuple(span for span in spans if span is not None)


def override(text: str) -> list[tuple[str, str]]:
    """``REGEX=DEVICE``, or several with commas between them, as llama.cpp's ``-ot`` takes them."""
    found = []
    for part in text.split(","):
        pattern, equals, device = part.rpartition("=")
        if not equals or not pattern or not device:
            raise argparse.ArgumentTypeError(f'"{text}" is not REGEX=DEVICE, such as exps=CPU')
        try:
            re.compile(pattern)
        except re.error as error:
            raise argparse.ArgumentTypeError(
                f'"{pattern}" is not a regular expression: {error}'
            ) from None
        found.append((pattern, device))
    return found


def remote(text: str) -> list[str]:
    """``host``, ``host:port`` or ``:port`` (this machine), or several with commas between them."""
    return [_endpoint(part) for part in text.split(",")]


def _endpoint(text: str) -> str:
    if "[" in text or text.count(":") > 1:
        raise argparse.ArgumentTypeError(
            f'"{text}" is an IPv6 address, which llama.cpp\'s RPC does not know: take the IPv4 '
            "address, or a name"
        )
    host, colon, port = text.partition(":")
    number = int(port) if re.fullmatch(r"[0-9]{1,5}", port) else 0
    number = number if colon else DEFAULT_PORT
    if not 0 < number < 65536 or not text.isprintable() or any(c in host for c in " /@"):
        raise argparse.ArgumentTypeError(f'"{text}" is not host:port, such as 192.168.1.20:50052')
    return f"{host or '127.0.0.1'}:{number}"


def _span(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text, re.ASCII)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    return (first, last) if first <= last <= MAX_LAYER else None
