"""The Python API: a model as an object that answers in typed events.

::

    import localmoe

    with localmoe.load("qwen3-30b-a3b:Q4_K_M") as model:
        for event in model.chat("What is a mixture of experts?"):
            if isinstance(event, localmoe.AnswerDelta):
                print(event.text, end="", flush=True)

        reply = model.chat("Three rivers of Europe?", schema=SCHEMA).result()
        json.loads(reply.answer)

        talk = model.begin(system="Be brief.")          # remembers what was said
        first = localmoe.result(talk.ask("Who wrote Faust?"))
        second = localmoe.result(talk.ask("When was he born?"))

        for event in model.generate("Once upon a time", max_tokens=100):   # no chat template
            ...

The command line stands on the same functions. What goes wrong is a ``LocalmoeError``
(``localmoe.errors``); nothing is downloaded here (``localmoe pull NAME`` does that).
"""

from __future__ import annotations

from localmoe.api.loading import load, plan_for, planned, settle
from localmoe.api.model import (
    LoadableEngine,
    LoadedModel,
    SamplingOptions,
    Stream,
    result,
    settings_for,
)

__all__ = [
    "LoadableEngine",
    "LoadedModel",
    "SamplingOptions",
    "Stream",
    "load",
    "plan_for",
    "planned",
    "result",
    "settings_for",
    "settle",
]
