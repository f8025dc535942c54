"""What a name means: repositories, the models in them, and everything that is refused."""

from __future__ import annotations

import pytest

from localmoe.errors import TransferError, UnknownModelError
from localmoe.facts import catalog
from localmoe.hub import names
from localmoe.hub.names import ModelFiles, Reference, RepoFile

LISTING = (
    "README.md",
    "M-Q4_K_M.gguf",
    "M-UD-Q4_K_XL.gguf",
    "M-Q2_K.gguf",
    "mmproj-M-F16.gguf",
    "M.imatrix.gguf",
    "imatrix_unsloth.dat",
    "M-draft-Q4_K_M.gguf",
    "MTP/M-MTP-Q8_0.gguf",
    "Q8_0/M-Q8_0-00001-of-00003.gguf",
    "Q8_0/M-Q8_0-00002-of-00003.gguf",
    "Q8_0/M-Q8_0-00003-of-00003.gguf",
    "BF16/M-BF16-00001-of-00002.gguf",
)


def files(*paths: str) -> list[RepoFile]:
    return [RepoFile(path, 1000 + i, f"{i:064x}") for i, path in enumerate(paths)]


def models(*paths: str) -> tuple[ModelFiles, ...]:
    return names.model_files(files(*(paths or LISTING)))


def chosen(name: str, *paths: str) -> ModelFiles | None:
    reference = names.parse(name)
    assert reference is not None
    return names.choose(models(*paths), reference)


@pytest.mark.parametrize(
    ("name", "repo", "wanted", "revision"),
    [
        ("someone/M-GGUF", "someone/M-GGUF", "", None),
        ("someone/M-GGUF:q4_k_m", "someone/M-GGUF", "q4_k_m", None),
        ("someone/M-GGUF:a/M-Q4_K_M.gguf", "someone/M-GGUF", "a/M-Q4_K_M.gguf", None),
        ("glm-4.6", "unsloth/GLM-4.6-GGUF", "", None),
        ("GLM-4.6:UD-Q4_K_XL", "unsloth/GLM-4.6-GGUF", "UD-Q4_K_XL", None),
        ("https://huggingface.co/a/b", "a/b", "", None),
        ("huggingface.co/a/b/", "a/b", "", None),
        ("hf.co/a/b:Q8_0", "a/b", "Q8_0", None),
        ("https://huggingface.co/a/b/blob/main/c/d.gguf", "a/b", "c/d.gguf", None),
        ("https://hf.co/a/b/resolve/v2/d.gguf?download=true", "a/b", "d.gguf", "v2"),
        ("https://huggingface.co/a/b/tree/main/UD-Q4_K_XL", "a/b", "UD-Q4_K_XL", None),
        ("https://huggingface.co/a/b/blob/main/d%20e.gguf", "a/b", "d e.gguf", None),
    ],
)
def test_what_a_name_means(name: str, repo: str, wanted: str, revision: str | None) -> None:
    """Aliases, repositories and URLs, each with what is asked of them."""
    found = names.parse(name)
    assert found is not None
    assert (found.repo, found.wanted, found.revision) == (repo, wanted, revision)
    assert (found.entry is None) == (not name.lower().startswith("glm"))


def test_the_endpoints_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs of a mirror are understood when ``HF_ENDPOINT`` names it, else they are no names."""
    url = "http://mirror.example:8080/a/b/blob/main/c.gguf"
    assert names.parse(url) is None  # a path, then
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example:8080/")
    found = names.parse(url)
    assert found is not None
    assert (found.repo, found.wanted) == ("a/b", "c.gguf")


@pytest.mark.parametrize("name", ["./x.gguf", "/models/x.gguf", "x.gguf", "~/x", "a/x.gguf"])
def test_paths_are_local(name: str) -> None:
    """What is written as a path is never looked for on the Hub."""
    assert names.parse(name) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("switch-transformer", ("Switch Transformer", "encoder-decoder", "olmoe-1b-7b")),
        ("glam", ("never released", "mixtral-8x7b")),
        ("GShard", ("never released", "mixtral-8x7b")),
        ("gpt-5", ("closed", "gpt-oss-20b")),
        ("qwen3-30b-a3", ("Did you mean qwen3-30b-a3b",)),
        ("granite-3-moe", ("no conversion",)),
        ("mixtrl", ("mixtral-8x7b",)),
    ],
)
def test_names_that_lead_nowhere(name: str, words: tuple[str, ...]) -> None:
    """Each is answered with the fact and the nearest name, as a usage error."""
    with pytest.raises(UnknownModelError) as caught:
        names.parse(name)
    assert caught.value.exit_code == 2
    said = f"{caught.value.message} {caught.value.hint}"
    assert all(word in said for word in words), said


def test_every_alias_leads_to_a_repository() -> None:
    """Each entry of the catalog that has a repository is reached by its alias in any case."""
    for entry in catalog.catalog()[0]:
        if entry.repo:
            found = names.parse(entry.alias.upper())
            assert found is not None
            assert (found.repo, found.entry) == (entry.repo, entry)


def test_side_files_are_no_models() -> None:
    """Projectors, importance matrices, drafts and MTP heads are left out; sets are one model."""
    assert [m.quant for m in models()] == ["Q4_K_M", "UD-Q4_K_XL", "Q2_K", "Q8_0", "BF16"]
    (parts,) = (m for m in models() if m.quant == "Q8_0")
    assert [file.path[-19:] for file in parts.files] == [
        f"-0000{i}-of-00003.gguf"[-19:] for i in (1, 2, 3)
    ]
    assert parts.size == sum(file.size for file in parts.files)
    assert parts.name == "M-Q8_0"


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("Q4_K_M", "M-Q4_K_M.gguf"),
        ("q4_k_m", "M-Q4_K_M.gguf"),
        ("ud-q4_k_xl", "M-UD-Q4_K_XL.gguf"),
        ("M-Q2_K.gguf", "M-Q2_K.gguf"),
        ("Q8_0", "Q8_0/M-Q8_0-00001-of-00003.gguf"),
        ("M-Q8_0-00002-of-00003.gguf", "Q8_0/M-Q8_0-00001-of-00003.gguf"),
        ("Q8_0/M-Q8_0-00001-of-00003.gguf", "Q8_0/M-Q8_0-00001-of-00003.gguf"),
    ],
)
def test_choosing(asked: str, path: str) -> None:
    """By quantization, file, folder or any part, in any case."""
    found = chosen(f"a/b:{asked}")
    assert found is not None
    assert found.files[0].path == path


def test_look_alikes_are_kept_apart() -> None:
    """Q4_K_XL is not UD-Q4_K_XL: the error names the one that is there, first."""
    with pytest.raises(UnknownModelError) as caught:
        chosen("a/b:Q4_K_XL")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("it has UD-Q4_K_XL, ")


def test_a_side_file_by_name() -> None:
    """Asked for by name, a projector is said to be one."""
    with pytest.raises(UnknownModelError, match="side file"):
        chosen("a/b:mmproj-M-F16.gguf")


def test_an_incomplete_set_is_refused() -> None:
    """With the names of the parts that are missing; a download never starts."""
    with pytest.raises(TransferError, match="00002-of-00002") as caught:
        chosen("a/b:BF16")
    assert caught.value.exit_code == 5


def test_ambiguity_is_an_error_with_choices() -> None:
    """Two files of one quantization: both paths are named, and each can be asked for."""
    twice = ("M-Q4_K_M.gguf", "old/M-Q4_K_M.gguf")
    with pytest.raises(UnknownModelError) as caught:
        chosen("a/b:Q4_K_M", *twice)
    assert caught.value.hint is not None
    for path in twice:
        assert f"a/b:{path}" in caught.value.hint
        found = chosen(f"a/b:{path}", *twice)
        assert found is not None
        assert found.files[0].path == path


def test_no_quantization_named() -> None:
    """One model is chosen at once; of several, none: that is for the machine to decide."""
    assert chosen("a/b") is None
    only = chosen("a/b", "only.gguf", "mmproj-only.gguf")
    assert only is not None
    assert only.name == "only"
    default = names.default(models())
    assert default is not None
    assert default.quant == "Q4_K_M"
    assert names.default(models("M-Q2_K.gguf")) is None


def test_no_model_at_all() -> None:
    """A repository of the original weights has no GGUF: said so."""
    with pytest.raises(UnknownModelError, match="no GGUF"):
        chosen("a/b", "model.safetensors", "config.json", "mmproj-x.gguf")


@pytest.mark.parametrize(
    "path",
    [
        "../x.gguf",
        "a/../../x.gguf",
        "/x.gguf",
        "C:\\x.gguf",
        "a\\x.gguf",
        "a:b.gguf",
        "x\0.gguf",
        "a//x.gguf",
        "./x.gguf",
        "x\x1b[2J.gguf",
        "x\u202e.gguf",
        "",
        "x" * 2000,
    ],
)
def test_unsafe_file_names(path: str) -> None:
    """A name that could lead out of the folder, or fool a terminal, refuses the repository."""
    with pytest.raises(TransferError, match="unsafe name") as caught:
        models("M-Q4_K_M.gguf", path)
    assert caught.value.message.isprintable()


def test_a_stale_entry_is_ours() -> None:
    """A repository of the catalog that is gone is our mistake; any other may be a typo."""
    stale = names.parse("olmoe-1b-7b:Q4_K_M")
    assert stale is not None
    said = names.not_on_hub(stale).message
    assert "stale" in said
    assert "your name was right" in said
    typo = names.not_on_hub(Reference("x", "unsloth/GLM-4.6-GUF"))
    assert "Did you mean unsloth/GLM-4.6-GGUF" in typo.message
    assert "stale" not in typo.message
