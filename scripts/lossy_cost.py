"""What the lossy options cost: perplexity and changed tokens, on nano and on a generated model.

    python scripts/make_standin.py qwen3-30b-a3b --layers 8 --vocab 8192 -o standin.gguf
    python scripts/lossy_cost.py standin.gguf -o docs/lossy.md

Every token is fed as the exact model would have had it (teacher forcing), one at a time, through
the expert cache in its private regime, so that ``--prefer-cached`` sees a cache at work. nano reads
its held-out questions, and the answers that count as right are scored; a generated model knows no
language, so the text scored is its own, sampled from the exact model.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.engine.worker import binding, loader
from localmoe.engine.worker.binding import llama
from localmoe.engine.worker.residency import Residency
from localmoe.engine.worker.vocabulary import Vocabulary
from localmoe.facts.model import Model, read_model
from localmoe.planning.memory import EngineSettings
from scripts.nano import intents, judge

ROOT = Path(__file__).resolve().parents[1]
NANO = ROOT / "models" / "nano.gguf"
QUESTIONS = ROOT / "tests" / "nano" / "held_out.txt"
PREFER = (0.1, 0.25, 0.5, 0.9)
ROOM = 0.25  # of the experts, in the cache
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, slots=True)
class Scored:
    """A text: ``prompt`` is read, each of ``answer`` is predicted."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """One option on one model, over all texts."""

    option: str
    perplexity: float
    likeliest: NDArray[np.int32]  # token that greedy decoding would take, per predicted token
    missed: float  # experts read from the disk per token
    looked_up: float  # experts used per token

    def changed(self, exact: Cost) -> float:
        """The share of tokens for which another one became the likeliest."""
        return float(np.mean(self.likeliest != exact.likeliest))


class Forced:
    """A loaded model that is told what comes next."""

    def __init__(self, model: Any, ctx: Any, residency: Residency) -> None:
        self.vocabulary = Vocabulary(model)
        self.residency = residency
        self._ctx = ctx
        self._batch = llama.llama_batch_init(512, 0, 1)
        self._position = 0

    def close(self) -> None:
        llama.llama_batch_free(self._batch)

    def forget(self) -> None:
        """As if nothing had been read; the cache of experts stays as it is."""
        llama.llama_memory_clear(llama.llama_get_memory(self._ctx), True)
        self._position = 0

    def read(self, tokens: Sequence[int], decoded: int = -1) -> NDArray[np.float64]:
        """The log-probabilities of what follows: f[vocabulary]. Raises LocalmoeError."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self._position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i == len(tokens) - 1
        self.residency.begin(self._position, tokens, decoded)
        status = llama.llama_decode(self._ctx, batch)
        failure = self.residency.failure()
        if failure is not None:
            raise failure
        if status:
            raise SystemExit(f"llama_decode returned {status}")
        self._position += len(tokens)
        row = llama.llama_get_logits_ith(self._ctx, -1)
        logits = np.ctypeslib.as_array(row, (self.vocabulary.size,)).astype(np.float64)
        logits -= logits.max()
        result: NDArray[np.float64] = logits - math.log(np.exp(logits).sum())
        return result


@contextmanager
def forced(model: Model, settings: EngineSettings) -> Iterator[Forced]:
    """``model`` loaded with ``settings``, in this process."""
    log = loader.EngineLog()
    keep = binding.set_log(log.write)
    llama.llama_backend_init()
    paths = [str(path) for path in model.paths]
    handle = loader.open_model(paths, settings, log, model.architecture)
    ctx = loader.open_context(handle, settings, log)
    residency = Residency(handle, model, settings, ctypes.c_int32(0))
    runner = Forced(handle, ctx, residency)
    try:
        yield runner
    finally:
        runner.close()
        residency.close()
        llama.llama_free(ctx)
        llama.llama_model_free(handle)
        del keep


def measure(option: str, model: Model, settings: EngineSettings, texts: Sequence[Scored]) -> Cost:
    """Read all texts with these settings."""
    loss, likeliest = 0.0, []
    with forced(model, settings) as runner:
        before = runner.residency.counters()
        for text in texts:
            runner.forget()
            expected = runner.read(text.prompt)
            for number, token in enumerate(text.answer):
                loss -= float(expected[token])
                likeliest.append(int(expected.argmax()))
                expected = runner.read([token], number)
        after = runner.residency.counters()
    assert before is not None and after is not None
    count = len(likeliest)
    return Cost(
        option,
        math.exp(loss / count),
        np.array(likeliest, np.int32),
        (after.misses - before.misses) / count,
        (after.lookups - before.lookups) / count,
    )


def options_of(model: Model, settings: EngineSettings) -> Iterator[tuple[str, EngineSettings]]:
    """The exact model first, then each lossy option alone."""
    used = max(layer.expert_used for layer in model.layers)
    yield "exact", settings
    for k in sorted({used * 3 // 4, used // 2, used // 4} - {0, used}, reverse=True):
        yield f"`--experts {k}`", dataclasses.replace(settings, experts_used=k)
    for share in PREFER:
        yield f"`--prefer-cached {share}`", dataclasses.replace(settings, prefer_cached=share)


def nano_texts(model: Model, settings: EngineSettings) -> list[Scored]:
    """Every second of its held-out questions, with an answer that counts as right."""
    known = intents.load()
    with forced(model, settings) as runner:
        words = runner.vocabulary
        return [
            Scored(
                tuple(words.parse(TURN.format(item.question))),
                tuple(words.parse(known[item.expected[0]].answer)),
            )
            for item in judge.read(QUESTIONS)[::2]
            if item.expected[0] in known
        ]


def own_texts(
    model: Model, settings: EngineSettings, *, count: int, tokens: int, seed: int = 0
) -> list[Scored]:
    """What the exact model writes after a few random tokens, sampled at temperature 1."""
    rng = np.random.default_rng(seed)
    texts = []
    with forced(model, settings) as runner:
        for _ in range(count):
            prompt = rng.integers(0, runner.vocabulary.size, 16).tolist()
            runner.forget()
            expected, answer = runner.read(prompt), []
            for number in range(tokens):
                answer.append(int(np.argmax(expected + rng.gumbel(size=len(expected)))))
                expected = runner.read(answer[-1:], number)
            texts.append(Scored(tuple(prompt), tuple(answer)))
    return texts


def settings_for(model: Model, threads: int) -> EngineSettings:
    """The private regime with room for ``ROOM`` of the experts."""
    return EngineSettings(
        context=1024,
        batch=64,
        ubatch=64,
        threads=threads,
        cache="private",
        cache_bytes=int(model.expert_bytes * ROOM * 1.1),  # experts take whole pages
        read_ahead=False,
    )


def table(costs: Sequence[Cost]) -> str:
    """Markdown; the first of ``costs`` is the exact model."""
    exact = costs[0]
    lines = [
        "| option | perplexity | against exact | changed tokens | experts read per token |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {cost.option} | {cost.perplexity:.4g} | {cost.perplexity / exact.perplexity:.3f} × "
        f"| {cost.changed(exact):.1%} | {cost.missed:.2f} of {cost.looked_up:.0f} |"
        for cost in costs
    ]
    return "\n".join(lines)


HEAD = """# What the lossy options cost

Two options trade answers for speed, and are off unless asked for: `--experts K` uses fewer experts
per token than the model was trained with, and `--prefer-cached X` lets a resident expert take the
place of a chosen one when the router finds it at most X less probable (0 … 1; the first choice is
always kept).

Written by `python scripts/lossy_cost.py`. Tokens are fed as the exact model would have had them;
"changed" are those for which another token became the likeliest, so greedy answers part there. The
cache holds {room:.0%} of the experts; what is read per token shows what the loss buys. A generated
model has random weights: its perplexity is that of its own text, and says how far the distribution
moves, not how much worse a trained model of that shape would answer.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, nargs="*", help="generated models (make_standin.py)")
    parser.add_argument("-o", "--output", type=Path, help="a Markdown file (default: stdout)")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=4, help="of a generated model (4)")
    parser.add_argument("-n", "--tokens", type=int, default=96, help="of each of them (96)")
    options = parser.parse_args(arguments)
    parts = [HEAD.format(room=ROOM)]
    for path in (NANO, *options.model):
        begun = time.monotonic()
        model = read_model(path)
        settings = settings_for(model, options.threads)
        if path == NANO:
            texts = nano_texts(model, settings)
            what = f"{len(texts)} held-out questions, the right answer to each"
        else:
            texts = own_texts(model, settings, count=options.texts, tokens=options.tokens)
            what = f"{len(texts)} texts of its own"
        costs = [
            measure(name, model, with_it, texts) for name, with_it in options_of(model, settings)
        ]
        moe = [layer for layer in model.layers if layer.expert_count]
        parts.append(
            f"## {path.stem}: {len(moe)} layers of {moe[0].expert_count} experts, "
            f"{moe[0].expert_used} per token\n\n"
            f"{what}: {len(costs[0].likeliest)} tokens.\n\n{table(costs)}\n"
        )
        print(f"{path.name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    text = "\n".join(parts)
    if options.output:
        options.output.write_text(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
