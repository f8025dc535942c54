"""Write the network as a GGUF file of architecture `qwen3moe`, quantized to Q8_0, and read it.

Matrices are Q8_0 (blocks of 32 weights with an f16 scale); norms and routers stay f32, as
llama.cpp's own converter keeps them. The output matrix is left out: it is the embedding.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer
from torch import Tensor

from .model import Nano, NanoConfig
from .vocabulary import CHAT_TEMPLATE, CONTROL, END, STOP, rebuild

Q8_0 = gguf.GGMLQuantizationType.Q8_0
DESCRIPTION = (
    "A small demonstration mixture of experts and guide to localmoe: mixture-of-experts "
    "vocabulary, the commands of localmoe and small talk; nothing else."
)


def weights(model: Nano) -> dict[str, Tensor]:
    """Return every weight under its llama.cpp name, rows last as GGUF stores them."""
    c = model.config
    inner, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    found = {"token_embd": model.embedding.weight, "output_norm": model.norm.weight}
    for index, block in enumerate(model.blocks):
        q, k, v = block.attention.qkv.weight.split((inner, kv, kv))
        parts = {
            "attn_norm": block.attention_norm.weight,
            "attn_q": q,
            "attn_k": k,
            "attn_v": v,
            "attn_output": block.attention.out.weight,
            "attn_q_norm": block.attention.q_norm.weight,
            "attn_k_norm": block.attention.k_norm.weight,
            "ffn_norm": block.experts_norm.weight,
            "ffn_gate_inp": block.experts.router.weight,
            "ffn_gate_exps": block.experts.gate,
            "ffn_up_exps": block.experts.up,
            "ffn_down_exps": block.experts.down,
        }
        found |= {f"blk.{index}.{name}": weight for name, weight in parts.items()}
    return {f"{name}.weight": weight.detach() for name, weight in found.items()}


def add_shape(writer: gguf.GGUFWriter, c: NanoConfig) -> None:
    """Write the hyperparameters that llama.cpp's qwen3moe reads."""
    writer.add_context_length(c.context_length)
    writer.add_embedding_length(c.width)
    writer.add_block_count(c.layers)
    # Required by every architecture; the experts have a width of their own, below.
    writer.add_feed_forward_length(c.expert_width * c.experts_used)
    writer.add_expert_feed_forward_length(c.expert_width)
    writer.add_expert_count(c.experts)
    writer.add_expert_used_count(c.experts_used)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_layer_norm_rms_eps(c.rms_eps)


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """Write the tokens, the merges and the chat template."""
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    names = [name for name, _ in tokens]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(names)
    writer.add_token_types([control if name in CONTROL else normal for name in names])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(names.index(STOP))
    writer.add_eos_token_id(names.index(END))
    writer.add_pad_token_id(names.index(STOP))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write(path: Path, model: Nano, tokenizer: Tokenizer) -> None:
    """Write the GGUF file at `path`, replacing what is there."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("nano")
    writer.add_description(DESCRIPTION)
    writer.add_license("MIT")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    # A guide answers the same way each time.
    writer.add_sampling_temp(0.0)
    add_shape(writer, model.config)
    add_vocabulary(writer, tokenizer)
    for name, weight in weights(model).items():
        values = weight.float().contiguous().numpy()
        if values.ndim > 1 and not name.endswith("ffn_gate_inp.weight"):
            writer.add_tensor(name, quantize(values, Q8_0), raw_dtype=Q8_0)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path, config: NanoConfig) -> tuple[Nano, Tokenizer]:
    """Return the network and the tokenizer of a file that `write` wrote."""
    reader = gguf.GGUFReader(path)
    model = Nano(config)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for name, weight in weights(model).items():
        values: np.ndarray = dequantize(stored[name].data, stored[name].tensor_type)
        weight.copy_(torch.from_numpy(values.astype(np.float32)))
    tokens, merges = (
        reader.fields[f"tokenizer.ggml.{kind}"].contents() for kind in ("tokens", "merges")
    )
    return model, rebuild(tokens, merges)
