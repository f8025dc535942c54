"""Models with the tensors of published ones, from headers alone, and an engine that adds up."""

from __future__ import annotations

import dataclasses
import tempfile
from functools import cache
from pathlib import Path

from localmoe.facts.model import Model, Tensor, read_model
from localmoe.planning.layout import home_of, layer_homes
from localmoe.planning.memory import CPU, DeviceMemory, EngineSettings, Measure, MemoryReport
from localmoe.planning.work import work_of
from scripts.make_standin import MODELS, make_standin

WORDS = 512  # tokens in the file that is written; the matrices are made as large as the real ones
KV_BYTES = {"f16": 2.0, "q8_0": 1.0625}


@cache
def published(name: str) -> Model:
    """A model of ``scripts.make_standin.MODELS``, without a file."""
    family = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = make_standin(family, Path(folder) / f"{name}.gguf", header_only=True, vocab=WORDS)
        model = read_model(path)
    tensors = tuple(_with_words(tensor, family.dims.vocab) for tensor in model.tensors)
    size = sum(tensor.nbytes for tensor in tensors)
    return dataclasses.replace(model, tensors=tensors, size=size)


def _with_words(tensor: Tensor, words: int) -> Tensor:
    if tensor.name not in ("token_embd.weight", "output.weight"):
        return tensor
    return dataclasses.replace(
        tensor, shape=(tensor.shape[0], words), nbytes=tensor.nbytes // WORDS * words
    )


def adding_engine(model: Model) -> Measure:
    """Weights by the header, KV cache of all layers that attend, buffers by batch and vocabulary.

    Devices get what llama.cpp's rules give them (``planning.layout``).
    """
    work = work_of(model, EngineSettings(context=512))
    elements = sum(layer.cached * layer.widths for layer in work.attending)
    per_token = (work.vocabulary + 8 * work.width) * 4
    layers = len(model.layers)

    @cache
    def measure(settings: EngineSettings) -> MemoryReport:
        homes = layer_homes(model, settings)
        weights = dict.fromkeys((CPU, *settings.devices), 0)
        for tensor in model.tensors:
            if tensor.loaded:
                weights[home_of(tensor, settings, homes)] += tensor.nbytes
        kv = int(settings.context * elements * KV_BYTES[settings.type_k])
        compute = settings.ubatch * per_token
        return MemoryReport(
            tuple(
                DeviceMemory(
                    name,
                    weights[name],
                    kv * homes[:-1].count(name) // layers,
                    compute // 8 if name == CPU and settings.devices else compute,
                )
                for name in (CPU, *settings.devices)
            ),
            exact=True,
        )

    return measure
