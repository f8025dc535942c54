"""What a tensor is for, told from its name and shape, not from a list of architectures.

Names: llama.cpp's src/llama-arch.cpp (LLM_TENSOR_NAMES).
"""

from __future__ import annotations

import enum
import re

from localmoe.errors import ModelFileError
from localmoe.text import clean_line


class Role(enum.Enum):
    """What a tensor is for; decides where a plan may put it."""

    DENSE = "dense"  # attention, norms, dense feed-forward, embeddings, output
    ROUTER = "router"  # ffn_gate_inp and its biases
    SHARED_EXPERT = "shared"  # *_shexp: used by every token
    ROUTED_EXPERT = "routed"  # *_exps: only the top-k experts of a token are read


_BLOCK = re.compile(r"blk\.(\d{1,4})\.(.+)")
# chexps: grovemoe's chunk experts, fewer and shared by groups. ffn_norm_exps is one dense norm.
_ROUTED = re.compile(r"ffn_(?:gate|up|down|gate_up)_(?:ch)?exps\..+")
_SHARED = re.compile(r"ffn_(?:gate|up|down|gate_up|gate_inp)_shexp\..+")
# tid2eid: deepseek4's table from token ids to experts.
_ROUTER = re.compile(r"(?:ffn_gate_inp|exp_probs_b|exp_probs_b_vl|ffn_gate_tid2eid)(?:\..+)?")
_SEPARATE_EXPERT = re.compile(r"ffn_(?:gate|up|down)\.\d+\.weight")


def layer_of(name: str) -> int | None:
    """N of ``blk.N.…``, else None."""
    match = _BLOCK.fullmatch(name)
    return int(match[1]) if match else None


def role_of(name: str, shape: tuple[int, ...]) -> Role:
    """The role of one tensor. ``shape``: fastest dimension first, experts last.

    Raises ModelFileError for expert weights that are not all in one tensor.
    """
    match = _BLOCK.fullmatch(name)
    part = match[2] if match else ""
    if _SEPARATE_EXPERT.fullmatch(part):
        raise ModelFileError(
            "an old conversion with one tensor per expert, which llama.cpp no longer reads",
            hint="get a newer conversion of this model (2024 or later)",
        )
    if _ROUTED.fullmatch(part):
        if part.endswith(".weight") and len(shape) != 3:
            raise ModelFileError(
                f'the experts of "{clean_line(name)}" have {len(shape)} dimensions, not 3',
                hint="get another conversion of this model",
            )
        return Role.ROUTED_EXPERT
    if _SHARED.fullmatch(part):
        return Role.SHARED_EXPERT
    if _ROUTER.fullmatch(part):
        return Role.ROUTER
    return Role.DENSE
