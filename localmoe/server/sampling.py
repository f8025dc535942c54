"""The fields of a request that say how tokens are chosen, as OpenAI and llama-server name them."""

from __future__ import annotations

from typing import Any

from localmoe.app import checks
from localmoe.engine.grammar import schema_to_gbnf
from localmoe.errors import UsageError
from localmoe.server import limits
from localmoe.server.fields import Fields
from localmoe.server.problems import Problem

MAX_INT = 2**31 - 1
ANY_OBJECT = {"type": "object"}
EFFORTS = {  # OpenAI's words → our levels
    "none": "off",
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
    "max": "high",
}


def sampling_of(fields: Fields) -> dict[str, Any]:
    """Fields of ``Sampling`` that the request gives. Raises Problem."""
    top_k = fields.whole("top_k", -1, MAX_INT)
    last_n = fields.whole("repeat_last_n", -1, 1 << 20)
    seed = fields.whole("seed", -(2**63), 2**64 - 1)
    given = {
        "temperature": fields.number("temperature", 0, 100),
        "top_p": fields.number("top_p", 0, 1),
        "min_p": fields.number("min_p", 0, 1),
        "repeat_penalty": fields.number("repeat_penalty", 0.01, 100),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "top_k": None if top_k is None else max(0, top_k),
        "repeat_last_n": None if last_n is None or last_n < 0 else last_n,
        "logit_bias": _logit_bias(fields),
        "seed": None if seed is None or seed < 0 else seed % 2**32,  # -1: a fresh one
    }
    return {name: value for name, value in given.items() if value is not None}


def stop_texts(fields: Fields, name: str = "stop") -> tuple[str, ...]:
    """Texts that end the answer. Raises Problem."""
    return tuple(filter(None, fields.texts(name, limits.STOP_TEXTS, limits.STOP_LENGTH)))


def most_tokens(fields: Fields, *names: str) -> int | None:
    """The first of the limits that is given; -1 is none. Raises Problem."""
    found = [fields.whole(name, -1, MAX_INT) for name in names]
    for name, value in zip(names, found, strict=True):
        if value == 0:
            fields.wrong(name, "a number of tokens, at least 1")
    return next((value for value in found if value is not None and value > 0), None)


def schema_of(fields: Fields) -> object:
    """The JSON schema that ``response_format`` or llama-server's ``json_schema`` asks for.

    None for plain text. Raises Problem.
    """
    if (own := fields.raw("json_schema")) is not None:
        return checked_schema(own, "json_schema")
    wanted = fields.inner("response_format")
    if wanted is None:
        return None
    match wanted.choice("type", ("text", "json_object", "json_schema")):
        case "json_schema":
            inner = wanted.inner("json_schema")
            schema = (inner or wanted).raw("schema")
            return checked_schema(ANY_OBJECT if schema is None else schema, "response_format")
        case "json_object":
            schema = wanted.raw("schema")  # llama-server's way
            return checked_schema(ANY_OBJECT if schema is None else schema, "response_format")
        case None:
            wanted.missing("type")
    return None


def checked_schema(schema: object, param: str) -> object:
    """The schema, if it can be enforced. Raises Problem."""
    try:
        schema_to_gbnf(schema)
    except UsageError as error:
        hint = f" ({error.hint})" if error.hint else ""
        raise Problem(400, f"{param}: {error.message}{hint}", param=param) from None
    return schema


def think_level(fields: Fields) -> str | None:
    """How much the model should reason, from ``reasoning_effort`` or the template's own names."""
    effort = fields.choice("reasoning_effort", tuple(EFFORTS))
    arguments = fields.inner("chat_template_kwargs")
    if effort is None and arguments is not None:
        effort = arguments.choice("reasoning_effort", tuple(EFFORTS))
        for name in ("enable_thinking", "thinking"):
            switch = arguments.flag(name)
            if switch is not None and effort is None:
                return "medium" if switch else "off"
    return None if effort is None else EFFORTS[effort]


def answers_of(fields: Fields) -> int:
    """How many answers to the prompt are wanted. Raises Problem."""
    wanted = fields.whole("n", 1, limits.ANSWERS) or 1
    if (fields.whole("best_of", 1, limits.ANSWERS) or wanted) != wanted:
        raise Problem(400, "best_of: all answers are given back, as many as n", param="best_of")
    return wanted


def _logit_bias(fields: Fields) -> object:
    """Biases by the numbers of tokens; llama-server's list of pairs is one too."""
    given = fields.raw("logit_bias")
    if isinstance(given, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in given):
        given = {str(token): bias for token, bias in given}
    if not given:
        return None
    try:
        checks.logit_bias(given)
    except UsageError as error:
        raise Problem(400, error.message, param="logit_bias") from None
    return given
