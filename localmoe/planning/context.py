"""How many tokens of context a plan may have. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from localmoe.errors import ContextOverflowError
from localmoe.facts.model import Model
from localmoe.wording import option

DEFAULT_CONTEXTS = (32768, 16384, 8192)
"""Context sizes tried when none is asked for, largest first."""

LAST_CONTEXTS = (4096, 2048, 1024, 512, 256)
"""Tried when none is asked for and none of the above fits, largest first."""

CONVERSATION = 2048  # tokens; with less context there is hardly room for a question and an answer

MAX_CONTEXT = 10 * 1024 * 1024
"""No larger context is asked about, whatever a header claims: a dry run costs memory per token."""

MULTIPLE = 256  # tokens


def usable_context(tokens: int) -> int:
    """The context that the engine makes when asked for ``tokens``: the next multiple of 256.

    Source: llama.cpp's ``llama_context``, which pads ``n_ctx`` to 256.
    """
    return max(MULTIPLE, -(-tokens // MULTIPLE) * MULTIPLE)


def trained_context(model: Model) -> int:
    """The largest usable context up to what the model was trained for; 0 if that is unknown."""
    return _rounded_down(min(model.context_train, MAX_CONTEXT)) if model.context_train else 0


def contexts_to_try(sizes: Iterable[int], model: Model) -> list[int]:
    """``sizes``, largest first, none beyond what the model was trained for."""
    limit = trained_context(model) or DEFAULT_CONTEXTS[0]
    return sorted({min(size, limit) for size in sizes}, reverse=True)


def smaller_contexts(model: Model, context: int) -> list[int]:
    """Contexts to suggest instead of ``context``, largest first."""
    sizes = contexts_to_try((*DEFAULT_CONTEXTS, *LAST_CONTEXTS), model)
    return [size for size in sizes if size < context]


def context_warnings(model: Model, wished: int | None) -> Iterator[str]:
    """What someone who asks for ``wished`` tokens of context must know, one sentence each."""
    if wished is None:
        return
    usable, trained = usable_context(wished), model.context_train
    if trained and wished > trained:
        yield (
            f"--ctx {wished}: this model was trained for {trained:,} tokens of context; beyond "
            "them it writes nonsense"
        )
    if usable != wished:
        yield f"--ctx {wished}: the engine counts in steps of {MULTIPLE} tokens, so it is {usable}"


def too_long(tokens: int, context: int, trained: int) -> ContextOverflowError:
    """The error of a prompt of so many ``tokens``, and what to do about it: the next round context
    with room for an answer, if the model was ``trained`` for that many (0: not known).
    """
    size = -(-(tokens + 512) // 1024) * 1024
    if trained and size > trained:
        hint = f"shorten the prompt: this model was trained for {trained:,} tokens of context"
    else:
        hint = f"shorten the prompt, or use {option('ctx', size)}"
    return ContextOverflowError(f"the prompt has {tokens} tokens, the context {context}", hint=hint)


def _rounded_down(tokens: int) -> int:
    return max(MULTIPLE, tokens // MULTIPLE * MULTIPLE)
