"""Whether a word has the form of a model's name, and which known names are like it. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import PurePosixPath

from localmoe.facts.families import family_names
from localmoe.facts.local_files import is_gguf, quant_of
from localmoe.facts.model_names import Name, is_of_ollama

NEAR_MISS = 0.86  # difflib ratio; "nan" for "nano" is 0.857 and may well be a question
SIMILAR = 0.7
_SIZE = r"\d+(?:\.\d+)?(?:x\d+)?[bm](?![a-z0-9])"  # 7b, 8x22b, 1.5b, 270m
_SIZED = re.compile(rf"[a-z].*[-_.]{_SIZE}", re.IGNORECASE)
_SIZE_TAG = re.compile(rf"{_SIZE}.*", re.IGNORECASE)
_QUANT_END = re.compile(
    r"[a-z].*[-_.](?:I?Q\d_\w+|TQ\d_\d|BF16|F16|F32|MXFP4\w*|NVFP4)", re.IGNORECASE
)
_SEPARATORS = re.compile(r"[-_.]")


def has_form_of_model(name: Name) -> bool:
    """Whether a name can hardly be anything else: ``a/b``, ``x.gguf``, ``llama3``,
    ``name:latest``, ``name:Q4_K_M``, ``anything-7b``, ``gemma-3-270m-q4_k_m``.
    """
    if name.refused:
        return is_gguf(name.text) or name.refused_by_hub
    tag = name.text.partition(":")[2].lower()
    return (
        name.is_repo
        or is_of_ollama(name.text)
        or is_gguf(name.text)
        or bool(
            difflib.get_close_matches(PurePosixPath(name.text).suffix.lower(), [".gguf"], 1, 0.8)
        )
        or tag == "latest"
        or bool(quant_of(PurePosixPath(name.wanted)))
        or _SIZE_TAG.fullmatch(name.wanted) is not None
        or _SIZED.match(name.base) is not None
        or _QUANT_END.fullmatch(name.base) is not None
        or _of_family().fullmatch(name.text) is not None
    )


def _is_nearly_gguf(suffix: str) -> bool:
    return bool(difflib.get_close_matches(suffix.lower(), [".gguf"], 1, 0.8))


@cache
def _of_family() -> re.Pattern[str]:
    """A family's name with a version or a tag behind it."""
    names = "|".join(map(re.escape, sorted(family_names(), key=len, reverse=True)))
    return re.compile(rf"(?:{names})(?:[-_.]?v?\d[\w.-]*(?::\S+)?|:\S+)", re.IGNORECASE | re.ASCII)


def is_near_miss(word: str, names: Collection[str]) -> bool:
    """Whether a word is nearly one of ``names`` (lower case), or the beginning of one.

    ``gpt-oss`` of gpt-oss-20b, ``llama4`` of llama-4-scout.
    """
    word = word.lower()
    if _begins_a_name(word, names):
        return True
    return bool(difflib.get_close_matches(word, names, n=1, cutoff=NEAR_MISS))


def _begins_a_name(word: str, names: Iterable[str]) -> bool:
    squeezed = _SEPARATORS.sub("", word)
    plain = not any(c.isdigit() for c in word)
    return len(word) >= 4 and any(
        name.startswith(f"{word}-")
        or (not plain and _SEPARATORS.sub("", name).startswith(squeezed))
        for name in names
    )


def nearest(word: str, names: Iterable[str]) -> list[str]:
    """Up to three of ``names`` like ``word``, best first.

    What is written alike comes before what is only of the same family: ``mixtral`` is like all
    its sizes, ``llama3`` like llama-4-scout.
    """
    wanted = word.lower()
    lowered = {name.lower(): name for name in sorted(names)}
    found = difflib.get_close_matches(wanted, lowered, n=3, cutoff=SIMILAR)
    families = {_letters(name) for name in lowered} - {""}
    starts = [wanted, *difflib.get_close_matches(_letters(wanted), families, n=1, cutoff=SIMILAR)]
    if len(wanted) >= 3:
        found += [c for s in starts for c in lowered if c.startswith(s) and c not in found]
    return [lowered[match] for match in dict.fromkeys(found)][:3]


def _letters(name: str) -> str:
    """What a name begins with: ``gpt`` of gpt-oss-20b, ``qwen`` of qwen3-30b."""
    letters = re.match(r"[a-z]+", name)
    return letters[0] if letters else ""
