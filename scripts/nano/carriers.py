"""How questions are asked: sentence patterns, openings, endings and the words around a topic.

Each pattern has one gap, `{}`. THING patterns take a noun phrase, DEED patterns a verb phrase,
DOING patterns the same verb with -ing, ASK and ASK_COMMAND patterns a sum. The held-out questions
in `tests/nano` fit none of these patterns; a test compares the two.
"""

from __future__ import annotations

from .intents import TEXT


def lists(text: str) -> dict[str, tuple[str, ...]]:
    """Read lists of lines: `= name` opens one, `#` starts a comment, quotes keep outer spaces."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("= "):
            name = line.removeprefix("= ")
            found[name] = []
        elif line and not line.startswith("#"):
            found[name].append(line[1:-1] if line.startswith('"') else line)
    return {name: tuple(entries) for name, entries in found.items()}


PATTERNS = lists((TEXT / "patterns.txt").read_text("utf-8"))

THING = PATTERNS["thing"]
DEED = PATTERNS["deed"]
DOING = PATTERNS["doing"]
ASK = PATTERNS["sum"]
ASK_COMMAND = PATTERNS["sum command"]
OPENINGS = PATTERNS["opening"]
ENDINGS = PATTERNS["ending"]
SYSTEM_MESSAGES = PATTERNS["system"]

# Words that carry no topic. They are sprinkled around topics so that a word never seen near a
# topic does not hide it, and strung together they are a question that nano must decline.
PLAIN_WORDS = tuple((TEXT / "plain_words.txt").read_text("utf-8").split())
