"""Qwen families (models/qwen*.cpp of llama.cpp): dense, MoE, hybrids with linear attention."""

from __future__ import annotations

from tests.archs import parts
from tests.archs.recipe import Dims, Recipe, Types


def qwen3(d: Dims, types: Types) -> Recipe:
    r = Recipe("qwen3", types)
    parts.common_keys(r, d)
    parts.embeddings(r, d, tied=True)
    for b in (f"blk.{i}" for i in range(d.layers)):
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        parts.attention(r, b, d, head_norms=True)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        parts.dense_ffn(r, b, d)
    return r


def qwen3moe(d: Dims, types: Types) -> Recipe:
    r = Recipe("qwen3moe", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    parts.embeddings(r, d)
    for b in (f"blk.{i}" for i in range(d.layers)):
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        parts.attention(r, b, d, head_norms=True)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        parts.routed_experts(r, b, d)
    return r


def qwen2moe(d: Dims, types: Types) -> Recipe:
    r = Recipe("qwen2moe", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys({"expert_shared_feed_forward_length": d.shared_ff})
    parts.embeddings(r, d)
    for b in (f"blk.{i}" for i in range(d.layers)):
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        parts.attention(r, b, d, bias=True)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        parts.routed_experts(r, b, d)
        parts.shared_expert(r, b, d, gated=True)
    return r


def qwen3next(d: Dims, types: Types) -> Recipe:
    return _hybrid("qwen3next", d, types)


def qwen35moe(d: Dims, types: Types) -> Recipe:
    r = _hybrid("qwen35moe", d, types)
    quarter = d.head_dim // 4
    r.keys({"rope.dimension_sections": [quarter // 2, quarter // 4, quarter // 4, 0]})
    return r


LINEAR_CONV = 4
FULL_ATTENTION_INTERVAL = 4


def _hybrid(architecture: str, d: Dims, types: Types) -> Recipe:
    """Three layers of gated delta nets, then one of gated full attention, and so on."""
    r = Recipe(architecture, types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    value_width = d.linear_state * d.linear_value_heads
    mixed_width = 2 * d.linear_state * d.linear_key_heads + value_width
    r.keys(
        {
            "expert_shared_feed_forward_length": d.shared_ff,
            "full_attention_interval": FULL_ATTENTION_INTERVAL,
            "rope.dimension_count": d.head_dim // 4,
            "ssm.conv_kernel": LINEAR_CONV,
            "ssm.inner_size": value_width,
            "ssm.state_size": d.linear_state,
            "ssm.time_step_rank": d.linear_value_heads,
            "ssm.group_count": d.linear_key_heads,
        }
    )
    parts.embeddings(r, d)
    for i in range(d.layers):
        b = f"blk.{i}"
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        r.tensor(f"{b}.post_attention_norm.weight", d.embd)
        if (i + 1) % FULL_ATTENTION_INTERVAL == 0:
            # the query projection carries the output gate as well
            parts.attention(r, b, d, head_norms=True, query_width=2 * d.heads * d.head_dim)
        else:
            r.tensor(f"{b}.attn_qkv.weight", d.embd, mixed_width)
            r.tensor(f"{b}.attn_gate.weight", d.embd, value_width)
            r.tensor(f"{b}.ssm_conv1d.weight", LINEAR_CONV, mixed_width)
            r.tensor(f"{b}.ssm_dt.bias", d.linear_value_heads)
            r.tensor(f"{b}.ssm_a", d.linear_value_heads, mean=-0.8, deviation=0.1)
            if architecture == "qwen3next":
                r.tensor(f"{b}.ssm_ba.weight", d.embd, 2 * d.linear_value_heads)
            else:
                r.tensor(f"{b}.ssm_beta.weight", d.embd, d.linear_value_heads)
                r.tensor(f"{b}.ssm_alpha.weight", d.embd, d.linear_value_heads)
            r.tensor(f"{b}.ssm_norm.weight", d.linear_state)
            r.tensor(f"{b}.ssm_out.weight", value_width, d.embd)
        parts.routed_experts(r, b, d)
        parts.shared_expert(r, b, d, gated=True)
    return r
