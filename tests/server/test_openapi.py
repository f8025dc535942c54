"""Requests made from our own OpenAPI document, right ones and wrong ones."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from localmoe.server.openapi import MESSAGES, document
from tests.server.served import Served
from tests.waiting import PATIENCE

CASES = 3  # for each path, right ones and as many wrong ones
SOAK_CASES = int(os.environ.get("LOCALMOE_SERVER_CASES", "500"))  # ten thousand in all
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def short() -> dict[str, Any]:
    """The document, of which every answer has three tokens at most."""
    found: dict[str, Any] = copy.deepcopy(dict(document()))
    for path in found["paths"].values():
        if "post" in path:
            content = path["post"]["requestBody"]["content"]
            schema = content["application/json"]["schema"]
            for name in set(LIMITS) & set(schema["properties"]):
                schema["properties"][name] = {"type": "integer", "minimum": 1, "maximum": 3}
    return found


def visit(served: Served, cases: int, patience: float = PATIENCE) -> Counter[int]:
    """How often which status answers that many requests to each path, right ones and wrong ones."""
    import schemathesis
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_dict(short())
    seen: Counter[int] = Counter()
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        for found in schema.get_all_operations():
            operation = found.ok()
            if operation.method == "get" and mode is GenerationMode.NEGATIVE:
                continue

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=cases if operation.method == "post" else 3,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                database=None,
            )
            def check(case: Any) -> None:
                answer = case.call(base_url=served.url, timeout=patience)
                seen[answer.status_code] += 1
                assert answer.status_code < 500 or answer.status_code == 503, answer.text

            check()
            print(mode.name.lower(), operation.path, sum(seen.values()), flush=True)
    assert served.ask("GET", "/health")[0] == 200
    return seen


@pytest.fixture
def brief(serve: Callable[..., Served]) -> Served:
    """The bundled model, of which an answer has three tokens where nothing is said."""
    return serve("nano", "-n", "3")


def test_no_request_is_a_servers_error(brief: Served) -> None:
    """Some request, right or wrong, is a 5xx other than 503, or hangs."""
    assert {200, 400} <= set(visit(brief, CASES))


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_no_request_of_ten_thousand_is_a_servers_error(
    brief: Served, record_property: Callable[[str, object], None]
) -> None:
    """Requests made from our document, right and wrong: no server's error, and memory stays."""
    visit(brief, 20)
    before = resident(brief)
    seen = visit(brief, SOAK_CASES, 12 * PATIENCE)  # a machine may stand still for minutes
    grown = (resident(brief) - before) / 2**20
    figures = {f"of {status}": count for status, count in sorted(seen.items())}
    figures |= {"requests": seen.total()}
    record_property("figures", figures | {"MiB more": f"{grown:+.1f}"})
    print(figures, f"{grown:+.1f} MiB")
    assert grown < 64


def resident(served: Served) -> int:
    """Bytes of memory of the server's process."""
    pages = Path(f"/proc/{served.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_the_document_has_what_is_read(nano: Served) -> None:
    """The document is not served, or does not say what a request has to have."""
    served = nano.ask("GET", "/openapi.json")[2]
    assert set(served["paths"]) >= {"/v1/chat/completions", "/v1/messages", "/v1/responses"}
    assert MESSAGES["required"] == ["messages"]
    for path, methods in served["paths"].items():
        status = nano.ask("POST" if "post" in methods else "GET", path, b"{}")[0]
        assert status == (400 if "post" in methods else 200), path
