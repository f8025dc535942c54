"""The pieces families share: embeddings, attention, dense and expert feed-forward."""

from __future__ import annotations

from tests.archs.recipe import Dims, Recipe


def common_keys(r: Recipe, d: Dims) -> None:
    """The metadata nearly every architecture has."""
    r.keys(
        {
            "block_count": d.layers,
            "context_length": d.context,
            "embedding_length": d.embd,
            "feed_forward_length": d.ff,
            "attention.head_count": d.heads,
            "attention.head_count_kv": d.kv_heads,
            "attention.key_length": d.head_dim,
            "attention.value_length": d.head_dim,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.freq_base": d.rope_base,
            "rope.dimension_count": d.head_dim,
            "vocab_size": d.vocab,
        }
    )


def expert_keys(r: Recipe, d: Dims) -> None:
    r.keys(
        {
            "expert_count": d.experts,
            "expert_used_count": d.used,
            "expert_feed_forward_length": d.expert_ff,
        }
    )


def embeddings(
    r: Recipe,
    d: Dims,
    *,
    tied: bool = False,
    scale: float = 1.0,
    final_norm: str = "output_norm",
) -> None:
    """Token embeddings, final norm, output; ``scale`` is what the graph multiplies rows by."""
    # tied: small, or every token would predict itself
    r.tensor("token_embd.weight", d.embd, d.vocab, deviation=(0.03 if tied else 1.0) / scale)
    r.tensor(f"{final_norm}.weight", d.embd)
    if not tied:
        r.tensor("output.weight", d.embd, d.vocab)


def attention(
    r: Recipe,
    b: str,
    d: Dims,
    *,
    bias: bool = False,
    head_norms: bool = False,
    query_width: int | None = None,
    value: bool = True,
) -> None:
    """Query, key, value and output projections of the block named ``b`` ("blk.3")."""
    widths = {"q": query_width or d.heads * d.head_dim, "k": d.kv_heads * d.head_dim}
    if value:
        widths["v"] = d.kv_heads * d.head_dim
    for projection, width in widths.items():
        r.tensor(f"{b}.attn_{projection}.weight", d.embd, width)
        if bias:
            r.tensor(f"{b}.attn_{projection}.bias", width)
    r.tensor(f"{b}.attn_output.weight", d.heads * d.head_dim, d.embd)
    if head_norms:
        r.tensor(f"{b}.attn_q_norm.weight", d.head_dim)
        r.tensor(f"{b}.attn_k_norm.weight", d.head_dim)


def dense_ffn(r: Recipe, b: str, d: Dims) -> None:
    r.tensor(f"{b}.ffn_gate.weight", d.embd, d.ff)
    r.tensor(f"{b}.ffn_up.weight", d.embd, d.ff)
    r.tensor(f"{b}.ffn_down.weight", d.ff, d.embd)


def routed_experts(
    r: Recipe, b: str, d: Dims, *, fused: bool = False, gate: bool = True, probs_bias: bool = False
) -> None:
    """The router and the routed experts; ``fused`` keeps gate and up in one tensor."""
    r.tensor(f"{b}.ffn_gate_inp.weight", d.embd, d.experts)
    if probs_bias:
        r.tensor(f"{b}.exp_probs_b.bias", d.experts)
    if fused:
        r.tensor(f"{b}.ffn_gate_up_exps.weight", d.embd, 2 * d.expert_ff, d.experts)
    else:
        if gate:
            r.tensor(f"{b}.ffn_gate_exps.weight", d.embd, d.expert_ff, d.experts)
        r.tensor(f"{b}.ffn_up_exps.weight", d.embd, d.expert_ff, d.experts)
    r.tensor(f"{b}.ffn_down_exps.weight", d.expert_ff, d.embd, d.experts)


def shared_expert(r: Recipe, b: str, d: Dims, *, gated: bool = False, gate: bool = True) -> None:
    """The expert every token uses; ``gated`` adds its own scalar router."""
    if gated:
        r.tensor(f"{b}.ffn_gate_inp_shexp.weight", d.embd)
    if gate:
        r.tensor(f"{b}.ffn_gate_shexp.weight", d.embd, d.shared_ff)
    r.tensor(f"{b}.ffn_up_shexp.weight", d.embd, d.shared_ff)
    r.tensor(f"{b}.ffn_down_shexp.weight", d.shared_ff, d.embd)
