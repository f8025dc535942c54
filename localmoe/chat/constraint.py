"""The form of an answer, and the thinking that may come before it. Pure."""

from __future__ import annotations

from localmoe.chat.template import Rendered
from localmoe.engine.grammar import with_reasoning


def grammar_for(grammar: str, rendered: Rendered, source: str) -> str:
    """The grammar of an answer, with room for thinking where the template ``source`` has it."""
    thinking = rendered.reasoning
    if thinking is None:
        return grammar
    if thinking.channels:  # gpt-oss: its messages say which channel they are for
        ends, final = ("<|end|><|start|>assistant",), "<|channel|>final<|message|>"
        return with_reasoning(grammar, thinking.start, ends, is_open=False, between=final)
    if rendered.reasoning_open:
        return with_reasoning(grammar, thinking.start, thinking.ends, is_open=True)
    if thinking.signature in source:
        return with_reasoning(grammar, thinking.start, thinking.ends, is_open=False)
    return grammar
