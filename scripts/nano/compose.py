"""Turn intents and sums into questions, and questions into conversations; seeded throughout.

A question is a pattern around a topic, a hand-written question, or the concepts of an intent in
any order; then it is roughened the way people type: lower case, no question mark, an opening, a
typo, words that carry no topic. The rough part teaches the model to hold on to the topic and let
the rest of the sentence go.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from . import arithmetic
from .carriers import DEED, DOING, ENDINGS, OPENINGS, PLAIN_WORDS, SYSTEM_MESSAGES, THING
from .intents import TEXT, Intent

SHARES = {"moe": 0.29, "localmoe": 0.34, "arithmetic": 0.08, "smalltalk": 0.10, "offtopic": 0.19}
SMALL = tuple((TEXT / "small_words.txt").read_text("utf-8").split())
PLAIN = frozenset((*PLAIN_WORDS, *SMALL))
LINKS = (*PLAIN_WORDS, *SMALL * 16)  # what stands between concepts: mostly small words
SYLLABLES = tuple((TEXT / "syllables.txt").read_text("utf-8").split())


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, the answer that is right for it, and where it belongs."""

    question: str
    answer: str
    domain: str
    intent: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, with or without a system message."""

    system: str | None
    turns: tuple[Turn, ...]


def invented(rng: random.Random) -> str:
    """Make up a word, so that unknown words come to mean: not my topic."""
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3, 3, 4))))
    return word.capitalize() if rng.random() < 0.5 else word


def plain(rng: random.Random, low: int, high: int) -> str:
    """String some words together that carry no topic."""
    return " ".join(rng.choice(PLAIN_WORDS) for _ in range(rng.randint(low, high)))


def typo(rng: random.Random, text: str) -> str:
    """Damage one letter of one longer word, as fingers do."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return text
    index = rng.choice(long)
    word = words[index]
    at = rng.randint(1, len(word) - 2)
    words[index] = rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        )
    )
    return " ".join(words)


def sprinkle(rng: random.Random, text: str, topic: str) -> str:
    """Insert words without a topic, or drop such words, outside the topic itself."""
    before, found, after = text.partition(topic) if topic else (text, "", "")
    words = [word for word in before.split(" ") if word]
    tail = [word for word in after.split(" ") if word]
    drop = rng.random() < 0.4
    for part in (words, tail):
        if drop:
            part[:] = [w for w in part if w.lower().strip("?.,") not in PLAIN or rng.random() < 0.6]
        else:
            for _ in range(rng.choice((0, 1, 1, 2))):
                new = invented(rng) if rng.random() < 0.08 else rng.choice(PLAIN_WORDS)
                part.insert(rng.randint(0, len(part)), new)
    joined = " ".join(words) + (f" {found}" if words and found else found)
    if tail and tail[0][0] in "?.,!":
        return (joined + " ".join(tail)).strip() or text
    return f"{joined} {' '.join(tail)}".strip() or text


def roughen(rng: random.Random, text: str, topic: str = "") -> str:
    """Type a question the way people do."""
    if rng.random() < 0.35:
        text = sprinkle(rng, text, topic)
    if rng.random() < 0.14:
        opening = rng.choice(OPENINGS)
        text = opening + (text[:1].lower() + text[1:] if opening.endswith(", ") else text)
    if rng.random() < 0.10:
        ending = rng.choice(ENDINGS)
        text = text + ending if ending[1].isupper() else text.rstrip("?.!") + ending + "?"
    if rng.random() < 0.40:
        text = text.rstrip("?.!")
    if rng.random() < 0.45:
        text = text.lower()
    if rng.random() < 0.08:
        text = typo(rng, text)
    return text[:1].upper() + text[1:] if rng.random() < 0.25 else text


def carried(rng: random.Random, topic: str, patterns: tuple[str, ...]) -> str:
    """Put a topic into a pattern, or between words that mean nothing."""
    if rng.random() < 0.12:
        return " ".join((plain(rng, 0, 5), topic, plain(rng, 0, 4))).strip()
    return rng.choice(patterns).replace("{}", topic)


def doing(deed: str) -> str:
    """Turn the verb that begins a deed into its -ing form."""
    verb, _, rest = deed.partition(" ")
    if verb.endswith("ie"):
        verb = verb[:-2] + "y"
    elif verb.endswith("e") and not verb.endswith("ee"):
        verb = verb[:-1]
    elif re.fullmatch(r"(?:be)?[^aeiou]*[aeiou][bdgmnpt]|quit|begin|reset|control|cancel", verb):
        verb += verb[-1]
    return f"{verb}ing {rest}".strip()


def speak_of(rng: random.Random, concepts: Sequence[Sequence[str]]) -> str:
    """Name each concept once, in any order, with words between that carry no topic."""
    words = [rng.choice(concept) for concept in concepts]
    if len(words) > 2 and rng.random() < 0.2:
        words.pop(rng.randrange(1, len(words)))
    if rng.random() < 0.5:
        rng.shuffle(words)
    parts: list[str] = []
    for word in words:
        parts += [rng.choice(LINKS) for _ in range(rng.choice((0, 0, 1, 1, 2, 3)))]
        parts.append(word)
    parts += [rng.choice(LINKS) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
    text = " ".join(parts) + rng.choice(("", "?", "?", "."))
    return text[:1].upper() + text[1:]


def ask(rng: random.Random, intent: Intent) -> str:
    """Ask for an intent: by pattern, in a written question, or roughened."""
    weights = (
        2.0 * bool(intent.things),
        2.0 * bool(intent.deeds),
        min(4.0, 0.5 * len(intent.questions)),
    )
    if intent.concepts and rng.random() < 0.4:
        return roughen(rng, speak_of(rng, rng.choice(intent.concepts)))
    kind = rng.choices("TDQ", weights)[0]
    if kind == "Q":
        return roughen(rng, rng.choice(intent.questions))
    topic = rng.choice(intent.things if kind == "T" else intent.deeds)
    patterns = THING if kind == "T" else DEED
    if kind == "D" and rng.random() < 0.3:
        topic, patterns = doing(topic), DOING
    return roughen(rng, carried(rng, topic, patterns), topic)


def ask_unknown(rng: random.Random) -> str:
    """Ask about something made up, or about nothing at all."""
    kind = rng.random()
    if kind < 0.3:
        return roughen(rng, plain(rng, 2, 10) + rng.choice(("", "?", ".")))
    things = (
        invented(rng),
        f"{rng.choice(('a', 'the', 'my', 'some', 'an old', 'a new'))} {invented(rng)}",
        f"{invented(rng)} {invented(rng)}",
        f"the {invented(rng)} of {invented(rng)}",
        f"{rng.choice(PLAIN_WORDS)} {invented(rng)}",
    )
    if kind < 0.4:
        words = [invented(rng).lower() if rng.random() < 0.5 else plain(rng, 1, 2) for _ in "12345"]
        return roughen(rng, f"{' '.join(words)}?")
    if kind < 0.75:
        topic = rng.choice(things)
        return roughen(rng, carried(rng, topic, THING), topic)
    topic = f"{invented(rng).lower()} {rng.choice(things)}"
    return roughen(rng, carried(rng, topic, DEED), topic)


class Composer:
    """Draws turns and conversations from the intents."""

    def __init__(self, intents: dict[str, Intent], rng: random.Random) -> None:
        self.rng = rng
        self.by_domain: dict[str, list[Intent]] = {}
        for intent in intents.values():
            self.by_domain.setdefault(intent.domain, []).append(intent)
        self.weights = {
            domain: [(2 + len(i.things) + len(i.deeds) + len(i.questions)) ** 0.5 for i in members]
            for domain, members in self.by_domain.items()
        }

    def turn(self, domain: str | None = None) -> Turn:
        """Draw one question with its answer, of the given domain or by the shares above."""
        rng = self.rng
        if domain is None:
            domain = rng.choices(list(SHARES), list(SHARES.values()))[0]
        intent = rng.choices(self.by_domain[domain], self.weights[domain])[0]
        if domain == "arithmetic" and rng.random() < 0.9:
            question = arithmetic.draw(rng)
            if rng.random() < 0.12:
                question = rng.choice(OPENINGS) + question
            if rng.random() < 0.3:
                question = question.lower()
            return Turn(question, intent.answer, domain, intent.name)
        if domain == "offtopic" and rng.random() < 0.3:
            return Turn(ask_unknown(rng), intent.answer, domain, intent.name)
        return Turn(ask(rng, intent), intent.answer, domain, intent.name)

    def conversation(self) -> Conversation:
        """Draw one conversation: one to three turns, often begun with small talk, rarely more."""
        rng = self.rng
        kind = rng.random()
        count = 1 if kind < 0.68 else rng.choice((2, 2, 3)) if kind < 0.998 else rng.randint(4, 24)
        talk = count > 1 and rng.random() < 0.4
        system = rng.choice(SYSTEM_MESSAGES) if rng.random() < 0.15 else None
        turns = (self.turn("smalltalk" if talk and n == 0 else None) for n in range(count))
        return Conversation(system, tuple(turns))


def normal(text: str) -> str:
    """Lower case, words only: the form in which questions are compared."""
    return " ".join(re.findall(r"[a-z0-9][a-z0-9'_./-]*|[-+*/×÷=:]", text.lower()))


@dataclass(frozen=True, slots=True)
class Topics:
    """What a sentence can be about: every thing and deed, and numbers."""

    words: frozenset[tuple[str, ...]]
    longest: int  # in words

    @classmethod
    def of(cls, intents: dict[str, Intent]) -> Topics:
        texts = {
            normal(t) for i in intents.values() for t in (*i.things, *i.deeds, *map(doing, i.deeds))
        }
        words = frozenset(tuple(text.split()) for text in (*texts, *arithmetic.NOUNS) if text)
        return cls(words, max(map(len, words)))

    def length(self, words: Sequence[str], start: int) -> int:
        """Words of the longest topic that begins there, 0 without one."""
        for length in range(min(self.longest, len(words) - start), 0, -1):
            if tuple(words[start : start + length]) in self.words:
                return length
        return 1 if NUMBER.fullmatch(words[start]) else 0


NUMBER = re.compile(rf"\d+|(?:{'|'.join((*arithmetic.TENS, *arithmetic.ONES))})(?:-\w+)?")


def pattern(text: str, topics: Topics) -> str:
    """Return the sentence pattern: the normal form with every topic replaced by a gap."""
    words, masked, at = normal(text).split(), list[str](), 0
    while at < len(words):
        length = topics.length(words, at)
        word = "_" if length else words[at]
        if word != "_" or masked[-1:] != ["_"]:  # topics side by side are one gap
            masked.append(word)
        at += length or 1
    return " ".join(masked)
