"""What the routers learned: the load of each expert, and how the domains differ."""

from __future__ import annotations

import random
from typing import Any

import torch
from tokenizers import Tokenizer

from . import vocabulary
from .compose import SHARES, Composer, Conversation
from .intents import Intent
from .model import Nano

DEAD_SHARE = 0.1  # of an even share: below it an expert counts as dead
QUESTIONS = 300  # per domain
LENGTH = 128  # tokens of a question and its answer that are looked at


def shares(load: torch.Tensor) -> torch.Tensor:
    """Turn counts [layers, experts] into shares that sum to one per layer."""
    return load.float() / load.sum(dim=1, keepdim=True)


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Jensen-Shannon divergence in bits, averaged over layers: 0 equal, 1 disjoint."""
    middle = (p + q) / 2

    def relative(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x * (x / middle).log2(), torch.zeros(())).sum(dim=1)

    return float(((relative(p) + relative(q)) / 2).mean())


def domain_load(model: Nano, tokenizer: Tokenizer, composer: Composer, domain: str) -> torch.Tensor:
    """Count assignments i64[layers, experts] over fresh questions of one domain and answers."""
    padding = tokenizer.token_to_id(vocabulary.STOP)
    rows = torch.full((QUESTIONS, LENGTH), padding)
    for row in rows:
        pieces = vocabulary.render(Conversation(None, (composer.turn(domain),)))
        tokens = torch.tensor(vocabulary.encode(tokenizer, pieces)[0][:LENGTH])
        row[: len(tokens)] = tokens
    with torch.no_grad():
        _, reports = model.hidden(rows, padding)
    return torch.stack([report.load for report in reports])


def measure(
    model: Nano, tokenizer: Tokenizer, known: dict[str, Intent], seed: int
) -> dict[str, Any]:
    """Return load shares per layer, over all domains and per domain, and their divergences."""
    composer = Composer(known, random.Random(seed))
    loads = {domain: domain_load(model, tokenizer, composer, domain) for domain in SHARES}
    by_domain = {domain: shares(load) for domain, load in loads.items()}
    overall = sum(SHARES[domain] * share for domain, share in by_domain.items())
    even = 1 / model.config.experts
    domains = list(by_domain)
    return {
        "share": [[round(float(x), 4) for x in layer] for layer in overall],
        "by_domain": {
            domain: [[round(float(x), 4) for x in layer] for layer in share]
            for domain, share in by_domain.items()
        },
        "divergence": {
            f"{a} / {b}": round(divergence(by_domain[a], by_domain[b]), 3)
            for i, a in enumerate(domains)
            for b in domains[i + 1 :]
        },
        "dead": [
            (layer, expert)
            for layer, row in enumerate(overall)
            for expert, share in enumerate(row.tolist())
            if share < DEAD_SHARE * even
        ],
    }


def summary(routing: dict[str, Any]) -> str:
    """Write the measurement as a table for people."""
    lines = ["layer  share of tokens per expert, percent · max/mean · min/mean"]
    for layer, row in enumerate(routing["share"]):
        mean = sum(row) / len(row)
        cells = " ".join(f"{100 * x:4.1f}" for x in row)
        lines.append(f"{layer:5}  {cells} · {max(row) / mean:.2f} · {min(row) / mean:.2f}")
    lines += [f"{pair}: {bits} bits" for pair, bits in routing["divergence"].items()]
    lines.append(f"dead experts: {len(routing['dead'])}")
    return "\n".join(lines)
