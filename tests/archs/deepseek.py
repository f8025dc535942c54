"""DeepSeek families (models/deepseek*.cpp of llama.cpp)."""

from __future__ import annotations

from tests.archs import parts
from tests.archs.recipe import Dims, Recipe, Types

SOFTMAX, SIGMOID, SQRT_SOFTPLUS = 1, 2, 4  # llama_expert_gating_func_type
QUERY_RANK, LATENT_RANK, ROPE_DIM, NOPE_DIM, VALUE_DIM = 256, 256, 64, 64, 64


def deepseek2(d: Dims, types: Types) -> Recipe:
    r = Recipe("deepseek2", types)
    _latent_attention_keys(r, d)
    r.keys({"expert_weights_scale": 1.5, "expert_weights_norm": True})
    parts.embeddings(r, d)
    for i in range(d.layers):
        b = f"blk.{i}"
        _latent_attention(r, b, d)
        _feed_forward(r, i, d, probs_bias=True)
    return r


def _latent_attention_keys(r: Recipe, d: Dims) -> None:
    """Multi-head latent attention: one compressed row per token is cached for all heads."""
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys(
        {
            "leading_dense_block_count": d.dense_lead,
            "expert_shared_count": d.shared_ff // d.expert_ff,
            "expert_gating_func": SIGMOID,
            "attention.head_count_kv": 1,
            "attention.q_lora_rank": QUERY_RANK,
            "attention.kv_lora_rank": LATENT_RANK,
            "attention.key_length": LATENT_RANK + ROPE_DIM,
            "attention.value_length": LATENT_RANK,
            "attention.key_length_mla": NOPE_DIM + ROPE_DIM,
            "attention.value_length_mla": VALUE_DIM,
            "rope.dimension_count": ROPE_DIM,
        }
    )


def _latent_attention(r: Recipe, b: str, d: Dims) -> None:
    r.tensor(f"{b}.attn_norm.weight", d.embd)
    r.tensor(f"{b}.attn_q_a.weight", d.embd, QUERY_RANK)
    r.tensor(f"{b}.attn_q_a_norm.weight", QUERY_RANK)
    r.tensor(f"{b}.attn_q_b.weight", QUERY_RANK, d.heads * (NOPE_DIM + ROPE_DIM))
    r.tensor(f"{b}.attn_kv_a_mqa.weight", d.embd, LATENT_RANK + ROPE_DIM)
    r.tensor(f"{b}.attn_kv_a_norm.weight", LATENT_RANK)
    r.tensor(f"{b}.attn_k_b.weight", NOPE_DIM, LATENT_RANK, d.heads)
    r.tensor(f"{b}.attn_v_b.weight", LATENT_RANK, VALUE_DIM, d.heads)
    r.tensor(f"{b}.attn_output.weight", d.heads * VALUE_DIM, d.embd)


def _feed_forward(r: Recipe, layer: int, d: Dims, *, probs_bias: bool) -> None:
    b = f"blk.{layer}"
    r.tensor(f"{b}.ffn_norm.weight", d.embd)
    if layer < d.dense_lead:
        parts.dense_ffn(r, b, d)
    else:
        parts.routed_experts(r, b, d, probs_bias=probs_bias)
        parts.shared_expert(r, b, d)
