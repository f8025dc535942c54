"""A small real byte-level BPE vocabulary: every text tokenises, ChatML specials included.

Format: tokenizer.ggml.* as llama.cpp's "gpt2" tokenizer reads it; bytes are written as the
printable characters of GPT-2's byte table.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from functools import cache

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NORMAL, CONTROL, USER_DEFINED, BYTE_TOKENS = 1, 3, 4, 256

_TEXT = """
The router sends every token to a few of the experts and leaves the others where they are. A model
that has many experts is large on disk, but each word that it writes needs only a small part of it.
So the memory of an ordinary machine can hold what is used often, and the disk can bring the rest
when it is wanted. The first question is always the same: will this model run here, and how fast?
We read the header, add the bytes of every layer, look at the machine, and make a plan before
anything is loaded. If the plan says no, it also says what would help: a smaller file, a shorter
context, another machine. The system, the user and the assistant speak in turn. When the user asks
a question, the assistant answers with the words that are most likely to come next.
"""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token texts in GPT-2's byte characters, their types, and the merges in order."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]

    def id(self, token: str) -> int:
        return self.tokens.index(token)

    @property
    def silent(self) -> tuple[int, ...]:
        """Ids that random weights must not produce: specials and bytes that do not print."""
        return tuple(
            i
            for i, token in enumerate(self.tokens)
            if self.types[i] != NORMAL or not all(c in "ĠĊ" or "!" <= c <= "~" for c in token)
        )


@cache
def byte_characters() -> tuple[str, ...]:
    """GPT-2's table: byte → the printable character that stands for it."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return tuple(chr(b) if b in printable else chr(next(spare)) for b in range(256))


@cache
def vocabulary(size: int = 512) -> Vocabulary:
    """All 256 bytes, merges learned from a paragraph, then the specials; ``size`` tokens.

    Beyond what the paragraph yields the rest are synthetic: tokens no text is made of, as the
    padding of real files is.
    """
    table = byte_characters()
    merges = _learn_merges(size - BYTE_TOKENS - len(SPECIAL))
    tokens = [*table, *(a + b for a, b in merges)]
    filler = [f"ĠĠ{i:x}Ġ" for i in range(size - len(SPECIAL) - len(tokens))]
    kinds = [NORMAL] * (len(tokens) + len(filler)) + [CONTROL] * 3 + [USER_DEFINED] * 2
    return Vocabulary(
        (*tokens, *filler, *SPECIAL), tuple(kinds), tuple(f"{a} {b}" for a, b in merges)
    )


def _learn_merges(count: int) -> list[tuple[str, str]]:
    """Byte pair encoding over the words of ``_TEXT``: the commonest pair first."""
    table = byte_characters()
    words = Counter(_TEXT.replace("\n", " ").split(" "))
    spelled = {
        tuple(table[b] for b in (" " + word).encode()): n for word, n in words.items() if word
    }
    merges: list[tuple[str, str]] = []
    seen = set(table)
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in spelled.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += n
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        if "".join(best) not in seen:
            merges.append(best)
            seen.add("".join(best))
        spelled = {_merge(word, best): n for word, n in spelled.items()}
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return tuple(merged)
