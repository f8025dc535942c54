"""What it means when the Hub refuses, and what to do about it. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from localmoe.errors import LocalmoeError, TransferError, UnknownModelError
from localmoe.hub.names import Reference, not_on_hub
from localmoe.text import clean_line

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

ENDPOINT_HINT = "check HF_ENDPOINT and the proxy: this does not look like a Hub"
AGAIN = "run it again: what is here is kept"
_OF_COMMIT = re.compile(r"/(?:resolve|revision|tree)/([0-9a-f]{40})(?:/|$)")
_REASONS = {  # status → what it means, what to do
    402: ("wants to be paid for it", "see the billing page of your account"),
    407: (
        "cannot be reached without a login at the proxy",
        "put it into the address: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT",
    ),
    451: (
        "may not give it out here, for legal reasons",
        "choose another repository of the same model: localmoe fit",
    ),
}


class RefusedFileError(TransferError):
    """The server has answered, and does not give this one file; others may be had.

    Who knows the file puts its name before the message.
    """


def refusal(
    error: HfHubHTTPError, reference: Reference, endpoint: str, *, logged_in: bool
) -> LocalmoeError:
    """The error of ours for a status 4xx in answer to a question about ``reference``.

    The order of the cases matters: huggingface_hub's GatedRepoError is a RepositoryNotFoundError.
    """
    from huggingface_hub import errors

    repo = clean_line(reference.repo)
    page = f"{endpoint}/{repo}"
    status = error.response.status_code
    message = clean_line(error.response.headers.get("X-Error-Message", ""))[:200]
    if isinstance(error, errors.GatedRepoError):
        how = f"ask for access on {page}, then: hf auth login"
        if logged_in:
            how = f"your token's account has no access: ask for it on {page}"
        return TransferError(f"{repo} is gated: its publisher grants access", hint=how)
    if isinstance(error, errors.DisabledRepoError):
        return TransferError(f"{repo} is disabled on the Hub", hint=f"see {page}")
    if status in _REASONS:
        return refused_by(status, "the Hub", repo)
    commit = _OF_COMMIT.search(error.response.url.path)
    if (
        commit
        and isinstance(error, errors.RevisionNotFoundError)
        and commit[1] != reference.revision
    ):
        return TransferError(
            f"the history of {repo} was rewritten meanwhile: commit {commit[1][:10]} is gone",
            hint=AGAIN,
        )
    if isinstance(error, errors.RevisionNotFoundError):
        revision = clean_line(reference.revision or "main")
        return UnknownModelError(f"{repo} has no revision {revision}", hint=f"see {page}/tree/main")
    if isinstance(error, errors.EntryNotFoundError):
        return RefusedFileError(
            "gone from the Hub, which lists it", hint=f"run it again, or see {page}"
        )
    if status == 401 and "credentials" in message:
        return TransferError(
            "the Hub does not know this token (HF_TOKEN, or that of the last login)",
            hint="log in again: hf auth login; or do without: unset HF_TOKEN, hf auth logout",
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return not_on_hub(reference)
    if status == 403:
        return TransferError(
            f"the Hub refuses {repo}: {message or 'forbidden'}",
            hint="the token needs the right to read it: hf auth login",
        )
    if "/resolve/" in error.response.url.path:
        return RefusedFileError(
            f"the Hub answers {status}: {message or 'no reason given'}", hint=AGAIN
        )
    return TransferError(
        f"the Hub answers {status} about {repo}: {message or 'no reason given'}",
        hint=ENDPOINT_HINT,
    )


def refused_by(status: int, who: str, what: str) -> TransferError:
    """The error for one of the statuses in ``_REASONS``; ``who`` refuses ``what``."""
    meaning, hint = _REASONS[status]
    return TransferError(f"{what}: {who} {meaning} ({status})", hint=hint)


def has_meaning(status: int) -> bool:
    """Whether ``refused_by`` knows a status."""
    return status in _REASONS
