"""The tokenizer: byte-level BPE that splits like Qwen2's, so llama.cpp's `qwen2` rule applies.

Every digit is a token of its own. Three control tokens mark turns (ChatML).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .compose import Conversation

START, END, STOP = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CONTROL = (STOP, START, END)

# The pattern of Qwen2's tokenizer, as llama.cpp splits for `tokenizer.ggml.pre = qwen2`.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


def splitter() -> pre_tokenizers.PreTokenizer:
    """Return the rule that cuts text into words before byte pairs are merged."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def learn(texts: Iterable[str], size: int) -> Tokenizer:
    """Learn a vocabulary of `size` tokens, control tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def render(conversation: Conversation) -> list[tuple[str, bool]]:
    """Write a conversation in ChatML: pieces of text, each with whether the model must write it."""
    pieces = []
    if conversation.system is not None:
        pieces.append((f"{START}system\n{conversation.system}{END}\n", False))
    for turn in conversation.turns:
        question = f"{START}user\n{turn.question}{END}\n{START}assistant\n"
        pieces += [(question, False), (f"{turn.answer}{END}", True), ("\n", False)]
    return pieces


def encode(
    tokenizer: Tokenizer, pieces: Sequence[tuple[str, bool]]
) -> tuple[list[int], list[bool]]:
    """Return tokens and, for each, whether the model must write it."""
    tokens: list[int] = []
    written: list[bool] = []
    encodings = tokenizer.encode_batch([text for text, _ in pieces], add_special_tokens=False)
    for encoding, (_, model_writes) in zip(encodings, pieces, strict=True):
        tokens += encoding.ids
        written += [model_writes] * len(encoding.ids)
    return tokens, written


def rebuild(tokens: Sequence[str], merges: Sequence[str]) -> Tokenizer:
    """Rebuild the training tokenizer from what a GGUF file stores of it."""
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    tokenizer.pre_tokenizer = splitter()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL))
    return tokenizer
