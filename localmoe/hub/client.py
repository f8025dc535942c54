"""Asking the Hub: the thin shell over huggingface_hub, whose errors become ours here.

Everything people know of huggingface_hub holds, because its own session, endpoint and token are
used: ``HF_TOKEN``, ``hf auth login``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, the proxy variables,
``set_client_factory``. A token goes to the endpoint's host and to no other: a redirect elsewhere
is followed without it (httpx2's rule for another origin).

huggingface_hub is imported when something is asked (``library``): its constants alone take about
70 ms, hf_api twice that.

API: https://huggingface.co/docs/hub/api. ``X-Error-Code`` says which kind of 4xx it is.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from localmoe import __version__
from localmoe.errors import TransferError
from localmoe.hub import library
from localmoe.hub.names import Reference
from localmoe.hub.patience import Patience, TryAgainError, persistently
from localmoe.hub.refusals import (
    AGAIN,
    ENDPOINT_HINT,
    RefusedFileError,
    has_meaning,
    refusal,
    refused_by,
)
from localmoe.text import clean_line, format_duration, reason_of

if TYPE_CHECKING:
    import httpx2

DOCUMENT_LIMIT = 64 << 20  # bytes of one JSON answer; 10,000 files take about 3 MB
TRY_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
SLOWEST = 20_000  # bytes/s of a header or a listing as a whole; below that it is given up
GRACE = 3  # times the timeout that may pass beyond that
OFFLINE_HINT = "unset HF_HUB_OFFLINE; `localmoe list` shows what is here without a network"


class Deadline:
    """How long a whole header or listing may take: longer, the more of it has arrived.

    Silence ends a request by itself, after ``timeout()`` seconds; this ends what trickles. Pauses
    that a server has asked for do not count.
    """

    def __init__(self) -> None:
        self._end = time.monotonic() + GRACE * timeout()

    def received(self, count: int) -> None:
        """Note that ``count`` more bytes have come. Raises TransferError when the time is over."""
        self._end += count / SLOWEST
        self.check()

    def check(self) -> None:
        """Raises TransferError when the time is over."""
        if time.monotonic() > self._end:
            raise TransferError(
                f"the connection to {_host()} is too slow: less than {SLOWEST // 1000} kB/s",
                hint="check the network (HTTPS_PROXY, HF_ENDPOINT), and run it again",
            )

    def sleep(self, seconds: float) -> None:
        """Wait before the next try, which does not count. Raises TransferError as ``check``."""
        self.check()
        time.sleep(seconds)
        self._end += seconds


def file_url(repo: str, commit: str, path: str) -> str:
    """The address of a file on the Hub, which redirects to the storage that has its bytes."""
    return f"{endpoint()}/{repo}/resolve/{quote(commit, safe='')}/{quote(path)}"


def endpoint() -> str:
    """``HF_ENDPOINT``, else the public Hub; without a slash at the end."""
    return str(library.constants().ENDPOINT)


def session() -> httpx2.Client:
    """huggingface_hub's HTTP client: its proxies, certificates and offline mode."""
    library.constants()
    from huggingface_hub import get_session

    return get_session()


def timeout() -> float:
    """Seconds without a byte after which a connection counts as broken."""
    usual = library.constants().HF_HUB_DOWNLOAD_TIMEOUT
    return library.seconds_in(library.TIMEOUT) or float(usual)


def request_headers() -> dict[str, str]:
    """HTTP headers with our version and the token, if there is one; nothing about the machine.

    Raises TransferError for a token that cannot be one.
    """
    headers = {"user-agent": f"localmoe/{__version__}", "accept-encoding": "identity"}
    token = _token()
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return headers


def get_json(url: str, patience: Patience, deadline: Deadline) -> tuple[Any, str | None]:
    """A JSON document and the address of the next page, if any; tries again where that helps.

    Raises TryAgainError's error or what ``hub_errors`` translates.
    """
    return persistently(lambda: _get_json(url, deadline), patience, deadline.sleep)


@contextlib.contextmanager
def hub_errors(reference: Reference) -> Iterator[None]:
    """Errors of huggingface_hub and of its HTTP client, as ours."""
    library.constants()
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        what = f"{clean_line(reference.repo)} is on the Hub, and HF_HUB_OFFLINE is set"
        raise TransferError(what, hint=OFFLINE_HINT) from error
    except errors.HfHubHTTPError as error:
        raise refusal(error, reference, endpoint(), logged_in=_token() is not None) from error
    except httpx2.TransportError as error:
        raise unreachable(error).error from error
    except (httpx2.InvalidURL, httpx2.TooManyRedirects, httpx2.DecodingError) as error:
        raise odd_answer(clean_line(str(error))[:200]) from error


def check_status(response: httpx2.Response) -> None:
    """Raise for a refusal: TryAgainError where trying again may help.

    What the storage refuses is tried again from the Hub on, for its signed addresses expire.
    """
    from huggingface_hub import hf_raise_for_status

    status = response.status_code
    if status < 300:
        return
    host = response.url.host
    own = urlsplit(endpoint()).netloc == response.url.netloc.decode("ascii", "replace")
    asked = asked_pause(response.headers)
    if status == 429:
        what = f"{host}: too many requests"
        when = f"; it asks to wait {format_duration(asked)}" if asked else ""
        error = TransferError(
            what + when,
            hint="wait and run it again: what is here is kept; being logged in allows more "
            "(hf auth login)",
        )
        raise TryAgainError(error, asked, what)
    if status in TRY_AGAIN:
        refused = RefusedFileError(
            f"{host} answers {status} {clean_line(response.reason_phrase)}",
            hint="the trouble is on the server; run it again later: what is here is kept",
        )
        raise TryAgainError(refused, asked)
    if status == 416:
        raise TransferError(
            f"{host}: the file ends before the bytes that are missing here (416)",
            hint="the file changed on the server, or the server is wrong about it; run it again",
        )
    if not own and status in (401, 403, 404, 410):
        raise TryAgainError(RefusedFileError(f"{host} refuses the file ({status})", hint=AGAIN))
    if not own and has_meaning(status):
        raise refused_by(status, host, "the file")
    if status < 400:
        raise TransferError(f"{host} redirects to nowhere ({status})", hint=ENDPOINT_HINT)
    hf_raise_for_status(response)


def unreachable(error: httpx2.TransportError) -> TryAgainError:
    """The error for a connection that could not be made, or broke."""
    import httpx2

    request = getattr(error, "_request", None)
    host = request.url.host if request is not None else _host()
    reason = reason_of(error)[:200]
    if isinstance(error, httpx2.ProxyError):
        return TryAgainError(
            TransferError(
                f"the proxy refuses the way to {host}: {reason}",
                hint="check HTTPS_PROXY, HTTP_PROXY and NO_PROXY; a login goes into the address: "
                "http://USER:PASSWORD@HOST:PORT",
            )
        )
    if isinstance(error, httpx2.TimeoutException):
        reason = f"no answer within {timeout():g} s"
    connected = not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
    what = f"the connection to {host} broke" if connected else f"cannot reach {host}"
    return TryAgainError(
        TransferError(
            f"{what}: {reason}",
            hint="check the network (HTTPS_PROXY, HF_ENDPOINT); run it again: what is here is kept",
        )
    )


def asked_pause(headers: Mapping[str, str]) -> float | None:
    """Seconds of ``Retry-After``, or until the Hub's ``RateLimit`` window is over."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    if (after := headers.get("retry-after", "").strip()).isdecimal():
        return float(after[:9])
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and not limit.remaining else None


def _get_json(url: str, deadline: Deadline) -> tuple[Any, str | None]:
    import httpx2

    try:
        with session().stream(
            "GET", url, headers=request_headers(), timeout=timeout(), follow_redirects=True
        ) as response:
            check_status(response)
            data = bytearray()
            for chunk in response.iter_bytes():
                deadline.received(len(chunk))
                data += chunk
                if len(data) > DOCUMENT_LIMIT:
                    raise odd_answer("an endless document")
            following = response.links.get("next", {}).get("url")
    except httpx2.TransportError as error:
        raise unreachable(error) from error
    try:
        return json.loads(data), following
    except (ValueError, RecursionError) as error:
        raise odd_answer("something that is not JSON") from error


def _token() -> str | None:
    if library.constants().HF_HUB_DISABLE_IMPLICIT_TOKEN:
        return None
    from huggingface_hub import get_token

    token = get_token()
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise TransferError(
            "the Hugging Face token has characters that no token has",
            hint="check HF_TOKEN, or log in again: hf auth login",
        )
    return token


def odd_answer(what: str) -> TransferError:
    return TransferError(f"{_host()} sent {what}", hint=ENDPOINT_HINT)


def _host() -> str:
    return clean_line(urlsplit(endpoint()).netloc)
