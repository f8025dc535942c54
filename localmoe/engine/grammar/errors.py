"""What a grammar cannot enforce."""

from __future__ import annotations

from localmoe.errors import UsageError


def refusal(at: str, why: str) -> UsageError:
    """The error about the part of a schema at ``at``, a JSON pointer."""
    return UsageError(
        f"the schema at {at}: {why}",
        hint="all that is accepted is enforced, nothing is ignored: leave this out, or say it "
        "another way",
    )
