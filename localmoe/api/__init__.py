"""The Python API: a model as an object that answers in typed events.

::

    import localmoe

    with localmoe.load("qwen3-30b-a3b:Q4_K_M") as model:
        for event in model.chat("What is a mixture of experts?"):
            if isinstance(event, localmoe.AnswerDelta):
                print(event.text, end="", flush=True)

        reply = model.chat("Three rivers of Europe?", schema=SCHEMA).result()
        json.loads(reply.answer)

        conversation = model.begin(system="Be brief.")  # remembers what was said
        first = localmoe.result(conversation.ask("Who wrote Faust?"))
        second = localmoe.result(conversation.ask("When was he born?"))

        for event in model.generate("Once upon a time", max_tokens=100):   # no chat template
            ...

Every name comes from ``localmoe.app``, which the command line uses too. Errors are
``LocalmoeError``s (``localmoe.errors``). Nothing is downloaded: ``localmoe pull NAME`` does that.
"""

from __future__ import annotations

from localmoe.app.loading import load
from localmoe.app.model import LoadedModel, SamplingOptions
from localmoe.app.stream import Stream, result

__all__ = ["LoadedModel", "SamplingOptions", "Stream", "load", "result"]
