"""The body of a request: read within bounds, parsed within bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from starlette.requests import Request

from localmoe.server import limits
from localmoe.server.problems import Problem


class Bodies:
    """Reads bodies; all that are being read at a time stay below ``limits.BODIES``."""

    def __init__(self) -> None:
        self._held = 0

    async def object_of(self, request: Request) -> dict[str, Any]:
        """The JSON object in the body of ``request``.

        Raises Problem; starlette's ClientDisconnect.
        """
        announced = request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limits.BODY:
            raise _too_large()
        data = bytearray()
        stream = request.stream()
        try:
            while True:
                try:
                    async with asyncio.timeout(limits.BODY_SILENCE):
                        chunk = await anext(stream, None)
                except TimeoutError:
                    raise Problem(408, "the rest of the request's body did not come") from None
                if chunk is None:
                    break
                self._held += len(chunk)
                data += chunk
                if len(data) > limits.BODY:
                    raise _too_large()
                if self._held > limits.BODIES:
                    raise Problem(503, "too many large requests at once", retry_after=5)
            return parse(bytes(data))
        finally:
            self._held -= len(data)


def parse(data: bytes) -> dict[str, Any]:
    """A JSON object of bounded depth, without numbers or text that JSON has not. Raises Problem."""
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_no_number)
        if b"\\u" in data:  # half a surrogate pair is no text: it becomes "?"
            whole = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
            value = json.loads(whole)
    except UnicodeDecodeError:
        raise Problem(400, "the body is not UTF-8") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise Problem(400, f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Problem(400, "the body is not a JSON object")
    _check_depth(value)
    return value


def _check_depth(value: Mapping[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(limits.DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _too_deep() -> Problem:
    return Problem(400, f"the body is nested more than {limits.DEPTH} levels deep")


def _too_large() -> Problem:
    return Problem(413, f"the body is larger than {limits.BODY >> 20} MiB")
