"""A GGUF that says a fixed text: a Markov chain in the form of a one-layer qwen3moe.

Attention and experts add nothing, their last matrices are zero. So the next token depends on the
one before alone, and the chain begins after a line break, where a ChatML prompt ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from tests.archs.vocabulary import CHATML, CONTROL, NORMAL, USER_DEFINED, byte_characters

Word = str | tuple[str, int]
"""A text that is one normal token, or (spelling, type) of a special one."""

ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEAD, FEED, EXPERTS, CONTEXT = 32, 32, 2, 1024


def control(text: str) -> Word:
    return text, CONTROL


def user_defined(text: str) -> Word:
    return text, USER_DEFINED


def write(
    path: Path,
    script: Sequence[Word],
    *,
    template: str = CHATML,
    specials: Sequence[Word] = (),
    bos: str | None = None,
    named: Sequence[tuple[str, str]] = (),
    context: int = CONTEXT,
) -> Path:
    """Write the model; no token may come twice in ``script``.

    ``specials`` are in the vocabulary, said or not. ``bos``: the prompt is to begin with it.
    ``named``: (key, token) of ``tokenizer.ggml.KEY_token_id``. Where a grammar forbids what it
    would say, it draws any token.
    """
    letters = byte_characters()
    vocabulary = dict.fromkeys((*letters, "ĠĠ"), NORMAL) | dict.fromkeys(ENDS, CONTROL)
    vocabulary |= dict(map(_typed, specials))
    chain = []
    for text, kind in map(_typed, script):
        spelled = "".join(letters[b] for b in text.encode()) if kind == NORMAL else text
        vocabulary.setdefault(spelled, kind)
        chain.append(spelled)
    tokens = list(vocabulary)
    ids = [tokens.index(text) for text in [letters[ord("\n")], *chain, "<|im_end|>"]]
    assert len(set(ids)) == len(ids), "a token comes twice"

    width = -(-(len(ids) + 1) // 32) * 32
    reads = np.zeros((len(tokens), width), np.float32)
    reads[:, -1] = 1
    says = np.zeros((len(tokens), width), np.float32)
    for place, (token, following) in enumerate(itertools.pairwise(ids)):
        reads[token] = 0
        reads[token, place] = 1
        says[following, place] = 9
    says[ids[-1], -1] = 9  # whatever else was read, the answer ends

    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_block_count(1)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(FEED)
    writer.add_expert_feed_forward_length(FEED)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(list(vocabulary.values()))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_bos_token_id(tokens.index(bos or "<|endoftext|>"))
    writer.add_add_bos_token(bos is not None)
    for key, name in named:
        spelled = "".join(letters[b] for b in name.encode())
        number = tokens.index(name if name in vocabulary else spelled)
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", number)
    writer.add_chat_template(template)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, np.zeros(shape, np.float32))

    writer.add_tensor("token_embd.weight", reads)
    writer.add_tensor("output.weight", says)
    for name, size in (
        ("output_norm", width),
        ("blk.0.attn_norm", width),
        ("blk.0.ffn_norm", width),
        ("blk.0.attn_q_norm", HEAD),
        ("blk.0.attn_k_norm", HEAD),
    ):
        writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))
    for part in "qkv":
        add(f"blk.0.attn_{part}.weight", HEAD, width)
    add("blk.0.attn_output.weight", width, HEAD)
    add("blk.0.ffn_gate_inp.weight", EXPERTS, width)
    add("blk.0.ffn_gate_exps.weight", EXPERTS, FEED, width)
    add("blk.0.ffn_up_exps.weight", EXPERTS, FEED, width)
    add("blk.0.ffn_down_exps.weight", EXPERTS, width, FEED)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _typed(word: Word) -> tuple[str, int]:
    return (word, NORMAL) if isinstance(word, str) else word
