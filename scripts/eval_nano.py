"""Ask nano the held-out questions through localmoe's own engine, greedily, and score the answers.

    python -m scripts.eval_nano                      # scores per domain, and what went wrong
    python -m scripts.eval_nano --nearest            # with the nearest training question of each
    python -m scripts.eval_nano --questions FILE     # another list in the same format
    python -m scripts.eval_nano --turns              # those that are right alone, after other turns

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
from scripts.nano.judge import HeldOut

ROOT = Path(__file__).parent.parent
ENOUGH = 0.8
FIRST = ("Hi", "Thank you!", "What is a router?")  # a turn before the question


@dataclass(frozen=True, slots=True)
class Asked:
    """One question with the answer that came."""

    item: HeldOut
    answer: str
    right: bool


def ask_all(model: str, items: list[HeldOut], first: str = "") -> Iterator[Asked]:
    """Ask each question in a conversation of its own, as `localmoe run --temp 0` would.

    ``first``: a message before it, which is answered too.
    """
    known = intents.load()
    options = arguments.parse(
        ["run", "-m", model, "-t", "1", "--temp", "0", "-n", "160", "--quiet", "-"]
    )
    output = Output(quiet=True)
    with loaded.open_model(model, options, output) as nano:
        loaded.load(nano, output)
        for item in items:
            conversation = loaded.conversation(nano, options, output)
            if first:
                for _ in conversation.ask(first):
                    pass
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


def in_turns(model: str, right_alone: list[HeldOut]) -> int:
    """Print what share of the questions is right after each first turn; 1 if one is below 95 %."""
    worst = 1.0
    for first in FIRST:
        asked = list(ask_all(model, right_alone, first))
        right = sum(a.right for a in asked)
        print(f"after {first!r}: {right}/{len(asked)} = {right / len(asked):.1%}")
        for a in asked:
            if not a.right:
                print(f"  {a.item.question}\n    {a.answer}")
        worst = min(worst, right / len(asked))
    return int(worst < 0.95)


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
    parser.add_argument("--turns", action="store_true", help="ask those right alone in turns")
    args = parser.parse_args()
    asked = list(ask_all(args.model, judge.read(args.questions)))
    if args.turns:
        return in_turns(args.model, [a.item for a in asked if a.right])
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
