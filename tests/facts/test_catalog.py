"""Names that lead to model files on this machine, and what is said of those that do not."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from localmoe.errors import ModelFileError, UnknownModelError
from localmoe.facts import catalog, local_files
from localmoe.facts.catalog import NotHereError
from localmoe.facts.model_names import read_name

REPO = "bartowski/Qwen_Qwen3-30B-A3B-GGUF"  # the catalog's qwen3-30b-a3b


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home: no models folder, no Hub cache."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(folder: Path, *names: str) -> list[Path]:
    """Empty files: a name is all that matters here."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def in_hub(home: Path, repo: str, *names: str, revision: str = "abc") -> list[Path]:
    """Files as huggingface_hub keeps them: links from a snapshot to blobs."""
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    links = []
    for number, name in enumerate(names):
        blob = root / "blobs" / f"{revision}{number}"
        link = root / "snapshots" / revision / name
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.touch()
        link.symlink_to(blob)
        links.append(link)
    return links


def own(home: Path, *names: str) -> list[Path]:
    return touch(home / "home" / "data" / "models", *names)


def test_catalog_is_sound() -> None:
    """Names are lower case and unique, repositories have two parts, hints lead to aliases."""
    known, gone = catalog.catalog()
    aliases = [entry.alias for entry in known]
    names = [*aliases, *(name for item in gone for name in item.names)]
    assert len(set(names)) == len(names) > 40
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in names)
    assert all(not e.repo or re.fullmatch(r"[\w.-]+/[\w.-]+", e.repo) for e in known)
    assert {item.nearest for item in gone} <= set(aliases)
    for family in ("mixtral-8x7b", "gpt-oss-20b", "deepseek-v4-flash", "granite-3-moe"):
        assert family in aliases


def test_paths(home: Path) -> None:
    """A path is taken as it is; one that leads nowhere is an error about the file."""
    (path,) = touch(home, "some model.gguf")
    assert catalog.resolve(str(path)) == path
    assert catalog.resolve("some model.gguf") == Path("some model.gguf")
    for name in ("none.gguf", "./none", "/no/such/file", "~/none.gguf", "a/none.gguf"):
        with pytest.raises(ModelFileError, match="no file"):
            catalog.resolve(name)


def test_the_bundled_model() -> None:
    """``nano`` is a file of the package, in one quantization."""
    with pytest.raises(UnknownModelError, match="Q8_0 only"):
        catalog.resolve("nano:Q4_K_M")
    package = catalog.models_package()
    assert (package / "catalog.toml").is_file()
    if (package / "nano.gguf").is_file():
        assert catalog.resolve("nano") == catalog.resolve("NANO:q8_0") == package / "nano.gguf"
        assert package / "nano.gguf" in [model.path for model in catalog.installed_models()]


@pytest.mark.parametrize(
    "name",
    ["qwen3-30b-a3b", "Qwen3-30B-A3B", "qwen3-30b-a3b:q4_k_m", REPO, REPO.lower(), f"{REPO}:Q4_K_M",
     f"https://huggingface.co/{REPO}", f"hf.co/{REPO}/tree/main"],
)  # fmt: skip
def test_names_of_one_file_in_the_hub_cache(home: Path, name: str) -> None:
    """Alias, repository or URL, in any case, with or without the quantization."""
    links = in_hub(home, REPO, "Qwen_Qwen3-30B-A3B-Q8_0.gguf", "Qwen_Qwen3-30B-A3B-Q4_K_M.gguf")
    assert catalog.resolve(name) == links[1]


def test_url_of_a_file(home: Path) -> None:
    links = in_hub(home, REPO, "a-Q8_0.gguf", "a-Q4_K_M.gguf")
    assert catalog.resolve(f"https://huggingface.co/{REPO}/blob/main/a-Q8_0.gguf") == links[0]


def test_quantizations_are_told_apart(home: Path) -> None:
    """Q4_K_XL is not UD-Q4_K_XL; what is not there is an error that lists what is."""
    (dynamic,) = in_hub(home, "u/r", "UD-Q4_K_XL/m-UD-Q4_K_XL-00001-of-00002.gguf")
    assert catalog.resolve("u/r") == dynamic
    assert catalog.resolve("u/r:ud-q4_k_xl") == dynamic
    with pytest.raises(UnknownModelError, match="no Q4_K_XL of u/r") as caught:
        catalog.resolve("u/r:Q4_K_XL")
    assert "u/r:UD-Q4_K_XL" in (caught.value.hint or "")
    (plain,) = in_hub(home, "u/r", "m-Q4_K_XL.gguf")
    assert catalog.resolve("u/r:Q4_K_XL") == plain
    with pytest.raises(UnknownModelError, match="2 models here are called u/r") as caught:
        catalog.resolve("u/r")
    assert "choose one: u/r:Q4_K_XL, u/r:UD-Q4_K_XL" in (caught.value.hint or "")


def test_two_models_of_one_quantization_are_not_mistaken(home: Path) -> None:
    """A repository with two different Q4_K_M files: the choice is the user's, by path."""
    links = in_hub(home, "u/r", "small-Q4_K_M.gguf", "large-Q4_K_M.gguf")
    with pytest.raises(UnknownModelError, match="2 models here") as caught:
        catalog.resolve("u/r:Q4_K_M")
    for link in links:
        assert f"u/r:{link.name}" in (caught.value.hint or "")
        assert catalog.resolve(f"u/r:{link.name}") == link


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("Qwen_Qwen3-30B-A3B-Q4_K_M.gguf", "Q4_K_M"),
        ("gpt-oss-120b-mxfp4-00001-of-00003.gguf", "MXFP4"),
        ("gpt-oss-20b-MXFP4_MOE.gguf", "MXFP4"),
        ("model-UD-IQ2_XXS.gguf", "UD-IQ2_XXS"),
        ("model.i1-Q6_K.gguf", "Q6_K"),
        ("model-IQ4_XS-imat.gguf", "IQ4_XS"),
        ("model-BF16-00001-of-00002.gguf", "BF16"),
        ("model-tq1_0.gguf", "TQ1_0"),
        ("model-f16.gguf", "F16"),
        ("qwen3-30b.gguf", ""),
    ],
)
def test_quantization_of_a_file_name(name: str, quant: str) -> None:
    assert local_files.quant_of(Path(name)) == quant


def test_newest_revision_counts(home: Path) -> None:
    """An older download of the same repository is not offered beside the newer one."""
    in_hub(home, "u/r", "m-Q8_0.gguf", revision="old")
    new = in_hub(home, "u/r", "m-Q8_0.gguf", revision="new")
    in_hub(home, "u/r", "README.md", revision="newest")
    snapshots = home / "hub" / "models--u--r" / "snapshots"
    for age, revision in enumerate(("newest", "new", "old")):
        os.utime(snapshots / revision, (10_000 - age, 10_000 - age))
    assert [file.path for file in local_files.cached_files("u/r")] == new
    assert catalog.resolve("U/R") == new[0]


def test_models_are_listed_once(home: Path) -> None:
    """First parts only; no projector, importance matrix, draft or MTP file, no broken link."""
    mine = own(home, "my-model.gguf", "sub/big-00001-of-00002.gguf")
    own(home, "sub/big-00002-of-00002.gguf", "mmproj-F16.gguf", "m.imatrix.gguf", "m-draft.gguf",
        "m-MTP-Q8_0.gguf", "note.txt", "folder.gguf/inner.txt")  # fmt: skip
    cached = in_hub(home, "u/r", "m-Q8_0.gguf")
    broken = in_hub(home, "u/r2", "gone-Q8_0.gguf")[0]
    broken.resolve().unlink()
    found = [model.path for model in catalog.installed_models() if model.name != "nano"]
    assert found == [*mine, *cached]


@pytest.mark.parametrize("name", ["big", "BIG-q8_0", "big:Q8_0"])
def test_files_of_our_folder_by_name(home: Path, name: str) -> None:
    """The file's name is enough, without the number of its part and with any case."""
    (path, _) = own(home, "sub/Big-Q8_0-00001-of-00002.gguf", "other.gguf")
    assert catalog.resolve(name) == path


def test_an_alias_finds_a_file_in_our_folder(home: Path) -> None:
    """A file downloaded by hand is the model of the catalog that its name says."""
    (path,) = own(home, "Qwen_Qwen3-30B-A3B-Q4_K_M.gguf")
    assert catalog.resolve("qwen3-30b-a3b") == path
    assert catalog.resolve("qwen3-30b-a3b:Q4_K_M") == path


def test_known_but_not_here() -> None:
    """A catalog name says which repository it is and how to get the file."""
    with pytest.raises(NotHereError, match=f"not on this machine .*{REPO}") as caught:
        catalog.resolve("qwen3-30b-a3b:Q8_0")
    assert caught.value.hint == "localmoe pull qwen3-30b-a3b:Q8_0"
    with pytest.raises(NotHereError) as caught:
        catalog.resolve("someone/else")
    assert caught.value.hint == "localmoe pull someone/else"
    with pytest.raises(UnknownModelError, match="no conversion"):
        catalog.resolve("granite-3-moe")


@pytest.mark.parametrize(
    ("name", "fact", "nearest"),
    [
        ("switch-transformer", "llama.cpp has no architecture", "olmoe-1b-7b"),
        ("GLaM", "never released", "mixtral-8x7b"),
        ("gshard", "never released", "mixtral-8x7b"),
        ("gpt-5", "closed", "gpt-oss-20b"),
    ],
)
def test_names_without_weights(name: str, fact: str, nearest: str) -> None:
    """The fact and the nearest open family, rather than "not found"."""
    with pytest.raises(UnknownModelError, match=fact) as caught:
        catalog.resolve(name)
    assert nearest in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "guesses"),
    [
        ("qwen3-30b-a3", "qwen3-30b-a3b"),
        ("gpt-oss-21b", "gpt-oss-20b"),
        ("mixtral", "mixtral-8x7b or mixtral-8x22b"),
        ("NANOO", "nano"),
    ],
)
def test_near_misses(name: str, guesses: str) -> None:
    """The nearest names, best first, and never another model."""
    with pytest.raises(UnknownModelError) as caught:
        catalog.resolve(name)
    assert caught.value.message.startswith(f'no model "{name}". Did you mean {guesses}')


@pytest.mark.parametrize("name", ["hello", "", ":", ":Q4_K_M", "a b", "..", "x" * 5000, "\x1b[31m"])
def test_names_of_nothing(name: str) -> None:
    """No guess is better than a wild one; nothing of a name reaches the terminal as a command."""
    with pytest.raises(UnknownModelError) as caught:
        catalog.resolve(name)
    assert "Did you mean" not in caught.value.message
    assert "\x1b" not in caught.value.message + (caught.value.hint or "")


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("nano", True), ("nanoo", True), ("qwen3-30b-a3b", True), ("qwen3-30b-a3", True),
        ("QWEN3-30B-A3B:Q8_0", True), ("a/b", True), ("a/b:Q4_K_M", True), ("x.gguf", True),
        ("X.GGUF", True), ("unheard:Q4_K_M", True), ("unheard:UD-IQ2_XXS", True), ("gpt-5", True),
        ("https://huggingface.co/a/b", True), ("my-own", True),
        ("hello", False), ("what", False), ("name", False), ("nan", False), ("note:this", False),
        ("Why?", False), ("", False), ("two words", False), ("a/b c", False), ("/help", False),
        ("mixtral", True),
        ("qwen3-30b", True),
        ("gpt-oss", True),
        ("glm-4.5", True),
        ("llama4", True),
        ("qwen2.5-7b", True),
        ("big.ggf", True),
        ("gemma-3-270m-q4_k_m", True), ("llama3", True), ("llama3.2:1b", True),
        ("mistral:latest", True), ("MISTRAL:Latest", True), ("unheard:latest", True),
        ("ollama.com/library/mixtral", True), ("ollama://mixtral:8x7b", True),
        ("file:///models/x.gguf", True), ("model.safetensors", True), ("datasets/a/b", True),
        ("claude-3.5-sonnet", True), ("2+2", False), ("user//repo", False),
        ("mistral:instruct", True), ("phi4", True), ("qwen3:30b-a3b-q4_K_M", True),
        ("anything:7b-instruct", True), ("smollm2-135m", True), ("my.finetune.Q8_0", True),
        ("name-bf16", True), ("unheard:i1-Q4_K_M", True), ("hf://user/R:Q8_0", True),
        ("hf:user/R", True), ("HF.co/a/b:Q8_0", True), ("a/b@v2:Q8_0", True), ("a/b/c.gguf", True),
        ("https://huggingface.co/datasets/a/b", True), ("https://example.com/m.gguf", True),
        ("my-own-q8_0", True), ("MY-OWN", True), ("my-ownn", True),
        ("well-known", False),
        ("COVID-19", False), ("piano", False), ("qwen", False), ("café", False),
        ("llama", True), ("https://example.com/page", False), ("Q3", False), ("note:", False),
        ("12:30", False), ("time:latest", True), ("F-16", False), ("me@home.org", False),
        ("solar-powered", False), ("either/or/both", False), ("gpt4?", False), ("~/notes", False),
    ],
)  # fmt: skip
def test_looks_like_model(home: Path, word: str, answer: bool) -> None:
    """The contract's rule for the first word after ``run``."""
    own(home, "my-own-Q8_0.gguf", "my-own.gguf")
    assert catalog.looks_like_model(word) is answer


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("llama3", "llama-4"),
        ("gemma-3-270m-q4_k_m", "gemma-4-26b-a4b"),
        ("mistral:latest", "mixtral-8x"),
        ("deepseek-r2", "deepseek-r1"),
        ("my-onw", "my-own-Q8_0"),
    ],
)
def test_names_of_other_models_get_the_nearest(home: Path, name: str, near: str) -> None:
    """What looks like a model and is none here: exit 2, the nearest names, each only once."""
    own(home, "my-own-Q8_0.gguf")
    with pytest.raises(UnknownModelError) as caught:
        catalog.resolve(name)
    assert caught.value.exit_code == 2
    guesses = caught.value.message.partition("Did you mean ")[2].rstrip("?").split(" or ")
    assert any(guess.startswith(near) for guess in guesses), caught.value.message
    assert len(set(guesses)) == len(guesses)


def test_where_the_hub_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of huggingface_hub's own variables."""
    assert local_files.hub_cache().name == "hub"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", "/x")
    assert local_files.hub_cache() == Path("/x/hub")
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", "/y")
    assert local_files.hub_cache() == Path("/y")
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/z")
    assert local_files.hub_cache() == Path("/z/huggingface/hub")


def test_no_hub_cache_at_all(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "none"))
    assert local_files.cached_files() == []
    touch(home, "file")
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "file"))
    assert local_files.cached_files("a/b") == []


def test_what_ollama_and_file_managers_write() -> None:
    """Its library's addresses are names, and the address of a file is its path."""
    for text in (
        "ollama://mixtral:8x7b", "https://ollama.com/library/mixtral:8x7b",
        "ollama.com/library/mixtral:8x7b", "registry.ollama.ai/library/mixtral:8x7b",
    ):  # fmt: skip
        assert (read_name(text).base, read_name(text).wanted) == ("mixtral", "8x7b")
    assert read_name("file:///my%20models/x.gguf").text == "/my models/x.gguf"
    assert "no GGUF" in catalog.unknown("user/repo/model.safetensors").message
