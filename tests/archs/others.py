"""The other transformer families: gpt-oss, Llama and Mixtral, …"""

from __future__ import annotations

from tests.archs import parts
from tests.archs.recipe import Dims, Recipe, Types


def gpt_oss(d: Dims, types: Types) -> Recipe:
    """Every second layer sees a window only; biases everywhere; attention sinks."""
    r = Recipe("gpt-oss", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys({"attention.sliding_window": d.window})
    parts.embeddings(r, d)
    for b in (f"blk.{i}" for i in range(d.layers)):
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        r.tensor(f"{b}.post_attention_norm.weight", d.embd)
        parts.attention(r, b, d, bias=True)
        r.tensor(f"{b}.attn_output.bias", d.embd)
        r.tensor(f"{b}.attn_sinks.weight", d.heads, deviation=1.0)
        parts.routed_experts(r, b, d)
        r.tensor(f"{b}.ffn_gate_inp.bias", d.experts)
        r.tensor(f"{b}.ffn_gate_exps.bias", d.expert_ff, d.experts)
        r.tensor(f"{b}.ffn_up_exps.bias", d.expert_ff, d.experts)
        r.tensor(f"{b}.ffn_down_exps.bias", d.embd, d.experts)
    return r


def llama(d: Dims, types: Types) -> Recipe:
    """Mixtral with experts, Llama without (``d.experts`` = 0)."""
    r = Recipe("llama", types)
    parts.common_keys(r, d)
    if d.experts:
        r.keys({"expert_count": d.experts, "expert_used_count": d.used})
        r.keys({"feed_forward_length": d.expert_ff})
    parts.embeddings(r, d)
    for b in (f"blk.{i}" for i in range(d.layers)):
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        parts.attention(r, b, d)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        if d.experts:
            parts.routed_experts(r, b, d)
        else:
            parts.dense_ffn(r, b, d)
    return r
