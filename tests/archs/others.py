"""The other transformer families, each as its models/*.cpp of llama.cpp reads it."""

from __future__ import annotations

from dataclasses import replace

from tests.archs import parts
from tests.archs.deepseek import SIGMOID
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


def olmoe(d: Dims, types: Types) -> Recipe:
    """Norms over the whole query and key width; as many key heads as heads."""
    r = Recipe("olmoe", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys({"feed_forward_length": d.expert_ff})
    parts.embeddings(r, d)
    for b in (f"blk.{i}" for i in range(d.layers)):
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        _wide_norm_attention(r, b, d)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        parts.routed_experts(r, b, d)
    return r


def minimax_m2(d: Dims, types: Types) -> Recipe:
    r = Recipe("minimax-m2", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys(
        {
            "feed_forward_length": d.expert_ff,
            "expert_gating_func": SIGMOID,
            "rope.dimension_count": d.head_dim // 2,
        }
    )
    parts.embeddings(r, d)
    for b in (f"blk.{i}" for i in range(d.layers)):
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        _wide_norm_attention(r, b, d)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        parts.routed_experts(r, b, d, probs_bias=True)
    return r


def glm4moe(d: Dims, types: Types) -> Recipe:
    """A dense first layer and, as in the published files, a prediction layer at the end.

    The last block (multi-token prediction) is in the file but not run unless it is asked for.
    """
    r = Recipe("glm4moe", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys(
        {
            "block_count": d.layers + 1,
            "nextn_predict_layers": 1,
            "leading_dense_block_count": d.dense_lead,
            "expert_shared_count": d.shared_ff // d.expert_ff,
            "expert_gating_func": SIGMOID,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.0,
            "rope.dimension_count": d.head_dim // 2,
        }
    )
    parts.embeddings(r, d)
    for i in range(d.layers + 1):
        b = f"blk.{i}"
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        parts.attention(r, b, d, bias=True, head_norms=True)
        r.tensor(f"{b}.post_attention_norm.weight", d.embd)
        if i < d.dense_lead:
            parts.dense_ffn(r, b, d)
        else:
            parts.routed_experts(r, b, d, probs_bias=True)
            parts.shared_expert(r, b, d)
    b = f"blk.{d.layers}.nextn"
    r.tensor(f"{b}.eh_proj.weight", 2 * d.embd, d.embd)
    r.tensor(f"{b}.enorm.weight", d.embd)
    r.tensor(f"{b}.hnorm.weight", d.embd)
    r.tensor(f"{b}.shared_head_norm.weight", d.embd)
    return r


def llama4(d: Dims, types: Types) -> Recipe:
    """Every second layer has experts, of which one is used; every fourth attends to everything."""
    r = Recipe("llama4", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys({"interleave_moe_layer_step": 2})
    parts.embeddings(r, d)
    for i in range(d.layers):
        b = f"blk.{i}"
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        parts.attention(r, b, d)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        if i % 2:
            parts.routed_experts(r, b, d)
            parts.shared_expert(r, b, d)
        else:
            parts.dense_ffn(r, b, d)
    return r


def granitemoe(d: Dims, types: Types) -> Recipe:
    r = Recipe("granitemoe", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys(
        {
            "feed_forward_length": d.expert_ff,
            "attention.scale": d.head_dim**-0.5,
            "embedding_scale": 1.0,
            "residual_scale": 0.5,
            "logit_scale": 2.0,
        }
    )
    parts.embeddings(r, d)
    for b in (f"blk.{i}" for i in range(d.layers)):
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        parts.attention(r, b, d)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        parts.routed_experts(r, b, d)
    return r


def gemma4(d: Dims, types: Types) -> Recipe:
    """Dense feed-forward and experts side by side, gate and up fused, windows and full layers.

    The full-attention layers have wider heads and no value projection: keys are used as values.
    """
    r = Recipe("gemma4", types)
    full = replace(d, head_dim=2 * d.head_dim, kv_heads=1)
    windowed = [(i + 1) % d.layers != 0 for i in range(d.layers)]
    parts.common_keys(r, full)
    parts.expert_keys(r, d)
    r.keys(
        {
            "attention.head_count_kv": [d.kv_heads if w else full.kv_heads for w in windowed],
            "attention.key_length_swa": d.head_dim,
            "attention.value_length_swa": d.head_dim,
            "attention.sliding_window": d.window,
            "attention.sliding_window_pattern": windowed,
            "attention.shared_kv_layers": 0,
            "embedding_length_per_layer_input": 0,
            "final_logit_softcapping": 30.0,
            "rope.dimension_count_swa": d.head_dim,
            "rope.freq_base_swa": 10000.0,
        }
    )
    parts.embeddings(r, d, tied=True, scale=d.embd**0.5)
    r.tensor("rope_freqs.weight", full.head_dim // 2, mean=1.0, deviation=0.0)
    for i, window in enumerate(windowed):
        b = f"blk.{i}"
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        parts.attention(r, b, d if window else full, head_norms=True, value=window)
        for norm in ("post_attention_norm", "ffn_norm", "post_ffw_norm", "pre_ffw_norm_2"):
            r.tensor(f"{b}.{norm}.weight", d.embd)
        parts.dense_ffn(r, b, d)
        parts.routed_experts(r, b, d, fused=True)
        r.tensor(f"{b}.ffn_gate_inp.scale", d.embd)
        r.tensor(f"{b}.ffn_down_exps.scale", d.experts)
        r.tensor(f"{b}.post_ffw_norm_1.weight", d.embd)
        r.tensor(f"{b}.post_ffw_norm_2.weight", d.embd)
        r.tensor(f"{b}.layer_output_scale.weight", 1, mean=1.0, deviation=0.0)
    return r


def ernie4_5_moe(d: Dims, types: Types) -> Recipe:
    r = Recipe("ernie4_5-moe", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys(
        {
            "leading_dense_block_count": d.dense_lead,
            "interleave_moe_layer_step": 1,
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": d.shared_ff,
        }
    )
    parts.embeddings(r, d)
    for i in range(d.layers):
        b = f"blk.{i}"
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        parts.attention(r, b, d)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        if i < d.dense_lead:
            parts.dense_ffn(r, b, d)
        else:
            parts.routed_experts(r, b, d, probs_bias=True)
            parts.shared_expert(r, b, d)
    return r


def bailingmoe2(d: Dims, types: Types) -> Recipe:
    """Experts chosen within groups; queries, keys and values in one projection."""
    r = Recipe("bailingmoe2", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys(
        {
            "leading_dense_block_count": d.dense_lead,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": d.shared_ff,
            "expert_gating_func": SIGMOID,
            "expert_weights_norm": True,
            "expert_weights_scale": 1.5,
            "rope.dimension_count": d.head_dim // 2,
        }
    )
    parts.embeddings(r, d)
    for i in range(d.layers):
        b = f"blk.{i}"
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        r.tensor(f"{b}.attn_qkv.weight", d.embd, d.embd + 2 * d.kv_heads * d.head_dim)
        r.tensor(f"{b}.attn_output.weight", d.heads * d.head_dim, d.embd)
        r.tensor(f"{b}.attn_q_norm.weight", d.head_dim)
        r.tensor(f"{b}.attn_k_norm.weight", d.head_dim)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        if i < d.dense_lead:
            parts.dense_ffn(r, b, d)
        else:
            parts.routed_experts(r, b, d, probs_bias=True)
            parts.shared_expert(r, b, d)
    return r


def phimoe(d: Dims, types: Types) -> Recipe:
    """Layer norms with biases, biases in attention and output, two sets of rope factors."""
    r = Recipe("phimoe", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys(
        {
            "feed_forward_length": d.expert_ff,
            "rope.scaling.original_context_length": d.context // 2,
            "rope.scaling.attn_factor": 1.2,
        }
    )
    parts.embeddings(r, d)
    r.tensor("output_norm.bias", d.embd)
    r.tensor("output.bias", d.vocab, deviation=0.0)
    for length in ("long", "short"):
        r.tensor(f"rope_factors_{length}.weight", d.head_dim // 2, mean=1.0, deviation=0.01)
    for b in (f"blk.{i}" for i in range(d.layers)):
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        r.tensor(f"{b}.attn_norm.bias", d.embd)
        parts.attention(r, b, d, bias=True)
        r.tensor(f"{b}.attn_output.bias", d.embd)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        r.tensor(f"{b}.ffn_norm.bias", d.embd)
        parts.routed_experts(r, b, d)
    return r


def _wide_norm_attention(r: Recipe, b: str, d: Dims) -> None:
    parts.attention(r, b, d)
    r.tensor(f"{b}.attn_q_norm.weight", d.heads * d.head_dim)
    r.tensor(f"{b}.attn_k_norm.weight", d.kv_heads * d.head_dim)
