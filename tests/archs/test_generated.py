"""The generated files are what they claim to be, and the engine runs every one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader

from tests.archs import ARCHITECTURES, UNSUPPORTED, bad_files, generate
from tests.archs.families import FAMILIES
from tests.archs.plain import PlainRunError, plain_greedy

ArchFile = Callable[..., Path]
PROMPT = "The first question is"
OTHER_PROMPT = "<|im_start|>user\nWhat is 42? Größe, 你好!<|im_end|>\n"


@pytest.mark.process
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a not in UNSUPPORTED])
def test_engine_generates(architecture: str, arch_file: ArchFile) -> None:
    """Each file loads; 16 greedy tokens have finite logits and depend on the prompt."""
    path = arch_file(architecture)
    first = plain_greedy(path, PROMPT, 16)
    second = plain_greedy(path, OTHER_PROMPT, 16)
    assert first.finite and second.finite
    assert first.tokens != second.tokens
    assert len(set(first.tokens)) > 3, f"collapsed to {first.text!r}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_file_is_small(architecture: str, arch_file: ArchFile) -> None:
    """Each file stays near 10 MB and allows a context of at least 4096 tokens."""
    path = arch_file(architecture)
    reader = GGUFReader(path)
    context = reader.get_field(f"{reader.fields['general.architecture'].contents()}.context_length")
    assert path.stat().st_size < 11e6
    assert context is not None and context.contents() >= 4096


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    """A file is a function of architecture and seed: equal seeds agree, others differ."""
    digests = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / folder).mkdir()
        path = generate("qwen3moe", tmp_path / folder, seed=seed)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.process
def test_split_parts_generate_as_one_file(arch_file: ArchFile) -> None:
    """Three parts carry split metadata and give the same tokens as the single file."""
    first = arch_file("qwen3moe", split=3)
    parts = sorted(first.parent.glob("qwen3moe-0-*-of-00003.gguf"))
    assert [p.name[-19:-14] for p in parts] == ["00001", "00002", "00003"]
    whole = plain_greedy(arch_file("qwen3moe"), PROMPT, 8)
    split = plain_greedy(first, PROMPT, 8)
    assert (split.tokens, split.digest) == (whole.tokens, whole.digest)


@pytest.mark.process
def test_prefill_splits_are_honoured(arch_file: ArchFile) -> None:
    """Batches begin where asked: the default cuts at n_batch, and one too large is refused."""
    path = arch_file("qwen3moe")
    words = PROMPT * 8
    plain = plain_greedy(path, words, 4, n_batch=16)
    edges = list(range(16, len(plain.prompt_tokens), 16))
    assert plain_greedy(path, words, 4, n_batch=16, splits=edges) == plain
    with pytest.raises(PlainRunError):
        plain_greedy(path, words, 4, n_batch=16, splits=[])


BAD = (
    "one_tensor_per_expert",
    "unknown_architecture",
    "truncated",
    "truncated_header",
    "missing_part",
    "mixed_parts",
    "future_version",
    "not_gguf",
    "empty",
)


@pytest.fixture(scope="session")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return bad_files(tmp_path_factory.mktemp("bad"))


def test_bad_files_are_all_there(bad: dict[str, Path]) -> None:
    """The list of names above is the list that is written."""
    assert set(BAD) == set(bad)


@pytest.mark.process
@pytest.mark.parametrize("name", BAD)
def test_engine_refuses_bad_files(name: str, bad: dict[str, Path]) -> None:
    """The engine itself cannot run any of them, so a typed error is the only good answer."""
    with pytest.raises(PlainRunError):
        plain_greedy(bad[name], PROMPT, 1)


def test_recipes_show_what_their_family_has() -> None:
    """MoE files have 8 or more experts; families that mix kinds of layers have both kinds."""
    for name, family in FAMILIES.items():
        tensors = {spec.name.split(".", 2)[-1]: spec for spec in family.recipe().tensors}
        layers = {
            kind: {s.name.split(".")[1] for s in family.recipe().tensors if s.name.endswith(kind)}
            for kind in MIXED.get(name, ())
        }
        assert all(layers.values()), f"{name} lacks a kind of layer: {layers}"
        assert len(layers) < 2 or not set.intersection(*layers.values()), name
        if family.dims.experts and name not in DENSE:
            assert tensors["ffn_down_exps.weight"].shape[-1] >= 8, name
            assert family.dims.used >= (1 if name == "llama4" else 2), name


DENSE = ("qwen3", "llama-dense")
_DENSE_LEAD = ("ffn_gate.weight", "ffn_gate_inp.weight")
MIXED = {
    "qwen3next": ("ssm_out.weight", "attn_q.weight"),
    "qwen35moe": ("ssm_out.weight", "attn_q.weight"),
    "granitehybrid": ("ssm_out.weight", "attn_q.weight"),
    "lfm2moe": ("shortconv.conv.weight", "attn_q.weight"),
    "nemotron_h_moe": ("ssm_out.weight", "attn_q.weight", "ffn_up_exps.weight"),
    "llama4": _DENSE_LEAD,
    "deepseek": _DENSE_LEAD,
    "deepseek2": _DENSE_LEAD,
    "deepseek32": _DENSE_LEAD,
    "glm4moe": _DENSE_LEAD,
    "ernie4_5-moe": _DENSE_LEAD,
    "bailingmoe2": _DENSE_LEAD,
    "deepseek4": ("ffn_gate_tid2eid.weight", "exp_probs_b.bias"),
}
