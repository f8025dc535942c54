"""What it means when the Hub refuses, and what to do about it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localmoe.errors import LocalmoeError, TransferError, UnknownModelError
from localmoe.hub.names import Reference, not_on_hub
from localmoe.text import clean_line

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

ENDPOINT_HINT = "check HF_ENDPOINT and the proxy: this does not look like a Hub"


def refusal(
    error: HfHubHTTPError, reference: Reference, endpoint: str, *, logged_in: bool
) -> LocalmoeError:
    """A 4xx about ``reference`` as an error of ours.

    The order matters: to huggingface_hub a gated repository is a missing one, too.
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
    if isinstance(error, errors.RevisionNotFoundError):
        revision = clean_line(reference.revision or "main")
        return UnknownModelError(f"{repo} has no revision {revision}", hint=f"see {page}/tree/main")
    if isinstance(error, errors.EntryNotFoundError):
        return TransferError(
            f"a file of {repo} is gone from the Hub", hint=f"run it again, or see {page}"
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
    return TransferError(
        f"the Hub answers {status} about {repo}: {message or 'no reason given'}",
        hint=ENDPOINT_HINT,
    )
