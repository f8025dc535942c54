"""Bytes that no client of good will sends: the server answers, or hangs up, and lives on."""

from __future__ import annotations

import contextlib
import socket
from urllib.parse import urlsplit

import pytest

from localmoe.server import limits
from tests.server.served import Served
from tests.waiting import PATIENCE

HOST = b"Host: localhost\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
BODY = b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":1}'


def connected(served: Served) -> socket.socket:
    found = urlsplit(served.url)
    return socket.create_connection((found.hostname, found.port), timeout=PATIENCE)


def answer_to(served: Served, data: bytes, *, end: bool = True) -> bytes:
    """All that comes back until the server hangs up."""
    with connected(served) as sock, contextlib.suppress(OSError):
        with contextlib.suppress(OSError):
            sock.sendall(data)
            if end:
                sock.shutdown(socket.SHUT_WR)
        found = bytearray()
        while piece := sock.recv(65536):
            found += piece
    return bytes(found)


def is_well(served: Served) -> bool:
    return bool(served.ask("GET", "/health")[2] == {"status": "ok"})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET /health HTTP/1.1\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n"
        + HOST
        + b"a: "
        + b"b" * (limits.HEADER_BYTES * 32)
        + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 2000 + b"\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 99999999999999999999\r\n\r\n{}",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        POST + b"Content-Length: 100\r\n\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}",
        POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        POST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\n{}",
        b"\xff" * 100_000,
    ],
    ids=range(18),
)
def test_odd_bytes(nano: Served, data: bytes) -> None:
    """Odd bytes are a server's error, hang, or end the server."""
    found = answer_to(nano, data)
    assert not found or found.split(b" ")[1][:1] == b"4"
    assert is_well(nano)


def test_headers_that_arrive_in_one_read_are_bounded(nano: Served) -> None:
    """Headers beyond the bound are taken where they come whole, before any of them is missing."""
    head = b"GET /health HTTP/1.1\r\n" + HOST
    for size, first in ((limits.HEADER_BYTES - 100, b"2"), (limits.HEADER_BYTES, b"4")):
        filled = b"b" * size
        for data in (head + b"a: " + filled, head.replace(b"/health", b"/health?" + filled)):
            assert answer_to(nano, data + b"\r\n\r\n").split(b" ")[1].startswith(first)


def test_a_body_that_is_too_large_is_not_read(nano: Served) -> None:
    """A body beyond the bound is taken into memory."""
    length = b"Content-Length: %d\r\n\r\n" % (limits.BODY + 1)
    assert b" 413 " in answer_to(nano, POST + length + b"{" * 1000).split(b"\r\n")[0]


def test_pipelined_requests_are_answered_in_order(nano: Served) -> None:
    """Of requests that come at once, one is lost, or answered before one that came earlier."""
    whole = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    last = b"GET /nowhere HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    found = answer_to(nano, whole + whole + last, end=False)
    statuses = [part[:3] for part in found.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"200", b"404"]


def test_many_connections(nano: Served) -> None:
    """200 connections that say nothing, or half of something, keep the others out."""
    with contextlib.ExitStack() as stack:
        for number in range(200):
            sock = stack.enter_context(connected(nano))
            if number % 2:
                sock.sendall(POST)
        assert is_well(nano)
        more = [stack.enter_context(connected(nano)) for _ in range(limits.CONNECTIONS - 150)]
        refused = [sock for sock in more[-10:] if b" 503 " in sock.recv(100)]
        assert len(refused) == 10
    assert is_well(nano)
