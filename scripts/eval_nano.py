"""Ask nano the held-out questions through localmoe's own engine, greedily, and score the answers.

    python -m scripts.eval_nano                      # scores per domain, and what went wrong
    python -m scripts.eval_nano --nearest            # with the nearest training question of each
    python -m scripts.eval_nano --questions FILE     # another list in the same format

The rule for a right answer stands at the head of tests/nano/held_out.txt. Exits with 1 when a
domain, or all of them together, falls below 80 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localmoe.chat.events import TurnDone
from localmoe.cli import arguments, loaded
from localmoe.cli.output import Output
from scripts.nano import intents, judge

ROOT = Path(__file__).parent.parent
ENOUGH = 0.8


@dataclass(frozen=True, slots=True)
class Asked:
    """One question with the answer that came."""

    item: judge.HeldOut
    answer: str
    right: bool


def ask_all(model: str, items: list[judge.HeldOut]) -> Iterator[Asked]:
    """Ask each question in a conversation of its own, as `localmoe run --temp 0` would."""
    known = intents.load()
    options = arguments.parse(["run", "-m", model, "--temp", "0", "-n", "160", "--quiet", "-"])
    output = Output(quiet=True)
    with loaded.open_model(model, options, output) as nano:
        loaded.load(nano, output)
        for item in items:
            conversation = loaded.conversation(nano, options, output)
            events = list(conversation.ask(item.question))
            done = events[-1]
            answer = done.answer if isinstance(done, TurnDone) else ""
            yield Asked(item, answer, judge.is_right(item, answer, known))


def scores(asked: list[Asked]) -> dict[str, tuple[int, int]]:
    """Count right answers and questions per domain, and over all."""
    total = Counter(a.item.domain for a in asked)
    right = Counter(a.item.domain for a in asked if a.right)
    found = {domain: (right[domain], count) for domain, count in total.items()}
    return found | {"all": (right.total(), total.total())}


def main() -> int:
    """Parse the command line, ask, print; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "models" / "nano.gguf"))
    parser.add_argument("--questions", type=Path, default=ROOT / "tests" / "nano" / "held_out.txt")
    parser.add_argument("--nearest", action="store_true", help="print each nearest question")
    parser.add_argument("--stream", type=int, default=100_000, help="questions to compare with")
    parser.add_argument("--seed", type=int, default=7, help="the seed of the training")
    parser.add_argument("--json", action="store_true", help="one JSON line per question")
    args = parser.parse_args()
    asked = list(ask_all(args.model, judge.read(args.questions)))
    nearest = None
    if args.nearest:
        known = intents.load()
        stream = judge.stream_questions(known, args.seed, args.stream)
        nearest = judge.Nearest([*judge.clean_questions(known), *stream])
    for a in asked:
        if args.json:
            print(json.dumps({"question": a.item.question, "answer": a.answer, "right": a.right}))
        elif not a.right or nearest:
            print(f"{'right' if a.right else 'WRONG'} [{','.join(a.item.expected)}]")
            print(f"  {a.item.question}\n  {a.answer}")
        if nearest:
            likeness, question = nearest.of(a.item.question)
            print(f"  nearest in training ({likeness:.2f}): {question}")
    found = scores(asked)
    for domain, (right, count) in found.items():
        print(f"{domain}: {right}/{count} = {right / count:.1%}", file=sys.stderr)
    return int(any(right < ENOUGH * count for right, count in found.values()))


if __name__ == "__main__":
    raise SystemExit(main())
