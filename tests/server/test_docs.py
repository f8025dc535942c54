"""docs/serve.md beside what the server does."""

from __future__ import annotations

from localmoe.cli.options import GROUPS
from localmoe.server import limits
from localmoe.server.http import DIALECTS
from localmoe.server.openapi import GETS, POSTS, document
from tests.cli.command import SOURCE

PAGE = (SOURCE / "docs" / "serve.md").read_text("utf-8")


def test_every_path_is_on_the_page() -> None:
    """A path is answered that the page or the OpenAPI document does not have."""
    assert {path for path, _, _ in DIALECTS} <= set(POSTS)
    for path in (*POSTS, *GETS):
        assert f"{path}`" in PAGE, path


def test_every_option_of_the_network_is_on_the_page() -> None:
    """An option is taken that the page does not explain."""
    (group,) = [group for group in GROUPS if group.title == "the network"]
    for option in group.options:
        assert f"--{option.name}" in PAGE, option.name


def test_every_field_that_counts_is_on_the_page() -> None:
    """A field has an effect, and the page does not name it."""
    plain = {"model", "messages", "prompt", "input", "content", "system", "stream", "type", "text"}
    for path in ("/v1/chat/completions", "/v1/completions"):
        schema = document()["paths"][path]["post"]["requestBody"]["content"]["application/json"]  # type: ignore[index]
        for name in set(schema["schema"]["properties"]) - plain - {"stream_options", "echo"}:
            assert name in PAGE, name


def test_the_bounds_are_as_the_page_says() -> None:
    """A bound was changed, and the page has the old one."""
    for number, words in (
        (limits.BODY >> 20, "MiB and"),
        (limits.DEPTH, "levels deep"),
        (limits.HEADERS, "lines and"),
        (limits.HEADER_BYTES >> 10, "KiB,"),
        (limits.CONNECTIONS, ";"),
        (limits.QUEUE, "may wait"),
    ):
        assert f"{number} {words}".replace(" ;", ";") in PAGE, words
