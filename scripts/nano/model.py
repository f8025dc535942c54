"""The network: a decoder-only Mixture-of-Experts transformer with qwen3moe's arithmetic.

Every operation is the one that llama.cpp's `qwen3moe` graph performs, so the exported file needs
no code of its own: RMSNorm before attention and before the experts, grouped-query attention with
RMS-normed queries and keys, rotary positions in the half-split ("NeoX") order, SwiGLU experts,
and a router that takes softmax over all experts, keeps the top k and renormalises them.

Training adds two terms to the loss, both named after their papers' terms: the load-balancing
auxiliary loss of the Switch Transformer and the router z-loss of ST-MoE.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK = 128  # rows that are multiplied with one expert at a time


@dataclass(frozen=True, slots=True)
class NanoConfig:
    """Hyperparameters; every row length is a multiple of 32, the block size of Q8_0."""

    vocab_size: int = 3072
    context_length: int = 2048
    layers: int = 6
    width: int = 160
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 16
    experts_used: int = 2
    expert_width: int = 128
    rope_base: float = 10_000.0
    rms_eps: float = 1e-6


@dataclass(slots=True)
class RouterReport:
    """What one layer's router did with one batch: the two losses and the tokens per expert."""

    balance_loss: Tensor
    z_loss: Tensor
    load: Tensor  # i64[experts]: assignments, k per token


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rope_tables(length: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each f32[length, head_dim], for half-split rotary positions."""
    inverse = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x[batch, heads, time, head_dim]."""
    half = x.shape[-1] // 2
    swapped = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + swapped * sin


class Attention(nn.Module):
    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        inner, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.sizes = (inner, kv, kv)
        self.qkv = nn.Linear(config.width, inner + 2 * kv, bias=False)
        self.out = nn.Linear(inner, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, time, _ = x.shape
        c = self.config
        q, k, v = self.qkv(x).split(self.sizes, dim=-1)
        q = self.q_norm(q.view(batch, time, c.heads, c.head_dim)).transpose(1, 2)
        k = self.k_norm(k.view(batch, time, c.kv_heads, c.head_dim)).transpose(1, 2)
        v = v.view(batch, time, c.kv_heads, c.head_dim)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        # Written out: on CPUs with AMX two matrix products beat the fused kernel's backward pass.
        # The query heads that share a key head are stacked along time.
        q = (q * c.head_dim**-0.5).reshape(batch, c.kv_heads, -1, c.head_dim)
        future = torch.ones(time, time, dtype=torch.bool).triu(1).repeat(c.heads // c.kv_heads, 1)
        scores = (q @ k.mT).masked_fill(future, float("-inf"))
        with torch.autocast("cpu", enabled=False):
            shares = scores.softmax(dim=-1)
        mixed = (shares @ v.transpose(1, 2)).view(batch, c.heads, time, c.head_dim)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, -1))


class Experts(nn.Module):
    """Top-k softmax routing over SwiGLU experts; no token is dropped, no expert has a capacity."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        e, d, f = config.experts, config.width, config.expert_width
        self.router = nn.Linear(d, e, bias=False)
        self.gate = nn.Parameter(torch.empty(e, f, d))
        self.up = nn.Parameter(torch.empty(e, f, d))
        self.down = nn.Parameter(torch.empty(e, d, f))

    def route(self, x: Tensor, real: Tensor) -> tuple[Tensor, Tensor, RouterReport]:
        """Return weights f32[tokens, k], chosen i64[tokens, k] and the report, in full precision.

        Padding (where `real` is false) counts in no loss and no load.
        """
        with torch.autocast("cpu", enabled=False):
            logits = functional.linear(x.float(), self.router.weight)
            probabilities = logits.softmax(dim=-1)
            weights, chosen = probabilities.topk(self.config.experts_used, dim=-1)
            weights = weights / weights.sum(dim=-1, keepdim=True)
            load = torch.bincount(chosen[real].flatten(), minlength=self.config.experts)
            share = load.float() / load.sum()
            # Switch Transformer, eq. 4: 1.0 when both the load and the probabilities are even.
            balance = self.config.experts * (share * probabilities[real].mean(dim=0)).sum()
            # ST-MoE, eq. 5: keeps the router's logits small, so its softmax stays trainable.
            z_loss = logits[real].logsumexp(dim=-1).square().mean()
        return weights, chosen, RouterReport(balance, z_loss, load)

    def forward(self, x: Tensor, real: Tensor) -> tuple[Tensor, RouterReport]:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        weights, chosen, report = self.route(x, real)
        slots, token, expert = self.pack(chosen)
        grouped = x.index_select(0, token).view(-1, BLOCK, shape[-1])
        # Each block's weights, picked by a product: its backward pass is a product too, and quick.
        pick = functional.one_hot(expert, self.config.experts).to(grouped.dtype)
        gate, up, down = (
            (pick @ weight.flatten(1)).view(-1, *weight.shape[1:])
            for weight in (self.gate, self.up, self.down)
        )
        inner = functional.silu(grouped @ gate.mT) * (grouped @ up.mT)
        outputs = (inner @ down.mT).reshape(-1, shape[-1])
        chosen_outputs = outputs.index_select(0, slots).view(*chosen.shape, shape[-1])
        mixed = (chosen_outputs * weights.to(outputs.dtype).unsqueeze(-1)).sum(dim=1)
        return mixed.view(shape), report

    def pack(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sort the assignments by expert into blocks of BLOCK rows, each of one expert.

        Return the row of each assignment i64[tokens * k], the token in each row
        i64[blocks * BLOCK], and the expert of each block i64[blocks]. The number of blocks depends
        on the number of tokens alone, so shapes stay the same from batch to batch. Rows left over
        hold token 0 and are not read.
        """
        experts = self.config.experts
        assigned = chosen.flatten()
        load = torch.bincount(assigned, minlength=experts)
        needed = (load + BLOCK - 1) // BLOCK
        blocks = -(-len(assigned) // BLOCK) + experts
        expert = torch.repeat_interleave(torch.arange(experts), needed)
        expert = functional.pad(expert, (0, blocks - len(expert)))
        order = assigned.argsort(stable=True)
        grouped = assigned[order]
        rank = torch.arange(len(order)) - (load.cumsum(0) - load)[grouped]
        row = (needed.cumsum(0) - needed)[grouped] * BLOCK + rank
        rows = torch.empty_like(order)
        rows[order] = row
        token = torch.zeros(blocks * BLOCK, dtype=torch.int64)
        token[row] = order // self.config.experts_used
        return rows, token, expert


class Block(nn.Module):
    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.rms_eps)
        self.attention = Attention(config)
        self.experts_norm = RMSNorm(config.width, config.rms_eps)
        self.experts = Experts(config)

    def forward(
        self, x: Tensor, real: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, RouterReport]:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        mixed, report = self.experts(self.experts_norm(x), real)
        return x + mixed, report


class Nano(nn.Module):
    """The whole model. The output matrix is the embedding (tied), as llama.cpp allows."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.rms_eps)
        cos, sin = rope_tables(config.context_length, config.head_dim, config.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        residual = 0.02 / (2 * config.layers) ** 0.5
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                small = name.endswith(("out.weight", "down"))
                nn.init.normal_(weight, std=residual * 2 if small else 0.04)

    def hidden(self, tokens: Tensor, padding: int) -> tuple[Tensor, list[RouterReport]]:
        """Map tokens i64[batch, time] to normed states [batch, time, width] and router reports."""
        real = (tokens != padding).flatten()
        x = self.embedding(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        reports = []
        for block in self.blocks:
            x, report = block(x, real, cos, sin)
            reports.append(report)
        return self.norm(x), reports

    def logits(self, states: Tensor) -> Tensor:
        """Map states [..., width] to logits [..., vocab]."""
        return functional.linear(states, self.embedding.weight)
