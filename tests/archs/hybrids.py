"""Families with recurrent layers beside attention: Nemotron-H, Granite 4, LFM2."""

from __future__ import annotations

from tests.archs import parts
from tests.archs.deepseek import SIGMOID
from tests.archs.recipe import Dims, Recipe, Types

STATE, GROUPS, CONV = 64, 2, 4


def nemotron_h_moe(d: Dims, types: Types) -> Recipe:
    """A layer is one thing only: Mamba-2, attention or experts, told by two arrays."""
    r = Recipe("nemotron_h_moe", types)
    kinds = ["mamba", "experts", "mamba", "attention", "experts"][: d.layers]
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    _mamba_keys(r, d)
    r.keys(
        {
            "attention.layer_norm_epsilon": 1e-5,
            "attention.head_count_kv": [d.kv_heads if k == "attention" else 0 for k in kinds],
            "feed_forward_length": [d.expert_ff if k == "experts" else 0 for k in kinds],
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": d.shared_ff,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.5,
        }
    )
    parts.embeddings(r, d)
    for i, kind in enumerate(kinds):
        b = f"blk.{i}"
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        if kind == "mamba":
            _mamba(r, b, d)
        elif kind == "attention":
            parts.attention(r, b, d)
        else:
            parts.routed_experts(r, b, d, gate=False, probs_bias=True)
            parts.shared_expert(r, b, d, gate=False)
    return r


def granitehybrid(d: Dims, types: Types) -> Recipe:
    """Mamba-2 with every second layer attention; experts in all of them."""
    r = Recipe("granitehybrid", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    _mamba_keys(r, d)
    r.keys(
        {
            "attention.head_count_kv": [d.kv_heads if i % 2 else 0 for i in range(d.layers)],
            "feed_forward_length": d.expert_ff,
            "expert_shared_feed_forward_length": d.shared_ff,
            "attention.scale": d.head_dim**-0.5,
            "embedding_scale": 1.0,
            "residual_scale": 0.5,
            "logit_scale": 2.0,
        }
    )
    parts.embeddings(r, d)
    for i in range(d.layers):
        b = f"blk.{i}"
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        if i % 2:
            parts.attention(r, b, d)
        else:
            _mamba(r, b, d)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        parts.routed_experts(r, b, d)
        parts.shared_expert(r, b, d)
    return r


def lfm2moe(d: Dims, types: Types) -> Recipe:
    """Short convolutions, every third layer attention, the first layers dense."""
    r = Recipe("lfm2moe", types)
    attends = [i % 3 == 2 for i in range(d.layers)]
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys(
        {
            "attention.head_count_kv": [d.kv_heads if yes else 0 for yes in attends],
            "leading_dense_block_count": d.dense_lead,
            "expert_gating_func": SIGMOID,
            "shortconv.l_cache": CONV - 1,
        }
    )
    parts.embeddings(r, d, tied=True, final_norm="token_embd_norm")
    for i, yes in enumerate(attends):
        b = f"blk.{i}"
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        if yes:
            parts.attention(r, b, d, head_norms=True)
        else:
            r.tensor(f"{b}.shortconv.conv.weight", CONV - 1, d.embd)
            r.tensor(f"{b}.shortconv.in_proj.weight", d.embd, 3 * d.embd)
            r.tensor(f"{b}.shortconv.out_proj.weight", d.embd, d.embd)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        if i < d.dense_lead:
            parts.dense_ffn(r, b, d)
        else:
            parts.routed_experts(r, b, d, probs_bias=True)
    return r


def _mamba_keys(r: Recipe, d: Dims) -> None:
    r.keys(
        {
            "ssm.conv_kernel": CONV,
            "ssm.inner_size": 2 * d.embd,
            "ssm.state_size": STATE,
            "ssm.time_step_rank": 2 * d.embd // d.head_dim,
            "ssm.group_count": GROUPS,
        }
    )


def _mamba(r: Recipe, b: str, d: Dims) -> None:
    """One Mamba-2 mixer; A is negative (decay), the time step's bias keeps the decay slow."""
    inner, heads = 2 * d.embd, 2 * d.embd // d.head_dim
    mixed = inner + 2 * GROUPS * STATE
    r.tensor(f"{b}.ssm_in.weight", d.embd, inner + mixed + heads)
    r.tensor(f"{b}.ssm_conv1d.weight", CONV, mixed)
    r.tensor(f"{b}.ssm_conv1d.bias", mixed)
    r.tensor(f"{b}.ssm_dt.bias", heads, mean=-1.0)
    r.tensor(f"{b}.ssm_a", 1, heads, mean=-0.8, deviation=0.1)
    r.tensor(f"{b}.ssm_d", 1, heads, mean=1.0, deviation=0.1)
    r.tensor(f"{b}.ssm_norm.weight", inner // GROUPS, GROUPS)
    r.tensor(f"{b}.ssm_out.weight", inner, d.embd)
