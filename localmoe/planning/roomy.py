"""A context that holds an agent's prompts, even where it pushes experts to a slower tier. Pure."""

from __future__ import annotations

import dataclasses

from localmoe.facts.model import Model
from localmoe.planning.context import contexts_to_try
from localmoe.planning.plan import Wishes

ROOMY = 65_536  # tokens: an agent's first request has 20,000 to 30,000
SMALLER_KV = "q8_0"


def roomy(model: Model, wishes: Wishes) -> tuple[Wishes, ...]:
    """The wishes to plan with: the first that fits, else the last.

    A stated context stays as it is. The KV cache becomes smaller before the context does, unless
    its type was stated.
    """
    if wishes.context is not None:
        return (wishes,)
    large = dataclasses.replace(wishes, context=contexts_to_try((ROOMY,), model)[0])
    if (wishes.type_k, wishes.type_v) != ("f16", "f16"):
        return large, wishes
    smaller = dataclasses.replace(large, type_k=SMALLER_KV, type_v=SMALLER_KV)
    return large, smaller, wishes
