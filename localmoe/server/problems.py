"""Errors as HTTP statuses, and in the form that each dialect's clients read. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from localmoe.errors import (
    ContextOverflowError,
    DoesNotFitError,
    EngineError,
    LocalmoeError,
    ModelFileError,
    TemplateError,
    TransferError,
    UnknownModelError,
    UsageError,
)
from localmoe.text import clean

Document = Mapping[str, object]

_KINDS = {  # status → OpenAI's and Anthropic's word for it
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    431: ("invalid_request_error", "invalid_request_error"),
    503: ("server_error", "overloaded_error"),
}
_INTERNAL = ("server_error", "api_error")


class Problem(Exception):  # noqa: N818
    """Why a request is not answered. ``param``: the field of the request that is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after  # seconds


@dataclass(frozen=True, slots=True)
class _Kind:
    error: type[LocalmoeError]
    status: int
    code: str | None = None


_FIELD = re.compile(r"(?:messages|input|system|tools|tool_choice|logit_bias)\b(?:\.\w+|\[\d+\])*")
"""At the beginning of a message: the field of the request that it is about."""

_OF_ERRORS = (  # the first that matches
    _Kind(UnknownModelError, 404, "model_not_found"),
    _Kind(ContextOverflowError, 400, "context_length_exceeded"),
    _Kind(DoesNotFitError, 400, "does_not_fit"),
    _Kind(UsageError, 400),
    _Kind(TemplateError, 400, "template"),
    _Kind(ModelFileError, 400, "bad_model"),
    _Kind(TransferError, 503, "transfer"),
    _Kind(EngineError, 503, "engine"),
)


def problem_of(error: BaseException) -> Problem:
    """The problem that an error is for the client whose request met it."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, LocalmoeError):
        for kind in _OF_ERRORS:
            if isinstance(error, kind.error):
                message, hint = error.typed()
                message = f"{message} ({hint})" if hint else message
                code = kind.code if kind.code != "engine" else error.code
                field = _FIELD.match(message) if isinstance(error, UsageError) else None
                param = field[0] if field else None
                return Problem(kind.status, clean(message), code=code, param=param)
    return Problem(500, f"internal error: {type(error).__name__}", code="internal")


def for_openai(problem: Problem) -> Document:
    """``{"error": …}`` as OpenAI's libraries read it; the counts have llama-server's names."""
    counts = _counts(problem)
    named = {"n_prompt_tokens": counts.tokens, "n_ctx": counts.context} if counts else {}
    return {
        "error": {
            "message": words_for_openai(problem),
            "type": _KINDS.get(problem.status, _INTERNAL)[0],
            "param": problem.param,
            "code": problem.code,
            **named,
        }
    }


def for_anthropic(problem: Problem) -> Document:
    """``{"type": "error", …}`` as Anthropic's libraries read it."""
    kind, counts = _KINDS.get(problem.status, _INTERNAL)[1], _counts(problem)
    message = problem.message
    if counts:
        message = f"prompt is too long: {counts.tokens} tokens > {counts.context} maximum"
        message += counts.hint
    return {"type": "error", "error": {"type": kind, "message": message}}


def words_for_openai(problem: Problem) -> str:
    """The message of the error."""
    counts = _counts(problem)
    if counts is None:
        return problem.message
    return (
        f"This model's maximum context length is {counts.context} tokens here, but the prompt has "
        f"{counts.tokens}{counts.hint}"
    )


@dataclass(frozen=True, slots=True)
class _Counts:
    """Of a prompt that is too long. Agents look for the words of their dialect, to shorten it."""

    tokens: int
    context: int
    hint: str  # " (…)", or ""


def _counts(problem: Problem) -> _Counts | None:
    if problem.code != "context_length_exceeded":
        return None
    said, mark, hint = problem.message.partition(" (")
    found = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", said)]
    return _Counts(found[0], found[1], mark + hint) if len(found) == 2 else None
