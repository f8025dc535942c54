"""What nano knows: intents read from the hand-written text files beside this module.

An intent is one answer with the ways to ask for it. The file format is line based: `= name`
opens an intent, `A:` gives its answer, `T:` things and `D:` deeds (each separated by `;`), `Q:` a
question as it stands; `#` starts a comment line.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

TEXT = Path(__file__).parent / "text"
DOMAINS = ("moe", "localmoe", "arithmetic", "smalltalk", "offtopic")


@dataclass(frozen=True, slots=True)
class Intent:
    """One answer, and what it answers."""

    name: str
    domain: str
    answer: str
    things: tuple[str, ...]
    deeds: tuple[str, ...]
    questions: tuple[str, ...]
    concepts: tuple[tuple[tuple[str, ...], ...], ...] = ()  # per line, per concept: its words


def parse(text: str, domain: str) -> list[Intent]:
    """Read one file of intents. Raises ValueError on a line of no known kind."""
    intents: list[Intent] = []
    for number, line in enumerate(text.splitlines(), 1):
        mark, _, rest = line.partition(" ")
        if not line or mark == "#":
            continue
        if mark == "=":
            intents.append(Intent(rest, domain, "", (), (), ()))
            continue
        last = intents.pop()
        answer, things, deeds, questions = last.answer, last.things, last.deeds, last.questions
        if mark == "A:":
            answer = rest
        elif mark == "T:":
            things += tuple(part.strip() for part in rest.split(";"))
        elif mark == "D:":
            deeds += tuple(part.strip() for part in rest.split(";"))
        elif mark == "Q:":
            questions += (rest,)
        else:
            raise ValueError(f"{domain}, line {number}: unknown mark {mark!r}")
        intents.append(Intent(last.name, domain, answer, things, deeds, questions))
    return intents


def parse_concepts(text: str) -> dict[str, list[tuple[tuple[str, ...], ...]]]:
    """Read concept lines by intent: `name word / word | word / word`."""
    found: dict[str, list[tuple[tuple[str, ...], ...]]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            concepts = tuple(
                tuple(word.strip() for word in concept.split(" / "))
                for concept in rest.split(" | ")
            )
            found.setdefault(name, []).append(concepts)
    return found


def load() -> dict[str, Intent]:
    """Return every intent by name. Raises ValueError when a name is used twice and
    KeyError when concepts are given for no intent."""
    found: dict[str, Intent] = {}
    for domain in DOMAINS:
        for intent in parse((TEXT / f"{domain}.txt").read_text("utf-8"), domain):
            if intent.name in found:
                raise ValueError(f"two intents named {intent.name!r}")
            found[intent.name] = intent
    for name, lines in parse_concepts((TEXT / "concepts.txt").read_text("utf-8")).items():
        found[name] = replace(found[name], concepts=tuple(lines))
    return found
