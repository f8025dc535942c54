"""Texts of token ids, for people: from the vocabulary in a model's header, without the engine."""

from __future__ import annotations

from collections.abc import Iterable

from localmoe.facts.gguf import LongArray, decode_array
from localmoe.facts.model import Model
from localmoe.facts.source import FileSource


def token_texts(model: Model, ids: Iterable[int]) -> dict[int, str]:
    """The texts of ``ids`` as they would be written; untrusted. Unknown ids are left out.

    Raises ModelFileError when the file has changed, OSError when it cannot be read.
    """
    wanted = set(ids)
    vocabulary = model.metadata.get("tokenizer.ggml.tokens")
    if isinstance(vocabulary, tuple):
        raw = {i: word for i, word in enumerate(vocabulary) if i in wanted}
    elif isinstance(vocabulary, LongArray):
        with FileSource(model.paths[0]) as source:
            words = enumerate(decode_array(source, vocabulary))
            raw = {i: word for i, word in words if i in wanted}
    else:
        return {}
    kind = model.metadata.get("tokenizer.ggml.model")
    texts = {i: word for i, word in raw.items() if isinstance(word, str)}
    if kind == "gpt2":
        return {i: _from_byte_level(word) for i, word in texts.items()}
    return {i: word.replace("\u2581", " ") for i, word in texts.items()}


def _byte_level() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (openai/gpt-2, ``bytes_to_unicode``)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + number): byte for number, byte in enumerate(others)}


_BYTES = _byte_level()


def _from_byte_level(word: str) -> str:
    if not all(character in _BYTES for character in word):
        return word  # a special token, written out
    return bytes(_BYTES[character] for character in word).decode("utf-8", "replace")
