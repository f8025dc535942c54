"""Who may come in: the name by which a client calls, its origin, its key. Before anything is read.

A web page in a browser can send requests to this machine. It cannot forge ``Host`` (so a name that
was re-bound to 127.0.0.1 shows) nor ``Origin`` (so pages of other sites show), and it is not given
the key.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localmoe.app.addresses import is_loopback
from localmoe.server import limits
from localmoe.server.dialects import problems_at
from localmoe.server.problems import Problem
from localmoe.server.replies import refusal
from localmoe.text import clean_line, shortened

OPEN = ("/health",)  # paths that need no key
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
ANY = "*"
PREFLIGHT_AGE = "600"  # seconds that a browser may remember the answer


@dataclass(frozen=True, slots=True)
class Rules:
    """``hosts``: names by which the server may be called, None: any; ``keys``: () is open."""

    hosts: frozenset[str] | None
    origins: frozenset[str] = frozenset()
    keys: tuple[bytes, ...] = ()


def rules(
    host: str, keys: Iterable[str] = (), origins: Iterable[str] = (), hosts: Iterable[str] = ()
) -> Rules:
    """The rules of a server that listens at ``host``."""
    named = frozenset(name.lower() for name in hosts)
    checked = is_loopback(host) or named
    return Rules(
        hosts=LOCAL_NAMES | named | {_bracketed(host)} if checked else None,
        origins=frozenset(origin.lower().rstrip("/") for origin in origins),
        keys=tuple(key.encode() for key in keys),
    )


class Access:
    """The middleware that lets in or refuses; ``note`` is told of whom it refuses."""

    def __init__(
        self, app: ASGIApp, rules: Rules, note: Callable[[Scope, Problem], None] = lambda *_: None
    ) -> None:
        self._app = app
        self._rules = rules
        self._note = note

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin if origin is not None and self._admits(origin) else None
        problem = self._problem(scope, headers, allowed)
        if problem is not None:
            self._note(scope, problem)
            response = refusal(problem, problems_at(scope["path"]))
        elif allowed is not None and _is_preflight(scope, headers):
            response = _preflight(headers)
        else:
            await self._app(scope, receive, _with_cors(send, allowed))
            return
        await response(scope, receive, _with_cors(send, allowed))

    def _problem(self, scope: Scope, headers: Headers, allowed: str | None) -> Problem | None:
        if len(scope["headers"]) > limits.HEADERS:
            return Problem(431, f"more than {limits.HEADERS} headers")
        if _size(scope) > limits.HEADER_BYTES:
            return Problem(431, f"more than {limits.HEADER_BYTES >> 10} KiB of headers")
        host = headers.get("host", "")
        if self._rules.hosts is not None and _name_of(host) not in self._rules.hosts:
            return Problem(
                403,
                f"this server does not go by the name {_shown(host)} "
                "(`localmoe serve --allow-host NAME` lets it)",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and allowed is None and not _is_same(origin, host):
            return Problem(
                403,
                f"pages of {_shown(origin)} may not use this server "
                f"(`localmoe serve --cors {_shown(origin)}` lets them)",
                code="origin_not_allowed",
            )
        if scope["path"] in OPEN or (allowed is not None and _is_preflight(scope, headers)):
            return None
        return self._key_problem(headers)

    def _key_problem(self, headers: Headers) -> Problem | None:
        if not self._rules.keys:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        offered = [given.strip()] if scheme.lower() == "bearer" else []
        offered.append(headers.get("x-api-key", ""))
        right = False
        for key in offered:
            for known in self._rules.keys:  # each is compared, whichever is right
                right |= hmac.compare_digest(key.encode("latin-1", "replace"), known)
        if right:
            return None
        what = "the key is wrong" if any(offered) else "a key is needed"
        return Problem(
            401, f"{what}: Authorization: Bearer KEY, or x-api-key", code="invalid_api_key"
        )

    def _admits(self, origin: str) -> bool:
        return ANY in self._rules.origins or origin.lower() in self._rules.origins


def _size(scope: Scope) -> int:
    """Bytes of a request before its body, but for the method and the protocol's name."""
    lines = sum(len(name) + len(value) + len(b": \r\n") for name, value in scope["headers"])
    return lines + len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


def _preflight(headers: Headers) -> Response:
    asked = headers.get("access-control-request-headers", "")
    names = [name.strip() for name in asked.split(",")]
    known = [name for name in names if re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name)]
    answer = {
        "access-control-allow-methods": "GET, POST, OPTIONS",
        "access-control-allow-headers": ", ".join(known),
        "access-control-max-age": PREFLIGHT_AGE,
    }
    if "access-control-request-private-network" in headers:
        answer["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=answer)


def _with_cors(send: Send, allowed: str | None) -> Send:
    """``send`` that tells the browser which origin may read the answer."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message.get("headers", ())))
            headers.add_vary_header("Origin")
            if allowed is not None:
                headers["access-control-allow-origin"] = allowed
                headers["access-control-expose-headers"] = "*"
            message = {**message, "headers": headers.raw}
        await send(message)

    return sending


def _is_same(origin: str, host: str) -> bool:
    parts = urlsplit(origin) if "://" in origin and "[" not in origin else None
    return parts is not None and parts.scheme in ("http", "https") and parts.netloc == host != ""


def _name_of(host: str) -> str:
    """The name in a Host header, without the port."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?", host.strip())
    return found[1].lower().rstrip(".") if found else ""


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host.lower()


def _shown(text: str) -> str:
    return clean_line(shortened(text, 80)) or "(none)"
