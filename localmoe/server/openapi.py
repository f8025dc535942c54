"""``/openapi.json``: the paths, and the fields of requests that have an effect here."""

from __future__ import annotations

from collections.abc import Mapping

from localmoe import __version__
from localmoe.app.checks import MOST_LOGPROBS
from localmoe.server import limits
from localmoe.server.problems import Document
from localmoe.server.sampling import EFFORTS, MAX_INT

Schema = Mapping[str, object]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _list(items: Schema, most: int | None = None, least: int = 0) -> Schema:
    bounds = {"minItems": least} | ({} if most is None else {"maxItems": most})
    return {"type": "array", "items": items, **bounds}


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _choice(*values: str) -> Schema:
    return {"enum": list(values)}


def _object(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(required)}


STOP_TEXT = {"type": "string", "maxLength": limits.STOP_LENGTH}
STOPS = _either(STOP_TEXT, _list(STOP_TEXT, limits.STOP_TEXTS))
MOST = _whole(1, MAX_INT)
ANSWERS = _whole(1, limits.ANSWERS)
SAMPLING: dict[str, Schema] = {
    "temperature": _number(0, 100),
    "top_p": _number(0, 1),
    "top_k": _whole(-1, MAX_INT),
    "min_p": _number(0, 1),
    "repeat_penalty": _number(0.01, 100),
    "repeat_last_n": _whole(-1, 1 << 20),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "seed": _whole(-(2**63), 2**64 - 1),
    "logit_bias": {"type": "object", "additionalProperties": _number(-100, 100)},
}
COMMON: dict[str, Schema] = {"model": TEXT, "stream": FLAG, **SAMPLING}
EFFORT = _choice(*EFFORTS)


def _parts(*kinds: str) -> Schema:
    return _list(_object(("type", "text"), type=_choice(*kinds), text=TEXT))


FORMAT = _object(
    ("type",),
    type=_choice("text", "json_object", "json_schema"),
    json_schema=_object(schema=OBJECT),
    schema=OBJECT,
)
CHAT = _object(
    ("messages",),
    **COMMON,
    messages=_list(
        _object(
            ("role", "content"),
            role=_choice("system", "developer", "user", "assistant"),
            content=_either(TEXT, _parts("text")),
            reasoning_content=TEXT,
        ),
        least=1,
    ),
    max_tokens=MOST,
    max_completion_tokens=MOST,
    n=ANSWERS,
    stop=STOPS,
    stream_options=_object(include_usage=FLAG),
    return_progress=FLAG,
    response_format=FORMAT,
    reasoning_effort=EFFORT,
    chat_template_kwargs=_object(enable_thinking=FLAG, thinking=FLAG, reasoning_effort=EFFORT),
    logprobs=FLAG,
    top_logprobs=_whole(0, MOST_LOGPROBS),
)
COMPLETION = _object(
    ("prompt",),
    **COMMON,
    prompt={"type": "string", "minLength": 1},
    max_tokens=MOST,
    n=ANSWERS,
    stop=STOPS,
    echo=FLAG,
    logprobs=_whole(0, MOST_LOGPROBS),
    response_format=FORMAT,
    stream_options=_object(include_usage=FLAG),
)
RESPONSE = _object(
    ("input",),
    **COMMON,
    input=_either(
        TEXT,
        _list(
            _object(
                ("role", "content"),
                type=_choice("message"),
                role=_choice("system", "developer", "user", "assistant"),
                content=_either(TEXT, _parts("input_text", "output_text")),
            ),
            least=1,
        ),
    ),
    instructions=TEXT,
    max_output_tokens=MOST,
    reasoning=_object(effort=EFFORT),
    text=_object(
        format=_object(("type",), type=_choice("text", "json_object", "json_schema"), schema=OBJECT)
    ),
)
MESSAGES = _object(
    ("messages",),
    **COMMON,
    messages=_list(
        _object(
            ("role", "content"),
            role=_choice("user", "assistant"),
            content=_either(TEXT, _parts("text")),
        ),
        least=1,
    ),
    system=_either(TEXT, _parts("text")),
    max_tokens=MOST,
    stop_sequences=STOPS,
    thinking=_object(
        ("type",), type=_choice("enabled", "disabled", "adaptive"), budget_tokens=_whole(0, MAX_INT)
    ),
    output_config=_object(effort=EFFORT),
)
TOKENIZE = _object(
    ("content",),
    model=TEXT,
    content=TEXT,
    add_special=FLAG,
    parse_special=FLAG,
    with_pieces=FLAG,
)
DETOKENIZE = _object(("tokens",), model=TEXT, tokens=_list(_whole(0, MAX_INT)))
POSTS: Mapping[str, tuple[str, Schema]] = {
    "/v1/chat/completions": ("OpenAI's chat completions", CHAT),
    "/v1/completions": ("OpenAI's completions", COMPLETION),
    "/v1/responses": ("OpenAI's responses, without a memory of earlier ones", RESPONSE),
    "/v1/messages": ("Anthropic's messages", MESSAGES),
    "/v1/chat/completions/input_tokens": ("tokens of the prompt of such messages", CHAT),
    "/v1/responses/input_tokens": ("tokens of the prompt of such a request", RESPONSE),
    "/v1/messages/count_tokens": ("tokens of the prompt of such messages", MESSAGES),
    "/tokenize": ("the tokens of a text, as llama-server gives them", TOKENIZE),
    "/detokenize": ("the text of tokens", DETOKENIZE),
    "/apply-template": ("the prompt that such messages become", CHAT),
}
GETS: Mapping[str, str] = {
    "/health": "whether requests are answered",
    "/v1/models": "the models that can be asked for",
    "/metrics": "counters, as Prometheus reads them",
}


def document() -> Document:
    """The OpenAPI 3.1 document."""
    answers = {
        "200": {"description": "the answer; with `stream`, server-sent events"},
        "4XX": {"description": "what is wrong with the request, in the dialect's own form"},
        "503": {"description": "not now: the model is being loaded, or its engine has died"},
    }
    paths: dict[str, object] = {
        path: {"get": {"summary": about, "responses": answers}} for path, about in GETS.items()
    }
    for path, (about, schema) in POSTS.items():
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": {"summary": about, "requestBody": body, "responses": answers}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "localmoe serve", "version": __version__},
        "paths": paths,
    }
