"""What a grammar cannot enforce."""

from __future__ import annotations

from localmoe.errors import UsageError


class SchemaRefusedError(UsageError):
    """A part of a schema that no grammar can enforce; ``at`` is its JSON pointer."""

    at: str = "#"


def refusal(at: str, why: str) -> SchemaRefusedError:
    """The error about the part of a schema at ``at``, a JSON pointer."""
    error = SchemaRefusedError(
        f"the schema at {at}: {why}",
        hint="all that is accepted is enforced, nothing is ignored: leave this out, or say it "
        "another way",
    )
    error.at = at
    return error
