"""DeepSeek families (models/deepseek*.cpp of llama.cpp)."""

from __future__ import annotations

from gguf import GGMLQuantizationType as Kind

from tests.archs import parts
from tests.archs.recipe import Dims, Recipe, Types

SOFTMAX, SIGMOID, SQRT_SOFTPLUS = 1, 2, 4  # llama_expert_gating_func_type
ROPE_DIM = 64


def deepseek(d: Dims, types: Types) -> Recipe:
    """The first generation: ordinary attention, shared experts, softmax routing."""
    r = Recipe("deepseek", types)
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys(
        {
            "leading_dense_block_count": d.dense_lead,
            "expert_shared_count": d.shared_ff // d.expert_ff,
            "expert_weights_scale": 1.0,
        }
    )
    parts.embeddings(r, d)
    for i in range(d.layers):
        b = f"blk.{i}"
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        parts.attention(r, b, d)
        _feed_forward(r, i, d, probs_bias=False)
    return r


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


INDEXER_HEADS, INDEXER_DIM, INDEXER_TOP_K = 64, 128, 2048


def deepseek32(d: Dims, types: Types) -> Recipe:
    """Sparse attention: an indexer picks the cached rows that each token attends to."""
    r = Recipe("deepseek32", types)
    _latent_attention_keys(r, d)
    r.keys(
        {
            "expert_weights_scale": 1.5,
            "expert_weights_norm": True,
            "attention.indexer.head_count": INDEXER_HEADS,
            "attention.indexer.key_length": INDEXER_DIM,
            "attention.indexer.top_k": INDEXER_TOP_K,
        }
    )
    parts.embeddings(r, d)
    for i in range(d.layers):
        b = f"blk.{i}"
        _latent_attention(r, b, d)
        r.tensor(f"{b}.indexer.k_norm.weight", INDEXER_DIM)
        r.tensor(f"{b}.indexer.k_norm.bias", INDEXER_DIM)
        r.tensor(f"{b}.indexer.proj.weight", d.embd, INDEXER_HEADS)
        r.tensor(f"{b}.indexer.attn_k.weight", d.embd, INDEXER_DIM)
        r.tensor(f"{b}.indexer.attn_q_b.weight", d.query_rank, INDEXER_HEADS * INDEXER_DIM)
        _feed_forward(r, i, d, probs_bias=True)
    return r


OUTPUT_GROUPS, OUTPUT_RANK, STREAMS, HASH_LAYERS = 8, 32, 4, 1
COMPRESS_RATIOS = (0, 0, 4, 128)  # of the cached rows, per layer


def deepseek4(d: Dims, types: Types) -> Recipe:
    """Four residual streams, compressed caches, a first layer routed by token id."""
    r = Recipe("deepseek4", types)
    rank = d.embd // 2
    parts.common_keys(r, d)
    parts.expert_keys(r, d)
    r.keys(
        {
            "expert_shared_count": d.shared_ff // d.expert_ff,
            "expert_weights_scale": 1.5,
            "expert_weights_norm": True,
            "expert_gating_func": SQRT_SOFTPLUS,
            "swiglu_clamp_exp": 10.0,
            "hash_layer_count": HASH_LAYERS,
            "rope.dimension_count": d.head_dim // 2,
            "attention.q_lora_rank": rank,
            "attention.sliding_window": d.window,
            "attention.output_group_count": OUTPUT_GROUPS,
            "attention.output_lora_rank": OUTPUT_RANK,
            "attention.compress_ratios": list(COMPRESS_RATIOS[: d.layers]),
            "attention.compress_rope_freq_base": 160000.0,
            "attention.indexer.head_count": INDEXER_HEADS,
            "attention.indexer.key_length": INDEXER_DIM,
            "attention.indexer.top_k": INDEXER_TOP_K,
            "hyper_connection.count": STREAMS,
            "hyper_connection.sinkhorn_iterations": 2,
            "hyper_connection.epsilon": 1e-6,
        }
    )
    parts.embeddings(r, d)
    r.tensor("output_hc_fn.weight", STREAMS * d.embd, STREAMS)
    r.tensor("output_hc_base.weight", STREAMS, deviation=0.1)
    r.tensor("output_hc_scale.weight", 1, mean=1.0, deviation=0.0)
    for i in range(d.layers):
        b = f"blk.{i}"
        r.tensor(f"{b}.attn_norm.weight", d.embd)
        r.tensor(f"{b}.attn_sinks.weight", d.heads, deviation=1.0)
        r.tensor(f"{b}.attn_q_a.weight", d.embd, rank)
        r.tensor(f"{b}.attn_q_a_norm.weight", rank)
        r.tensor(f"{b}.attn_q_b.weight", rank, d.heads * d.head_dim)
        r.tensor(f"{b}.attn_kv.weight", d.embd, d.head_dim)
        r.tensor(f"{b}.attn_kv_a_norm.weight", d.head_dim)
        width = d.heads * d.head_dim // OUTPUT_GROUPS
        r.tensor(f"{b}.attn_output_a.weight", width, OUTPUT_RANK * OUTPUT_GROUPS)
        r.tensor(f"{b}.attn_output_b.weight", OUTPUT_GROUPS * OUTPUT_RANK, d.embd)
        _streams(r, b, d)
        if COMPRESS_RATIOS[i]:
            _compressor(r, b, d, COMPRESS_RATIOS[i], rank)
        r.tensor(f"{b}.ffn_norm.weight", d.embd)
        by_token = i < HASH_LAYERS
        parts.routed_experts(r, b, d, probs_bias=not by_token)
        if by_token:
            r.tensor(f"{b}.ffn_gate_tid2eid.weight", d.used, d.vocab, kind=Kind.I32)
        parts.shared_expert(r, b, d)
    return r


def _streams(r: Recipe, b: str, d: Dims) -> None:
    """Hyper-connections: how the residual streams are mixed around attention and experts."""
    mixes = (2 + STREAMS) * STREAMS
    for part in ("attn", "ffn"):
        r.tensor(f"{b}.hc_{part}_fn.weight", STREAMS * d.embd, mixes)
        r.tensor(f"{b}.hc_{part}_base.weight", mixes, deviation=0.1)
        r.tensor(f"{b}.hc_{part}_scale.weight", 3, mean=1.0, deviation=0.0)


def _compressor(r: Recipe, b: str, d: Dims, ratio: int, rank: int) -> None:
    """What folds ``ratio`` cached rows into one; the finer ratio has an indexer as well."""
    fold = 2 if ratio == 4 else 1
    r.tensor(f"{b}.attn_compressor_kv.weight", d.embd, fold * d.head_dim)
    r.tensor(f"{b}.attn_compressor_gate.weight", d.embd, fold * d.head_dim)
    r.tensor(f"{b}.attn_compressor_ape.weight", fold * d.head_dim, ratio)
    r.tensor(f"{b}.attn_compressor_norm.weight", d.head_dim)
    if ratio == 4:
        r.tensor(f"{b}.indexer.proj.weight", d.embd, INDEXER_HEADS)
        r.tensor(f"{b}.indexer.attn_q_b.weight", rank, INDEXER_HEADS * INDEXER_DIM)
        r.tensor(f"{b}.indexer_compressor_kv.weight", d.embd, 2 * INDEXER_DIM)
        r.tensor(f"{b}.indexer_compressor_gate.weight", d.embd, 2 * INDEXER_DIM)
        r.tensor(f"{b}.indexer_compressor_ape.weight", 2 * INDEXER_DIM, ratio)
        r.tensor(f"{b}.indexer_compressor_norm.weight", INDEXER_DIM)


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
            "attention.q_lora_rank": d.query_rank,
            "attention.kv_lora_rank": d.latent_rank,
            "attention.key_length": d.latent_rank + ROPE_DIM,
            "attention.value_length": d.latent_rank,
            "attention.key_length_mla": d.nope_dim + ROPE_DIM,
            "attention.value_length_mla": d.value_dim,
            "rope.dimension_count": ROPE_DIM,
        }
    )


def _latent_attention(r: Recipe, b: str, d: Dims) -> None:
    r.tensor(f"{b}.attn_norm.weight", d.embd)
    r.tensor(f"{b}.attn_q_a.weight", d.embd, d.query_rank)
    r.tensor(f"{b}.attn_q_a_norm.weight", d.query_rank)
    r.tensor(f"{b}.attn_q_b.weight", d.query_rank, d.heads * (d.nope_dim + ROPE_DIM))
    r.tensor(f"{b}.attn_kv_a_mqa.weight", d.embd, d.latent_rank + ROPE_DIM)
    r.tensor(f"{b}.attn_kv_a_norm.weight", d.latent_rank)
    r.tensor(f"{b}.attn_k_b.weight", d.nope_dim, d.latent_rank, d.heads)
    r.tensor(f"{b}.attn_v_b.weight", d.latent_rank, d.value_dim, d.heads)
    r.tensor(f"{b}.attn_output.weight", d.heads * d.value_dim, d.embd)


def _feed_forward(r: Recipe, layer: int, d: Dims, *, probs_bias: bool) -> None:
    b = f"blk.{layer}"
    r.tensor(f"{b}.ffn_norm.weight", d.embd)
    if layer < d.dense_lead:
        parts.dense_ffn(r, b, d)
    else:
        parts.routed_experts(r, b, d, probs_bias=probs_bias)
        parts.shared_expert(r, b, d)
