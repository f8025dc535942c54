"""Who may come in: names, origins, keys."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from localmoe.server import limits
from localmoe.server.access import Access, Rules, rules

LOCAL = rules("127.0.0.1")
KEYED = rules("0.0.0.0", keys=("secret", "other"))
PAGES = rules("127.0.0.1", keys=("secret",), origins=("https://chat.example/",))


def visit(
    who: Rules, headers: Iterable[tuple[str, str]], path: str = "/v1/models", method: str = "GET"
) -> tuple[int, dict[str, str]]:
    """Status and headers of a request that would be answered with 200."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(Access(app, who)(scope, receive, send))
    return sent[0]["status"], {n.decode(): v.decode() for n, v in sent[0]["headers"]}


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "localhost."]
)
def test_its_own_names_are_let_in(host: str) -> None:
    """A client that calls this machine by one of its loopback names is refused."""
    assert visit(LOCAL, [("Host", host)])[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost:x",
        "localhost@evil",
        "[::1",
        "0.0.0.0",
    ],
)
def test_another_name_is_refused(host: str) -> None:
    """A name that was re-bound to 127.0.0.1 lets a web page in."""
    assert visit(LOCAL, [("Host", host)])[0] == 403


def test_an_allowed_name_is_let_in() -> None:
    """A container that calls the host by its name is refused in spite of --allow-host."""
    who = rules("127.0.0.1", hosts=("host.docker.internal",))
    assert visit(who, [("Host", "host.docker.internal:8080")])[0] == 200
    assert visit(who, [("Host", "evil.example")])[0] == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost", "file://"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_others_are_refused(origin: str, method: str) -> None:
    """A page of another origin can make the server work, or read what it says."""
    headers = [
        ("Host", "localhost:80"),
        ("Origin", origin),
        ("Access-Control-Request-Method", "POST"),
    ]
    status, answered = visit(LOCAL, headers, method=method)
    assert status == 403
    assert "access-control-allow-origin" not in answered


def test_pages_of_an_allowed_origin_may_come() -> None:
    """--cors does not let its origin in, preflight included, or it spares it the key."""
    page = [("Host", "localhost"), ("Origin", "https://chat.example")]
    asks = [
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "x-a, b\t"),
    ]
    status, headers = visit(PAGES, [*page, *asks], method="OPTIONS")
    assert (status, headers["access-control-allow-origin"]) == (204, "https://chat.example")
    assert headers["access-control-allow-headers"] == "x-a, b"
    assert visit(PAGES, page)[0] == 401
    status, headers = visit(PAGES, [*page, ("Authorization", "Bearer secret")])
    assert (status, headers["access-control-allow-origin"]) == (200, "https://chat.example")
    assert headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "given",
    [("Authorization", "Bearer secret"), ("x-api-key", "other"), ("authorization", "bearer other")],
)
def test_a_key_lets_in(given: tuple[str, str]) -> None:
    """A right key is refused in one of the ways that clients send it."""
    assert visit(KEYED, [given])[0] == 200


@pytest.mark.parametrize(
    "given", [("A", ""), ("Authorization", "secret"), ("x-api-key", "secre"), ("x-api-key", "ключ")]
)
def test_without_the_key_nothing_is_answered(given: tuple[str, str]) -> None:
    """A missing, wrong or odd key lets in; or it hides whether the server lives."""
    status, headers = visit(KEYED, [given])
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert visit(KEYED, [given], "/health")[0] == 200


def test_who_is_refused_is_noted() -> None:
    """The owner of a server does not hear of who is kept out, and why."""
    noted: list[str | None] = []

    async def scene() -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        async def send(message: Message) -> None:
            pass

        scope: Scope = {"type": "http", "method": "GET", "path": "/metrics", "headers": []}
        door = Access(Response(), LOCAL, lambda _, problem: noted.append(problem.code))
        await door(scope, receive, send)

    asyncio.run(scene())
    assert noted == ["host_not_allowed"]


def test_headers_are_counted() -> None:
    """Any number of headers is taken, or any size of them, before the key is looked at."""
    assert visit(KEYED, [("a", "b")] * (limits.HEADERS + 1))[0] == 431
    room = limits.HEADER_BYTES - len("a: \r\n")
    assert visit(KEYED, [("a", "b" * room)])[0] == 401
    assert visit(KEYED, [("a", "b" * (room + 1))])[0] == 431
