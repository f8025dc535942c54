"""Every generated file, read by us and by the ``gguf`` package: the same, and the right roles."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFValueType

from localmoe.facts.gguf import LongArray, decode_array
from localmoe.facts.model import Role, Value, read_model
from localmoe.facts.source import FileSource
from tests.archs import ARCHITECTURES


def plain(value: object) -> object:
    """Lists as tuples."""
    return tuple(plain(v) for v in value) if isinstance(value, list) else value


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_agrees_with_the_gguf_package(arch_file: Callable[..., Path], architecture: str) -> None:
    """Tensors, places and every metadata value, vocabularies included."""
    path = arch_file(architecture)
    model = read_model(path)
    theirs = GGUFReader(path)
    assert [(t.name, t.shape, t.type_name, t.offset, t.nbytes) for t in model.tensors] == [
        (t.name, tuple(map(int, t.shape)), t.tensor_type.name, t.data_offset, t.n_bytes)
        for t in theirs.tensors
    ]
    assert model.parameters <= sum(int(t.n_elements) for t in theirs.tensors)
    assert model.header_bytes == theirs.data_offset
    fields = {key: f for key, f in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(model.metadata) == list(fields)
    with FileSource(path) as source:
        for key, value in model.metadata.items():
            ours: Value = value
            if isinstance(value, LongArray):
                ours = tuple(decode_array(source, value))
            assert ours == plain(fields[key].contents()), key
            is_array = fields[key].types[0] is GGUFValueType.ARRAY
            assert is_array == isinstance(value, tuple | LongArray)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_roles_and_layers(arch_file: Callable[..., Path], architecture: str) -> None:
    """Experts are what is stacked by ``expert_count``; layers add up to the whole."""
    model = read_model(arch_file(architecture))
    prefix = model.architecture
    expert_count = model.metadata.get(f"{prefix}.expert_count", 0)
    stacked = {t.name for t in model.tensors if re.search(r"_exps\.", t.name)
               and t.name.split(".")[2] != "ffn_norm_exps"}  # fmt: skip
    routed = {t.name: t for t in model.tensors if t.role is Role.ROUTED_EXPERT}
    assert set(routed) == stacked
    assert all(tensor.shape[-1] == expert_count for tensor in routed.values())
    assert model.is_moe == bool(routed)
    assert len(model.layers) == model.metadata[f"{prefix}.block_count"]
    moe_layers = {t.layer for t in routed.values() if t.loaded}
    assert moe_layers == {layer.index for layer in model.layers if layer.expert_count}
    # Every MoE layer has a router.
    routers = {t.layer for t in model.tensors if t.role is Role.ROUTER and t.loaded}
    assert moe_layers <= routers
    assert sum(layer.expert_bytes for layer in model.layers) == model.expert_bytes
    outside = sum(t.nbytes for t in model.tensors if t.layer is None)
    assert sum(layer.dense_bytes for layer in model.layers) + outside == model.dense_bytes
    if model.is_moe:
        assert model.active_parameters < model.parameters


@pytest.mark.parametrize("architecture", ["qwen3moe", "glm4moe"])
def test_parts_equal_the_whole(arch_file: Callable[..., Path], architecture: str) -> None:
    whole = read_model(arch_file(architecture))
    split = read_model(arch_file(architecture, split=3))
    assert len(split.paths) == 3
    assert [(t.name, t.shape, t.nbytes, t.role, t.loaded) for t in split.tensors] == [
        (t.name, t.shape, t.nbytes, t.role, t.loaded) for t in whole.tensors
    ]
    assert split.layers == whole.layers
    assert (split.parameters, split.active_parameters) == (
        whole.parameters,
        whole.active_parameters,
    )
