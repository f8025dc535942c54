"""The Jinja environment of chat templates: a sandbox in which text keeps its marks.

What templates on the Hugging Face hub are written for is there: loop controls, ``tojson`` without
HTML escapes, ``raise_exception``, ``strftime_now``. Where Jinja itself would join strings with
``str.join``, and so lose the marks of ``Marked``, it is told to use ours.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Undefined, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls  # noqa: N812
from jinja2.filters import do_title
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment

from localmoe.chat.rendering.marked import (
    DATA,
    Marked,
    formatted,
    is_data,
    joined,
    to_json,
)


class RaisedError(Exception):
    """The template called ``raise_exception``."""


class Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks text for training; here it is only text."""

    tags = {"generation"}  # noqa: RUF012 - the type that Jinja declares

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class MarkingCodeGenerator(CodeGenerator):
    """``a ~ b`` joins with the environment's ``concat``, as blocks and macros do."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class Environment(SandboxedEnvironment):
    """The sandbox. A forbidden attribute is an error; Jinja would print it as nothing."""

    code_generator_class = MarkingCodeGenerator
    intercepted_binops = frozenset(["%"])
    concat = staticmethod(joined)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"access to {attribute!r} of {type(obj).__name__} is not allowed")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        compute = functools.partial(super().call_binop, context, operator)
        if not isinstance(left, str):
            return compute(left, right)
        return _whole(formatted(compute, str.__str__(left), right), left)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        plain = super().wrap_str_format(value)
        if plain is None:
            return None
        return lambda *args, **kwargs: _whole(formatted(plain, *args, **kwargs), value.__self__)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        owner = getattr(__obj, "__self__", None)
        name = getattr(__obj, "__name__", "")
        if type(owner) is str and name in ("join", "replace"):  # with arguments that may be marked
            __obj = getattr(Marked(owner), name)
        return super().call(__context, __obj, *args, **kwargs)


def make_environment() -> Environment:
    """The environment that the templates on the Hugging Face hub are written for."""
    env = Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[LoopControls, Generation],
    )
    env.globals.pop("lipsum", None)
    env.globals["raise_exception"] = _raise
    env.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    builtin = dict(env.filters)
    env.filters = {name: _keeping(filter_) for name, filter_ in builtin.items()}
    env.filters |= {
        "tojson": to_json,
        "join": _joining(builtin["join"]),
        "replace": _replace,
        "format": _format,
        "indent": _indent,
        "title": lambda text: _lifted(text).mapped(do_title),
        "safe": str,
        **dict.fromkeys(("e", "escape", "forceescape"), _escape),
    }
    return env


def _raise(message: object) -> NoReturn:
    raise RaisedError(str(message))


def _lifted(value: object) -> Marked:
    text = str(value)
    return text if isinstance(text, Marked) else Marked(text)


def _whole(result: str, pattern: str) -> Marked:
    """What a pattern was filled to; all of it is data where the pattern was."""
    return Marked(result, DATA * len(result)) if is_data(pattern) else _lifted(result)


def _replace(text: object, old: object, new: object, count: int | None = None) -> Marked:
    return _lifted(text).replace(str(old), str(new), -1 if count is None else count)


def _format(text: object, *args: Any, **kwargs: Any) -> Marked:
    def fill(*args: Any, **kwargs: Any) -> str:
        return str.__str__(pattern) % (kwargs or args)

    pattern = _lifted(text)
    return _whole(formatted(fill, *args, **kwargs), pattern)


def _escape(text: object) -> Marked:
    return _lifted(text).mapped(html.escape)


def _indent(text: object, width: int | str = 4, first: bool = False, blank: bool = False) -> Marked:
    space = width if isinstance(width, str) else " " * width
    begin, *rest = (_lifted(text) + "\n").splitlines()  # as Jinja does it
    lines = [begin, *(joined((space, line)) if line or blank else line for line in rest)]
    shown = Marked("\n").join(lines)
    return joined((space, shown)) if first else shown


def _joining(builtin: Callable[..., str]) -> Callable[..., str]:
    """Jinja's ``join`` between marked strings."""

    @functools.wraps(builtin)
    def join(context: Any, value: Any, d: object = "", attribute: Any = None) -> str:
        return builtin(context, value, _lifted(d), attribute)

    return join


def _keeping(builtin: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result is data as soon as an argument is, where it lost the marks."""

    @functools.wraps(builtin)
    def filter_(*args: Any, **kwargs: Any) -> Any:
        result = builtin(*args, **kwargs)
        plain = isinstance(result, str) and not isinstance(result, Marked)
        if plain and any(map(is_data, (*args, *kwargs.values()))):
            return Marked(result, DATA * len(result))
        return result

    return filter_
