"""Models: roles, layers, counts, quantization names, and multi-part sets."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from localmoe.errors import ModelFileError
from localmoe.facts.model import Role, read_model
from localmoe.facts.roles import layer_of, role_of
from localmoe.facts.source import _unreadable
from tests.facts.files import EXPERTS, Shape, write_model

F32 = 4  # bytes


def size(*names: str) -> int:
    """Weights of some of EXPERTS' tensors."""
    total = 0
    for name in names:
        count = 1
        for length in EXPERTS[name]:
            count *= length
        total += count
    return total


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("token_embd.weight", (64, 100), Role.DENSE),
        ("output_norm.weight", (64,), Role.DENSE),
        ("blk.3.attn_q.weight", (64, 64), Role.DENSE),
        ("blk.3.ffn_up.weight", (64, 64), Role.DENSE),
        ("blk.3.ffn_norm_exps.weight", (64,), Role.DENSE),
        ("blk.3.ffn_latent_down.weight", (64, 8), Role.DENSE),
        ("blk.3.ffn_gate_inp.weight", (64, 8), Role.ROUTER),
        ("blk.3.ffn_gate_inp.bias", (8,), Role.ROUTER),
        ("blk.3.ffn_gate_inp.scale", (64,), Role.ROUTER),
        ("blk.3.exp_probs_b.bias", (8,), Role.ROUTER),
        ("blk.3.exp_probs_b_vl.bias", (8,), Role.ROUTER),
        ("blk.3.ffn_gate_tid2eid.weight", (2, 100), Role.ROUTER),
        ("blk.3.ffn_gate_inp_shexp.weight", (64,), Role.SHARED_EXPERT),
        ("blk.3.ffn_down_shexp.weight", (64, 32), Role.SHARED_EXPERT),
        ("blk.3.ffn_gate_exps.weight", (64, 32, 8), Role.ROUTED_EXPERT),
        ("blk.3.ffn_up_exps.weight", (64, 32, 8), Role.ROUTED_EXPERT),
        ("blk.3.ffn_down_exps.weight", (64, 32, 8), Role.ROUTED_EXPERT),
        ("blk.3.ffn_gate_up_exps.weight", (64, 64, 8), Role.ROUTED_EXPERT),
        ("blk.3.ffn_up_exps.bias", (32, 8), Role.ROUTED_EXPERT),
        ("blk.3.ffn_up_exps.scale", (8,), Role.ROUTED_EXPERT),
        ("blk.3.ffn_up_exps.input_scale", (8,), Role.ROUTED_EXPERT),
        ("blk.3.ffn_up_chexps.weight", (64, 32, 4), Role.ROUTED_EXPERT),
    ],
)
def test_role_of_a_tensor(name: str, shape: Shape, role: Role) -> None:
    """Names as in llama.cpp's llama-arch.cpp."""
    assert role_of(name, shape) is role


def test_layer_of_a_tensor() -> None:
    assert layer_of("blk.17.attn_q.weight") == 17
    assert layer_of("output.weight") is None
    assert layer_of("enc.blk.0.attn_q.weight") is None
    assert layer_of("blk.99999999999.attn_q.weight") is None


def test_bytes_and_parameters_by_role(tmp_path: Path) -> None:
    """Two of eight experts are used; the token embedding is looked up, not multiplied."""
    model = read_model(write_model(tmp_path / "tiny.gguf")[0])
    routed = ("blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight")
    assert model.name == "tiny"
    assert model.size == (tmp_path / "tiny.gguf").stat().st_size
    assert model.is_moe
    assert model.expert_bytes == F32 * size(*routed)
    assert model.dense_bytes == F32 * (size(*EXPERTS) - size(*routed))
    assert model.parameters == size(*EXPERTS)
    assert model.active_parameters == (
        size(*EXPERTS) - size("token_embd.weight") - size(*routed) * 6 // 8
    )
    (layer,) = model.layers
    assert (layer.expert_count, layer.expert_used) == (8, 2)
    assert layer.expert_bytes == model.expert_bytes
    outside = F32 * size("token_embd.weight", "output.weight")
    assert layer.dense_bytes == model.dense_bytes - outside


def test_tied_embedding_is_active(tmp_path: Path) -> None:
    """Without an output matrix the embedding is multiplied for every token."""
    tensors = {name: shape for name, shape in EXPERTS.items() if name != "output.weight"}
    model = read_model(write_model(tmp_path / "tied.gguf", tensors)[0])
    unused = size("blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight") * 6 // 8
    assert model.active_parameters == model.parameters - unused


def test_dense_model(tmp_path: Path) -> None:
    """No experts is no fault."""
    tensors = {"token_embd.weight": (64, 10), "blk.0.ffn_up.weight": (64, 32)}
    keys = {"testmoe.block_count": 1, "testmoe.context_length": 4096}
    model = read_model(write_model(tmp_path / "dense.gguf", tensors, keys=keys)[0])
    assert not model.is_moe
    assert (model.expert_bytes, model.context_train) == (0, 4096)
    assert (model.layers[0].expert_count, model.layers[0].expert_used) == (0, 0)


def test_experts_used_per_layer(tmp_path: Path) -> None:
    """``expert_used_count`` may be one number for each layer, 0 for a dense one."""
    tensors = {
        "token_embd.weight": (64, 10),
        "blk.0.ffn_up.weight": (64, 32),
        "blk.1.ffn_up_exps.weight": (64, 32, 8),
        "blk.2.ffn_up_exps.weight": (64, 32, 8),
    }
    keys = {"testmoe.block_count": 3, "testmoe.expert_used_count": [0, 2, 4]}
    model = read_model(write_model(tmp_path / "m.gguf", tensors, keys=keys)[0])
    assert [layer.expert_used for layer in model.layers] == [0, 2, 4]
    assert [layer.expert_count for layer in model.layers] == [0, 8, 8]
    assert model.active_parameters == model.parameters - 64 * 32 * (6 + 4)


def test_chunk_experts_are_fewer(tmp_path: Path) -> None:
    """grovemoe: a token that uses two of eight experts touches at most two of four chunks."""
    tensors = {
        "token_embd.weight": (64, 10),
        "blk.0.ffn_up_exps.weight": (64, 32, 8),
        "blk.0.ffn_up_chexps.weight": (64, 16, 4),
    }
    model = read_model(write_model(tmp_path / "m.gguf", tensors)[0])
    assert model.layers[0].expert_count == 8
    assert model.layers[0].expert_bytes == F32 * (64 * 32 * 8 + 64 * 16 * 4)
    assert model.active_parameters == 640 + 64 * 32 * 2 + 64 * 16 * 2


def test_mtp_layers_are_not_loaded(tmp_path: Path) -> None:
    """They count on disk and keep their place among the layers, with nothing in it."""
    mtp = {"blk.1.nextn.eh_proj.weight": (64, 64), "blk.1.ffn_up_exps.weight": (64, 32, 8)}
    keys = {
        "testmoe.block_count": 2,
        "testmoe.expert_used_count": 2,
        "testmoe.nextn_predict_layers": 1,
    }
    plain = read_model(write_model(tmp_path / "plain.gguf")[0])
    model = read_model(write_model(tmp_path / "mtp.gguf", {**EXPERTS, **mtp}, keys=keys)[0])
    assert (model.parameters, model.active_parameters) == (
        plain.parameters,
        plain.active_parameters,
    )
    assert (model.dense_bytes, model.expert_bytes) == (plain.dense_bytes, plain.expert_bytes)
    assert model.size > plain.size + F32 * 64 * 32 * 8
    assert [layer.loaded for layer in model.layers] == [True, False]
    assert (model.layers[1].dense_bytes, model.layers[1].expert_bytes) == (0, 0)
    assert {t.name for t in model.tensors if not t.loaded} == set(mtp)


def test_last_layer_without_nextn_tensors_is_loaded(tmp_path: Path) -> None:
    """granite-switch announces a router layer as ``nextn_predict_layers``: it is used."""
    tensors = {**EXPERTS, "blk.1.attn_q.weight": (64, 64)}
    keys = {
        "testmoe.block_count": 2,
        "testmoe.expert_used_count": 2,
        "testmoe.nextn_predict_layers": 1,
    }
    model = read_model(write_model(tmp_path / "m.gguf", tensors, keys=keys)[0])
    assert all(tensor.loaded for tensor in model.tensors)
    assert model.layers[1].dense_bytes == F32 * 64 * 64


@pytest.mark.parametrize(
    ("file_type", "label"),
    [(15, "Q4_K_M"), (38, "MXFP4"), (1024 + 7, "Q8_0"), (999, "F32"), (None, "F32")],
)
def test_quantization_label(tmp_path: Path, file_type: int | None, label: str) -> None:
    """The file's own statement, guessed or not; else the commonest type among the experts."""
    keys: dict[str, Any] = {"testmoe.block_count": 1, "testmoe.expert_used_count": 2}
    if file_type is not None:
        keys["general.file_type"] = file_type
    assert read_model(write_model(tmp_path / "m.gguf", keys=keys)[0]).quantization == label


@pytest.mark.parametrize("part", [1, 2, 3])
def test_any_part_leads_to_the_whole(tmp_path: Path, part: int) -> None:
    """Three parts are one model: the same tensors as in one file, each in its part."""
    whole = read_model(write_model(tmp_path / "whole.gguf")[0])
    parts = write_model(tmp_path / "big.gguf", split=4)
    assert len(parts) == 3
    model = read_model(parts[part - 1])
    assert model.name == "big"
    assert model.paths == tuple(parts)
    assert model.size == sum(path.stat().st_size for path in parts)
    assert {(t.name, t.shape, t.role) for t in model.tensors} == {
        (t.name, t.shape, t.role) for t in whole.tensors
    }
    assert [t.part for t in model.tensors] == [0] * 4 + [1] * 4 + [2] * 2
    assert (model.parameters, model.active_parameters) == (
        whole.parameters,
        whole.active_parameters,
    )
    assert model.metadata["testmoe.expert_used_count"] == 2


def test_missing_parts_are_named(tmp_path: Path) -> None:
    parts = write_model(tmp_path / "big.gguf", split=4)
    parts[0].unlink()
    with pytest.raises(ModelFileError, match=r"1 of 3 parts missing: big-00001-of-00003\.gguf"):
        read_model(parts[1])
    lonely = tmp_path / "far-00007-of-99999.gguf"
    parts[1].rename(lonely)
    with pytest.raises(ModelFileError, match="99998 of 99999 parts missing") as caught:
        read_model(lonely)
    assert len(caught.value.message) < 300


def test_mixed_parts_are_refused(tmp_path: Path) -> None:
    """A part in another's place, of another set, of another model, or repeated tensors."""

    def mixed(name: str, **second: Any) -> str:
        folder = tmp_path / name
        folder.mkdir()
        parts = write_model(folder / "big.gguf", split=5)
        other = write_model(folder / "other.gguf", **second)
        other[-1].replace(parts[1])
        with pytest.raises(ModelFileError) as caught:
            read_model(parts[0])
        assert caught.value.hint
        return caught.value.message

    assert "belongs to a set of 3, not of 2" in mixed("count", split=4)
    fewer = dict(list(EXPERTS.items())[:6])
    assert "promises 10 tensors; there are 6" in mixed("tensors", tensors=fewer, split=5)
    renamed = {f"{i}{name}": shape for i, (name, shape) in enumerate(EXPERTS.items())}
    renamed |= {"a": (1,), "b": (1,)}
    assert "belongs to a set of 3" in mixed("more", tensors=renamed, split=5)
    assert "belongs to a set of 1" in mixed("single")
    swapped = write_model(tmp_path / "big.gguf", split=5)
    swapped[1].write_bytes(swapped[0].read_bytes())
    with pytest.raises(ModelFileError, match=r"big-00002-of-00002\.gguf holds part 1"):
        read_model(swapped[0])


def test_repeated_tensor_in_another_part_is_refused(tmp_path: Path) -> None:
    first = write_model(tmp_path / "big.gguf", split=5)
    order = list(EXPERTS.items())
    (tmp_path / "x").mkdir()
    second = write_model(tmp_path / "x" / "big.gguf", dict(order[5:] + order[:5]), split=5)
    second[1].replace(first[1])
    with pytest.raises(ModelFileError, match='repeats the tensor "token_embd'):
        read_model(first[0])


def test_other_architecture_in_a_part_is_refused(tmp_path: Path) -> None:
    """Parts that name an architecture must name the same."""
    parts = write_model(tmp_path / "big.gguf", split=5)
    other = {"split.no": 1, "split.count": 2, "split.tensors.count": 10}
    tensors = dict(list(EXPERTS.items())[5:])
    write_model(tmp_path / "o.gguf", tensors, architecture="other", keys=other)[0].replace(parts[1])
    with pytest.raises(ModelFileError, match="another model"):
        read_model(parts[0])


def test_part_without_its_name_is_refused(tmp_path: Path) -> None:
    """A renamed part cannot lead to the others; the hint says how to name them."""
    parts = write_model(tmp_path / "big.gguf", split=4)
    renamed = parts[1].rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match=r"is part 2 of 3, but not named") as caught:
        read_model(renamed)
    assert "NAME-00001-of-00003.gguf" in (caught.value.hint or "")


def test_a_piece_of_a_file_is_named(tmp_path: Path) -> None:
    """A file cut by other tools begins like a whole one: the error says to join the pieces."""
    whole = write_model(tmp_path / "big.gguf")[0]
    piece = whole.rename(tmp_path / "big.gguf.part1of2")
    with pytest.raises(ModelFileError, match=r"is a piece of big\.gguf") as caught:
        read_model(piece)
    assert "cat big.gguf?* > big.gguf" in (caught.value.hint or "")


def test_single_file_named_as_one_of_one(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")[0].rename(tmp_path / "m-00001-of-00001.gguf")
    assert read_model(path).name == "m"


@pytest.mark.parametrize(
    ("keys", "tensors", "fragment"),
    [
        ({"testmoe.block_count": 1}, {}, "lack testmoe.expert_used_count"),
        ({"testmoe.expert_used_count": 9}, {}, "uses 9 of 8"),
        ({"testmoe.expert_used_count": "two"}, {}, "not a whole number"),
        ({"testmoe.block_count": True}, {}, "not a whole number"),
        ({"testmoe.block_count": 3, "testmoe.expert_used_count": [2]}, {}, "each of 3 layers"),
        ({"testmoe.block_count": 2**31, "testmoe.expert_used_count": 2}, {}, "layers"),
        ({"testmoe.expert_used_count": 2}, {"blk.9999.x": (1,)}, "10000 layers"),
        ({"testmoe.expert_used_count": 2}, {"blk.0.ffn_gate_exps.weight": (64, 32, 4)}, "another"),
        ({"testmoe.expert_used_count": 2}, {"blk.0.ffn_gate_exps.weight": (64, 32)}, "dimensions"),
        ({"testmoe.expert_used_count": 2}, {"blk.0.ffn_gate.0.weight": (64, 32)}, "no longer"),
        ({"testmoe.expert_used_count": 2}, {"v.blk.0.attn_q.weight": (8, 8)}, "image or audio"),
        ({"testmoe.expert_used_count": 2}, {"mm.0.weight": (8, 8)}, '1 tensors like "mm.0'),
        ({"general.type": "adapter"}, {}, "LoRA"),
        ({"general.type": "mmproj"}, {}, "projector"),
        ({"general.type": "imatrix"}, {}, "importance"),
        ({"split.count": "x"}, {}, "split.count is not a number"),
    ],
)
def test_what_is_not_a_runnable_model_is_refused(
    tmp_path: Path, keys: dict[str, Any], tensors: dict[str, Shape], fragment: str
) -> None:
    path = write_model(tmp_path / "m.gguf", {**EXPERTS, **tensors}, keys=keys)[0]
    with pytest.raises(ModelFileError) as caught:
        read_model(path)
    assert fragment in caught.value.message
    assert caught.value.hint or "m.gguf" in caught.value.message


def test_a_vocabulary_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no tensors"):
        read_model(write_model(tmp_path / "vocab.gguf", {})[0])


def test_unreadable_paths(tmp_path: Path) -> None:
    """Each says what is wrong with it, and nothing waits for a pipe."""
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    cases = {
        "none.gguf": "no such file",
        "folder.gguf": "is a directory",
        "pipe.gguf": "not a regular file",
        "nul\0.gguf": "not a file name",
        "x" * 300: "file name too long",
        "\x1b[31mred.gguf": "red.gguf: no such file",
    }
    for name, fragment in cases.items():
        with pytest.raises(ModelFileError) as caught:
            read_model(tmp_path / name)
        assert fragment in caught.value.message
        assert "\x1b" not in caught.value.message
        assert caught.value.hint or "\0" in name


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")[0]
    path.chmod(0)
    with pytest.raises(ModelFileError, match="permission denied"):
        read_model(path)


def test_the_hint_for_no_permission_can_be_pasted() -> None:
    """Into a shell, whatever the file is called."""
    error = _unreadable(Path("/m/a b'c.gguf"), PermissionError(13, "Permission denied"))
    assert shlex.split((error.hint or "").partition(": ")[2]) == ["chmod", "u+r", "/m/a b'c.gguf"]
