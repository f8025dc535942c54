"""The child process in which chat templates render. Imports Jinja and the standard library only.

A chat template comes with a model file, so it is somebody else's code. It runs here, in an
immutable sandbox, in a process with a memory limit that can be killed when it takes too long;
see ``localmoe.chat.template`` for the other side.

Protocol, one JSON object per line on stdin and stdout. First the child says ``{"ready": true}``.

    {"source"}                              → {"variables": [names the template looks up]}
    {"source", "messages", "kwargs", …}     → {"prompt", "stable_chars"}
    anything that fails                     → {"error": message, "kind": "syntax" | "raised" | …}
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls  # noqa: N812
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_LIMIT = 512 << 20  # bytes of address space
OUTPUT_LIMIT = 16 << 20  # characters; a million tokens are about 4 million
SOURCE_LIMIT = 1 << 20  # characters; the largest templates in use have 40 thousand


class RaisedError(Exception):
    """The template called ``raise_exception``."""


class Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks text for training; here it is only text."""

    tags = {"generation"}  # noqa: RUF012 - the type that Jinja declares

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Environment(ImmutableSandboxedEnvironment):
    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        # Jinja prints a forbidden attribute as nothing; a template that asks for one is refused.
        raise SecurityError(f"access to {attribute!r} of {type(obj).__name__} is not allowed")


def environment() -> Environment:
    """The environment that the templates on the Hugging Face hub are written for."""
    env = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[LoopControls, Generation],
    )
    env.globals.pop("lipsum", None)
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    env.filters["tojson"] = _tojson
    return env


def _raise(message: object) -> NoReturn:
    raise RaisedError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own ``tojson`` escapes HTML, which no model was trained on."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


class Renderer:
    """Answers requests; keeps the last template compiled."""

    def __init__(self) -> None:
        self._env = environment()
        self._source: str | None = None
        self._template: Template | None = None
        self._names: frozenset[str] = frozenset()

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._answer(request)
        except RaisedError as exc:
            return {"kind": "raised", "error": str(exc)}
        except TemplateSyntaxError as exc:
            return {"kind": "syntax", "error": f"line {exc.lineno}: {exc.message}"}
        except SecurityError as exc:
            return {"kind": "forbidden", "error": str(exc)}
        except (MemoryError, RecursionError) as exc:
            return {"kind": "too_large", "error": f"it needs too much memory ({_name(exc)})"}
        except TemplateError as exc:
            return {"kind": "failed", "error": exc.message or _name(exc)}
        except Exception as exc:  # whatever the template makes Python raise
            return {"kind": "failed", "error": f"{_name(exc)}: {exc}"}

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        template = self._compile(request["source"])
        if "messages" not in request:
            return {"variables": sorted(self._names)}
        variables = {
            **self._expected(),
            "messages": request["messages"],
            "bos_token": request["bos"],
            "eos_token": request["eos"],
            **request["kwargs"],
        }
        if request["tools"]:
            variables["tools"] = request["tools"]
        prompt = _bounded(template, variables | {"add_generation_prompt": True})
        try:
            settled = _bounded(template, variables | {"add_generation_prompt": False})
        except Exception:  # a template may insist on its last message
            settled = ""
        return {"prompt": prompt, "stable_chars": common_prefix(prompt, settled)}

    def _compile(self, source: str) -> Template:
        if self._template is None or source != self._source:
            if len(source) > SOURCE_LIMIT:
                raise TemplateError(f"it has {len(source)} characters, more than {SOURCE_LIMIT}")
            tree = self._env.parse(source)
            self._names = frozenset(meta.find_undeclared_variables(tree))
            self._template = self._env.from_string(tree)
            self._source = source
        return self._template

    def _expected(self) -> dict[str, str]:
        """What firefunction's template takes for granted."""
        if not {"functions", "datetime"} <= self._names:
            return {}
        return {"functions": "[]", "datetime": datetime.now().strftime("%B %d %Y")}


def _name(exc: BaseException) -> str:
    return type(exc).__name__


def _bounded(template: Template, variables: dict[str, Any]) -> str:
    pieces: list[str] = []
    size = 0
    for piece in template.generate(variables):
        pieces.append(piece)
        size += len(piece)
        if size > OUTPUT_LIMIT:
            raise TemplateError(f"it writes more than {OUTPUT_LIMIT} characters")
    return "".join(pieces)


def common_prefix(left: str, right: str) -> int:
    """Number of characters that two strings share at their start, by bisection."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not a POSIX system: the time limit stands alone
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _alarm() -> Callable[[float], None]:
    """Arms a deadly alarm, so an endless template dies even when the parent is gone."""
    if not hasattr(signal, "setitimer"):
        return lambda seconds: None
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None


def main() -> None:
    _limit_memory()
    alarm = _alarm()
    renderer = Renderer()
    out = sys.stdout.buffer
    out.write(b'{"ready": true}\n')
    out.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        alarm(2 * request["seconds"])
        try:
            reply = json.dumps(renderer.answer(request)).encode()
        except MemoryError:
            reply = b'{"kind": "too_large", "error": "it needs too much memory"}'
        alarm(0)
        out.write(reply + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
