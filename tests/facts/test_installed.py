"""The models on this machine: which are found, and that each answers to the name that is shown."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from localmoe.errors import UnknownModelError
from localmoe.facts import catalog, local_files
from localmoe.facts.installed import Installed, installed_models

REPO = "w/Two-Revs-GGUF"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with nothing in it."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    for name in ("OLLAMA_MODELS", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def gguf(path: Path, architecture: str = "llama", kind: str | None = None) -> Path:
    """A file that begins as a GGUF file does: its architecture and type, no tensors."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    keys = {"general.architecture": architecture} | ({"general.type": kind} if kind else {})
    body = b"".join(text(key) + struct.pack("<I", 8) + text(value) for key, value in keys.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + body)
    return path


def in_hub(home: Path, repo: str, name: str, revision: str = "a" * 40, **how: str) -> Path:
    """A file as huggingface_hub keeps it."""
    root = home / "hub" / f"models--{repo.replace('/', '--')}"
    blob = gguf(root / "blobs" / f"{abs(hash((revision, name))):x}", **how)
    link = root / "snapshots" / revision / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(blob)
    return link


def own(home: Path, name: str, **how: str) -> Path:
    return gguf(home / "home" / "data" / "models" / name, **how)


def ollama(home: Path, model: str, tag: str) -> Path:
    digest = f"{abs(hash((model, tag))):064x}"[:64]
    root = home / "user" / ".ollama" / "models"
    manifest = root / "manifests" / "registry.ollama.ai" / "library" / model / tag
    manifest.parent.mkdir(parents=True, exist_ok=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    manifest.write_text(json.dumps({"layers": [layer]}))
    return gguf(root / "blobs" / f"sha256-{digest}")


def here() -> list[Installed]:
    return [model for model in installed_models() if model.name != "nano"]


def test_every_name_that_is_shown_is_understood(home: Path) -> None:
    """Unique, and each leads to its own file in any case of letters and with blanks around it.

    Two files of one name in one repository, in two, in our folder, in other programs; repositories
    whose names differ in case only.
    """
    in_hub(home, "u/r", "small-Q8_0.gguf")
    in_hub(home, "u/r", "old/m-Q4_K_M.gguf")
    in_hub(home, "u/r", "m-Q4_K_M.gguf")
    in_hub(home, "other/r", "m-Q4_K_M.gguf")
    in_hub(home, "Other/R", "m-Q4_K_M.gguf")
    in_hub(home, "u/r", "set/big-Q6_K-00001-of-00002.gguf")
    own(home, "mine.gguf")
    own(home, "sub/twice.gguf")
    own(home, "twice.gguf")
    own(home, "nano.gguf")
    own(home, "with blank.gguf")
    own(home, "qwen3-30b-a3b.gguf")
    ollama(home, "qwen3", "30b")
    ollama(home, "qwen3", "latest")
    gguf(home / "user" / ".lmstudio" / "models" / "u" / "r" / "small-Q8_0.gguf")
    gguf(home / "user" / ".cache" / "llama.cpp" / "mine.gguf")
    found = here()
    assert len(found) == 16
    assert len({model.name for model in found}) == len(found)
    for model in found:
        for typed in (model.name, f"  {model.name}\n"):
            assert catalog.resolve(typed) == model.path, typed
            assert [m.path for m in catalog.matching(typed)] in ([model.path], [])
    names = {model.name for model in found}
    assert {"small-Q8_0", "qwen3:30b", "u/r:old/m-Q4_K_M.gguf", "with blank"} <= names
    assert catalog.resolve("SMALL-q8_0") == catalog.resolve("u/r:q8_0")


def test_a_name_of_the_hub_cache_is_its_file_there(home: Path) -> None:
    """By its short name, a repository and quantization, a path: always the same file."""
    link = in_hub(home, "u/r", "Q8_0/small-Q8_0.gguf")
    for name in ("small-Q8_0", "small-q8_0", "small", "u/r", "u/r:Q8_0", "u/r:latest",
                 "u/r:small-Q8_0", "small-Q8_0.gguf", "SMALL-q8_0.GGUF",
                 "u/r:Q8_0/small-Q8_0.gguf", "u/r/Q8_0/small-Q8_0.gguf",
                 "hf.co/u/r:Q8_0", "hf://u/r:Q8_0", "-hf u/r:Q8_0", str(link)):  # fmt: skip
        assert catalog.resolve(name) == link, name


@pytest.mark.parametrize("newer", ["Revs-Q8_0.gguf", "README.md", "sub/Revs-Q8_0.gguf"])
def test_every_revision_counts(home: Path, newer: str) -> None:
    """What a revision has stays found when a newer one has something else."""
    old = in_hub(home, REPO, "Revs-Q4_K_M.gguf", "a" * 40)
    new = in_hub(home, REPO, newer, "b" * 40)
    refs = home / "hub" / "models--w--Two-Revs-GGUF" / "refs"
    refs.mkdir()
    (refs / "main").write_text("b" * 40)
    expected = {old} | ({new} if newer.endswith(".gguf") else set())
    assert {model.path for model in here()} == expected
    assert catalog.resolve(f"{REPO}:Q4_K_M") == old


def test_of_one_file_in_two_revisions_the_one_of_main_counts(home: Path) -> None:
    """``main`` as the cache knows it; a revision that is named is that one, or not here."""
    first, second = (in_hub(home, REPO, "R-Q8_0.gguf", letter * 40) for letter in "ab")
    refs = home / "hub" / "models--w--Two-Revs-GGUF" / "refs"
    (refs / "pr").mkdir(parents=True)
    (refs / "main").write_text("a" * 40)
    (refs / "v2").write_text("b" * 40)
    assert [model.path for model in here()] == [first]
    assert catalog.resolve(REPO) == first
    for revision in ("v2", "b" * 40, "b" * 8):
        assert catalog.resolve(f"{REPO}@{revision}") == second
    for revision in ("v3", "refs/pr/1", "c" * 40, "../../x", "b"):
        with pytest.raises(UnknownModelError):
            catalog.resolve(f"{REPO}@{revision}")


def test_a_whole_set_comes_before_one_that_is_not(home: Path) -> None:
    """An interrupted download of a newer revision does not hide the older one that is whole."""
    names = [f"m-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2)]
    whole = [in_hub(home, REPO, name, "a" * 40) for name in names]
    in_hub(home, REPO, names[0], "b" * 40)
    refs = home / "hub" / "models--w--Two-Revs-GGUF" / "refs"
    refs.mkdir()
    (refs / "main").write_text("b" * 40)
    assert [model.path for model in here()] == [whole[0]]


def test_files_are_found_wherever_they_are(home: Path) -> None:
    """In capitals, in linked folders; not twice, and not for ever where links go round."""
    upper = own(home, "UPPER-Q8_0.GGUF")
    far = gguf(home / "disk" / "deep" / "far.gguf")
    (upper.parent / "linked").symlink_to(home / "disk")
    (home / "disk" / "round").symlink_to(home / "disk")
    (home / "disk" / "up").symlink_to(upper.parent)
    assert {model.path.resolve() for model in here()} == {upper, far}
    assert len(here()) == 2
    assert catalog.resolve("upper") == upper
    parts = [own(home, f"Set-Q8_0-0000{n}-of-00002.GGUF") for n in (1, 2)]
    assert parts[0] in [model.path for model in here()]
    assert parts[1] not in [model.path for model in here()]
    assert local_files.is_whole(parts[0])


@pytest.mark.parametrize(
    ("name", "how", "is_model"),
    [
        ("Ornith-9B-MTP-Q4_K_M.gguf", {}, True),
        ("Draft-Horse-7B.gguf", {"kind": "model"}, True),
        ("M-imatrix-Q4_K_M.gguf", {}, True),
        ("mmproj-named.gguf", {}, True),
        ("plain.gguf", {"architecture": "clip"}, False),
        ("plain.gguf", {"architecture": "llama", "kind": "mmproj"}, False),
        ("plain.gguf", {"architecture": "llama", "kind": "adapter"}, False),
        ("plain.gguf", {"architecture": "llama", "kind": "imatrix"}, False),
        ("plain-Q8_0.gguf", {"architecture": "eagle3"}, False),
        ("plain-Q8_0.gguf", {"architecture": "dflash"}, False),
        ("plain-Q8_0.gguf", {"architecture": "dspark"}, False),
        ("plain-Q8_0.gguf", {"architecture": "gemma4-assistant"}, False),
    ],
)
def test_a_header_tells_what_a_file_is(
    home: Path, name: str, how: dict[str, str], is_model: bool
) -> None:
    """Not its name: neither for a model that is called like a draft, nor the other way round."""
    path = own(home, name, **how)
    assert [model.path for model in here()] == ([path] if is_model else [])
    if is_model:
        assert catalog.resolve(path.stem) == path
    else:
        with pytest.raises(UnknownModelError):
            catalog.resolve(path.stem)


def test_a_choice_is_given_in_names_that_work(home: Path) -> None:
    """Of several models that a name means, each is named so that it can be typed."""
    for name in ("m-Q4_K_M.gguf", "old/m-Q4_K_M.gguf"):
        in_hub(home, "u/r", name)
    for asked in ("m-Q4_K_M", "m", "u/r", "u/r:Q4_K_M", "u/r:latest"):
        with pytest.raises(UnknownModelError, match="2 models here") as caught:
            catalog.resolve(asked)
        _, _, names = (caught.value.hint or "").partition("choose one: ")
        assert len({catalog.resolve(name) for name in names.split(", ")}) == 2


def test_a_tag_that_is_left_out_is_latest(home: Path) -> None:
    """As Ollama has it; a tag that is named is that one."""
    latest, small = ollama(home, "qwen3", "latest"), ollama(home, "qwen3", "4b")
    assert catalog.resolve("qwen3") == catalog.resolve("qwen3:latest") == latest
    assert catalog.resolve("qwen3:4b") == small
