"""The process itself: ``python -m localmoe.chat.rendering``. Jinja and the standard library only.

A chat template comes with a model file, so it is somebody else's code. It runs here, in a sandbox,
in a process with a memory limit that can be killed when it takes too long; see
``localmoe.chat.template`` for the other side.

Protocol, one JSON object per line on stdin and stdout. First the child says ``{"ready": true}``.

    {"source"}                          → {"variables", "literals"}: names that the template looks
                                          up, and the texts that stand in its code
    {"source", "messages", "kwargs", …} → {"prompt", "stable_chars", "data": [[start, end], …]}
    {"source", "probes": [{"messages", "kwargs", "generation"}, …], …} → {"texts": [text or null]}
    anything that fails                 → {"error": message, "kind": "syntax" | "raised" | …}

``data`` are the characters of the prompt that came with the messages or the tools.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError

from localmoe.chat.rendering.environment import RaisedError, make_environment
from localmoe.chat.rendering.marked import Marked, StandIns, joined, marked, spans

MEMORY_LIMIT = 512 << 20  # bytes of address space
OUTPUT_LIMIT = 16 << 20  # characters; a million tokens are about 4 million
SOURCE_LIMIT = 1 << 20  # characters; the largest templates in use have 40 thousand


class Templates:
    """Answers requests; keeps the last template compiled."""

    def __init__(self) -> None:
        self._env = make_environment()
        self._source: str | None = None
        self._template: Template | None = None
        self._names: frozenset[str] = frozenset()
        self._literals: list[str] = []

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._answer(request)
        except RaisedError as exc:
            return {"kind": "raised", "error": str(exc)}
        except TemplateSyntaxError as exc:
            return {"kind": "syntax", "error": f"line {exc.lineno}: {exc.message}"}
        except SecurityError as exc:
            return {"kind": "forbidden", "error": str(exc)}
        except MemoryError as exc:
            return {"kind": "too_large", "error": f"it needs too much memory ({_name(exc)})"}
        except RecursionError:
            return {"kind": "failed", "error": "it calls itself without an end"}
        except TemplateError as exc:
            return {"kind": "failed", "error": exc.message or _name(exc)}
        except Exception as exc:  # whatever the template makes Python raise
            return {"kind": "failed", "error": f"{_name(exc)}: {exc}"}

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        template = self._compile(request["source"])
        if "probes" in request:
            return {"texts": [self._probe(template, request, probe) for probe in request["probes"]]}
        if "messages" not in request:
            return {"variables": sorted(self._names), "literals": self._literals}
        answers = StandIns()
        messages = [self._with_answer_hidden(message, answers) for message in request["messages"]]

        def rendered(generation: bool) -> Marked:
            """Anew from the messages: a template may change the ones it was given."""
            variables = self._variables(request, marked(messages), request["kwargs"])
            if request["tools"]:
                variables["tools"] = marked(request["tools"])
            return _bounded(template, variables | {"add_generation_prompt": generation})

        prompt = answers.put_back(rendered(True))
        try:
            settled = rendered(False)
        except Exception:  # a template may insist on its last message
            settled = Marked()
        settled = answers.put_back(settled)
        stable = common_prefix(prompt, settled)
        return {"prompt": prompt, "stable_chars": stable, "data": spans(prompt)}

    def _with_answer_hidden(self, message: dict[str, Any], stand_ins: StandIns) -> dict[str, Any]:
        """An earlier answer in which the template finds none of the marks that it looks for.

        Its thinking comes apart from it, so whatever it spells is text: a template that cut it at
        a ``</think>`` would lose what the model has said.
        """
        marks = self._literals if message["role"] == "assistant" else ()
        return {
            key: stand_ins.hide(value, marks) if isinstance(value, str) and key != "role" else value
            for key, value in message.items()
        }

    def _probe(
        self, template: Template, request: dict[str, Any], probe: dict[str, Any]
    ) -> str | None:
        """What the template makes of messages, or None where it refuses them."""
        variables = self._variables(request, probe["messages"], probe["kwargs"])
        try:
            return _bounded(template, variables | {"add_generation_prompt": probe["generation"]})
        except Exception:
            return None

    def _variables(
        self, request: dict[str, Any], messages: list[Any], kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        ends = {"bos_token": request["bos"], "eos_token": request["eos"]}
        return {**self._expected(), "messages": messages, **ends, **kwargs}

    def _compile(self, source: str) -> Template:
        if self._template is None or source != self._source:
            if len(source) > SOURCE_LIMIT:
                raise TemplateError(f"it has {len(source)} characters, more than {SOURCE_LIMIT}")
            tree = self._env.parse(source)
            self._names = frozenset(meta.find_undeclared_variables(tree))
            consts = (const.value for const in tree.find_all(nodes.Const))
            texts = {value.strip() for value in consts if isinstance(value, str)}
            self._literals = sorted((text for text in texts if len(text) > 2), key=len)[::-1]
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


def _bounded(template: Template, variables: dict[str, Any]) -> Marked:
    pieces: list[str] = []
    size = 0
    for piece in template.generate(variables):
        pieces.append(piece)
        size += len(piece)
        if size > OUTPUT_LIMIT:
            raise TemplateError(f"it writes more than {OUTPUT_LIMIT} characters")
    return joined(pieces)


def common_prefix(left: Marked, right: Marked) -> int:
    """Number of characters that two strings share at their start, by bisection."""
    one, other = str.__str__(left), str.__str__(right)
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_LIMIT if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _alarm() -> Callable[[float], None]:
    """Arms a deadly alarm, so an endless template dies even when the parent is gone."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    return lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None


def main() -> None:
    _limit_memory()
    alarm = _alarm()
    templates = Templates()
    out = sys.stdout.buffer
    out.write(b'{"ready": true}\n')
    out.flush()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        alarm(2 * request["seconds"])
        try:
            reply = json.dumps(templates.answer(request)).encode()
        except MemoryError:
            reply = b'{"kind": "too_large", "error": "it needs too much memory"}'
        alarm(0)
        out.write(reply + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
