"""Train the bundled model `nano`: data, training, conversion and quantization, in one command.

    python -m venv nano && nano/bin/pip install 'torch==2.13.*' numpy tokenizers gguf
    nano/bin/python -m scripts.train_nano --out models/nano.gguf

A CPU build of PyTorch is enough; two cores take well under 40 minutes. Everything is seeded. The
training follows the mixture-of-experts literature: softmax top-k routing without dropped tokens, a
load-balancing auxiliary loss (Switch Transformer) and a router z-loss (ST-MoE). At the end the
script reports the share of tokens of each expert in each layer, how far the domains differ in
their routing, and fails if an expert is dead.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from scripts.nano import export, intents, routing, start, vocabulary
from scripts.nano.compose import Composer
from scripts.nano.model import Nano, NanoConfig

BALANCE_WEIGHT = 0.02
Z_WEIGHT = 0.001
PEAK_RATE = 2e-3
DECAY = 0.1
WARM_UP = 100
BATCH_TOKENS = 4096
# Few shapes: the matrix library compiles a kernel for each, which costs more than some padding.
LENGTHS = (24, 32, 40, 48, 64, 80, 96, 128, 192, 256, 512, 1024, 2048)
WRITTEN_STEP = 256
IGNORED = -100  # the target of padding
PADDING = 0  # the token <|endoftext|>
# An answer is decided by its first tokens and the rest is soon known by heart, so most last
# answers are cut there: twice as many questions in the same time.
CUT_SHARE = 0.88
CUT_TOKENS = 6


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of equal length: inputs and next tokens, and which of these the model must write."""

    inputs: Tensor  # i64[rows, length]
    targets: Tensor  # i64[written], padded with IGNORED
    places: Tensor  # i64[written], where in the flattened rows


def rows(
    composer: Composer, tokenizer: Tokenizer, rng: random.Random
) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield conversations as tokens, without end; most of them with a cut last answer."""
    while True:
        conversation = composer.conversation()
        tokens, written = vocabulary.encode(tokenizer, vocabulary.render(conversation))
        size = LENGTHS[-1] + 1
        if rng.random() < CUT_SHARE:
            starts = (i for i in range(1, len(written)) if written[i] and not written[i - 1])
            size = max(starts) + CUT_TOKENS
        yield tokens[:size], written[:size]


def batches(source: Iterator[tuple[list[int], list[bool]]]) -> Iterator[Batch]:
    """Yield batches of about BATCH_TOKENS tokens whose rows have nearly the same length."""
    pools: dict[int, list[tuple[list[int], list[bool]]]] = {}
    for tokens, written in source:
        length = next(size for size in LENGTHS if size >= len(tokens) - 1)
        pool = pools.setdefault(length, [])
        pool.append((tokens, written))
        if len(pool) * length >= BATCH_TOKENS:
            yield pack(pool, length)
            pool.clear()


def pack(pool: list[tuple[list[int], list[bool]]], length: int) -> Batch:
    """Pad rows on the right; padding is never attended to by what comes before it."""
    inputs = torch.zeros(len(pool), length, dtype=torch.int64)
    following = torch.zeros(len(pool), length, dtype=torch.int64)
    written = torch.zeros(len(pool), length, dtype=torch.bool)
    for row, (tokens, mask) in enumerate(pool):
        size = len(tokens) - 1
        inputs[row, :size] = torch.tensor(tokens[:-1])
        following[row, :size] = torch.tensor(tokens[1:])
        written[row, :size] = torch.tensor(mask[1:])
    places = written.flatten().nonzero().squeeze(1)
    targets = following.flatten()[places]
    missing = -len(places) % WRITTEN_STEP
    return Batch(
        inputs,
        functional.pad(targets, (0, missing), value=IGNORED),
        functional.pad(places, (0, missing)),
    )


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up, hold, then fall to zero along a half cosine over the last four fifths."""
    warm_up = min(WARM_UP, steps // 5)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    fall = max(0.0, (step - steps / 5) / (steps - steps / 5))
    return peak * 0.5 * (1 + math.cos(math.pi * fall))


def optimizer(model: Nano) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)


def losses(model: Nano, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return answer, balance and z loss, and the load i64[layers, experts]."""
    states, reports = model.hidden(batch.inputs, PADDING)
    logits = model.logits(states.flatten(0, 1).index_select(0, batch.places))
    answer = functional.cross_entropy(logits, batch.targets, ignore_index=IGNORED)
    balance = torch.stack([report.balance_loss for report in reports]).mean()
    z_loss = torch.stack([report.z_loss for report in reports]).mean()
    return answer, balance, z_loss, torch.stack([report.load for report in reports])


def beginning(
    config: NanoConfig, known: dict[str, intents.Intent], seed: int
) -> tuple[Nano, Tokenizer]:
    """A network that has learned nothing yet, and a vocabulary for the training text."""
    sample = Composer(known, random.Random(seed + 1))
    texts = (text for _ in range(40_000) for text, _ in vocabulary.render(sample.conversation()))
    tokenizer = vocabulary.learn(texts, config.vocab_size)
    model = Nano(config)
    first = start.embedding(tokenizer, known, config.vocab_size, config.width, seed + 3)
    model.embedding.weight.data.copy_(torch.from_numpy(first))
    return model, tokenizer


def train(args: argparse.Namespace) -> None:
    """Run the whole command."""
    began, cpu_began = time.perf_counter(), time.process_time()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    known = intents.load()
    config = NanoConfig()
    if args.start:
        model, tokenizer = export.read(args.start, config)
    else:
        model, tokenizer = beginning(config, known, args.seed)
    optimize = optimizer(model)
    rng = random.Random(args.seed)
    stream = batches(rows(Composer(known, rng), tokenizer, rng))
    assistant = tokenizer.encode("assistant").ids[0]
    curve, tokens_seen, questions = [], 0, 0
    for step in range(args.steps):
        for group in optimize.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.rate)
        batch = next(stream)
        answer, balance, z_loss, load = losses(model, batch)
        (answer + BALANCE_WEIGHT * balance + Z_WEIGHT * z_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimize.step()
        optimize.zero_grad(set_to_none=True)
        tokens_seen += batch.inputs.numel()
        questions += int((batch.inputs == assistant).sum())
        if step % 50 == 0 or step == args.steps - 1:
            seconds = time.perf_counter() - began
            worst = (load.float() / load.float().mean(dim=1, keepdim=True)).max().item()
            curve.append(
                {"step": step, "seconds": round(seconds), "loss": round(answer.item(), 4),
                 "balance": round(balance.item(), 4), "z": round(z_loss.item(), 3),
                 "max_load": round(worst, 2), "tokens": tokens_seen, "questions": questions}
            )  # fmt: skip
            print(json.dumps(curve[-1]), flush=True)
        if args.save_every and step and step % args.save_every == 0:
            export.write(args.out, model, tokenizer)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    export.write(args.out, model, tokenizer)
    report = {
        "config": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - began),
        "cpu_seconds": round(time.process_time() - cpu_began),
        "threads": args.threads,
        "seed": args.seed,
        "curve": curve,
        "routing": routing.measure(model, tokenizer, known, seed=args.seed + 2),
    }
    if args.report:
        args.report.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(routing.summary(report["routing"]))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, {report['seconds']} s in all")
    if report["routing"]["dead"]:
        raise SystemExit(f"dead experts: {report['routing']['dead']}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("models/nano.gguf"))
    parser.add_argument("--report", type=Path, help="write curve and load per expert as JSON")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="the highest learning rate")
    parser.add_argument("--start", type=Path, metavar="FILE", help="go on from this nano.gguf")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=0, metavar="STEPS")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
