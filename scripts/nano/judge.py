"""The held-out questions, the rule for a right answer, and the nearest training question."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .carriers import DEED, DOING, THING
from .compose import Composer, doing, normal
from .intents import Intent


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One question: `expected` names intents, each of which answers it."""

    domain: str
    expected: tuple[str, ...]
    question: str


def read(path: Path) -> list[HeldOut]:
    """Read a file of `domain | expected | question` lines. Raises ValueError on any other line."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            domain, expected, question = (part.strip() for part in line.split("|", 2))
            found.append(HeldOut(domain, tuple(expected.split(",")), question))
    return found


def is_right(item: HeldOut, answer: str, known: Mapping[str, Intent]) -> bool:
    """Apply the rule in the header of `tests/nano/held_out.txt`."""
    answer = " ".join(answer.split())
    return answer in {known[name].answer for name in item.expected}


def clean_questions(known: Mapping[str, Intent]) -> Iterator[str]:
    """Yield every question that patterns and topics make, and every written one, unroughened."""
    for intent in known.values():
        yield from intent.questions
        yield from (p.replace("{}", topic) for topic in intent.things for p in THING)
        yield from (p.replace("{}", topic) for topic in intent.deeds for p in DEED)
        yield from (p.replace("{}", doing(topic)) for topic in intent.deeds for p in DOING)


def stream_questions(known: dict[str, Intent], seed: int, count: int) -> Iterator[str]:
    """Yield questions drawn as for training, the first of the composer with this seed."""
    composer = Composer(known, random.Random(seed))
    for _ in range(count):
        yield composer.turn().question


class Nearest:
    """Finds the training question that shares most words with another (Jaccard similarity)."""

    def __init__(self, questions: Iterable[str]) -> None:
        self.words = {q: frozenset(normal(q).split()) for q in dict.fromkeys(questions)}

    def of(self, question: str) -> tuple[float, str]:
        """Return the similarity, 0 to 1, and the training question."""
        mine = frozenset(normal(question).split())
        return max(
            (len(mine & words) / len(mine | words), other) for other, words in self.words.items()
        )
