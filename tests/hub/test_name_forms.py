"""Names as people type and paste them, from one end to the other: each command, a real server."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.command import HubCommand
from tests.hub.pulling import sha256
from tests.hub.repository import Servable
from tests.hub.server import HubServer

MAIN, DRAFT = "Ornith-9B-MTP-Q4_K_M.gguf", "spec/eagle3-Q8_0.gguf"
REPO = "u/Ornith-9B-MTP-GGUF"


def beginning(architecture: str) -> bytes:
    """A GGUF file with an architecture and nothing else."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    key = text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key


@pytest.fixture
def served(hub: HubServer, arch_file: Callable[..., Path]) -> Path:
    """A repository as in a report: its models are called like drafts, its draft like a model."""
    path = arch_file("qwen3moe")
    files: dict[str, Servable] = {
        MAIN: path,
        "Ornith-9B-MTP-v2-Q4_K_M.gguf": path,
        DRAFT: beginning("eagle3"),
        "mmproj-Ornith-BF16.gguf": beginning("clip"),
        "a:b.gguf": b"GGUF",
    }
    hub.add(REPO, files)
    return path


def test_fit_offers_what_can_be_had(hub: HubServer, served: Path, localmoe: HubCommand) -> None:
    """Models only, each by a name that ``pull`` and ``run`` take; what is odd condemns nothing."""
    done = localmoe("fit", REPO, "--json")
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    names = {entry["name"] for entry in document["files"]}
    assert names == {"Ornith-9B-MTP-Q4_K_M", "Ornith-9B-MTP-v2-Q4_K_M"}
    advised = document["recommended_command"]
    pulled = localmoe("pull", advised, "--yes")
    assert pulled.returncode == 0, pulled.stderr
    assert sha256(Path(pulled.stdout.strip())) == sha256(served)
    refused = localmoe("pull", f"{REPO}:Q8_0", "--yes")
    assert refused.returncode == 2
    assert "eagle3-Q8_0.gguf is a side file, not a model: a draft" in refused.stderr
    assert localmoe("pull", f"{REPO}:a:b.gguf", "--yes").returncode == 5


@pytest.mark.parametrize(
    "name",
    [f"{REPO}/{MAIN}", f"hf://{REPO}/{MAIN}", f" {REPO}:{MAIN} ", f"HF.co/{REPO}:{MAIN}",
     f"{REPO}@main:{MAIN}", f"https://huggingface.co/{REPO}?show_file_info={MAIN}"],
)  # fmt: skip
def test_forms_that_are_pasted(
    name: str, hub: HubServer, served: Path, localmoe: HubCommand
) -> None:
    """Each brings the one file that it names."""
    done = localmoe("pull", name, "--yes")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == MAIN


def test_a_revision_of_a_discussion(hub: HubServer, served: Path, localmoe: HubCommand) -> None:
    """``refs/pr/3`` is a revision with strokes: asked for, kept, and found again offline."""
    repository = hub.repositories[REPO]
    repository.refs["refs/pr/3"] = repository.refs["main"]
    repository.commit({"README.md": b"# changed"})
    done = localmoe("pull", f"{REPO}@refs/pr/3:{MAIN}", "--yes")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert repository.refs["refs/pr/3"] in path.parts
    for name in (f"{REPO}@refs/pr/3", f"https://hf.co/{REPO}/blob/refs%2Fpr%2F3/{MAIN}"):
        shown = localmoe("show", name, "--json", HF_HUB_OFFLINE="1")
        assert json.loads(shown.stdout)["paths"] == [str(path)]


def test_what_list_prints_works_everywhere(
    hub: HubServer, served: Path, localmoe: HubCommand
) -> None:
    """``show``, ``fit``, ``plan``, ``pull``, completion and ``rm`` take the name that is shown."""
    assert localmoe("pull", f"{REPO}:{MAIN}", "--yes").returncode == 0
    listed = json.loads(localmoe("list", "--json").stdout)["models"]
    names = [entry["name"] for entry in listed]
    assert len(names) == len(set(names)) == 2
    (entry,) = (entry for entry in listed if entry["name"] != "nano")
    name, offline = entry["name"], {"HF_HUB_OFFLINE": "1"}
    assert name in localmoe("list").stdout
    for command in ("show", "plan"):
        document = json.loads(localmoe(command, name, "--json", **offline).stdout)
        assert document["model"] == name
    assert localmoe("fit", name, "--json", **offline).returncode == 0
    assert localmoe("pull", name).stdout.strip() == entry["path"]
    words = localmoe("completion", "candidates", "--", "rm", name[:6]).stdout
    assert [line.split("\t")[0] for line in words.splitlines()] == [name]
    removed = localmoe("rm", name.upper())
    assert removed.returncode == 0, removed.stderr
    assert not Path(entry["path"]).exists()
    assert localmoe("rm", name).returncode == 2


@pytest.mark.parametrize(
    "word", ["llama3", "mistral:latest", "gemma-3-270m-q4_k_m", "hf://user/R:Q8_0", "nanoo"]
)
def test_the_first_word_of_run(word: str, hub: HubServer, localmoe: HubCommand) -> None:
    """A model's name that leads nowhere is an error, not a question to another model."""
    done = localmoe("run", word, "hi", "-q")
    assert (done.returncode, done.stdout) == (2, "")
    assert word.removeprefix("hf://").partition(":")[0] in done.stderr
    assert f"as a prompt: localmoe run -- {word} …" in done.stderr
    named = localmoe("run", "-m", word, "hi", "-q")
    assert named.returncode == 2 and "as a prompt" not in named.stderr


def test_options_of_other_programs(hub: HubServer, served: Path, localmoe: HubCommand) -> None:
    """``-hf`` names the model; what is part of a name here is refused with the form that works."""
    assert localmoe("show", "-hf", "nano", "--json").returncode == 0
    for option in ("--revision", "--hf-file"):
        done = localmoe("show", REPO, option, "x")
        assert done.returncode == 2
        assert "USER/REPO@REVISION:QUANT" in done.stderr
    done = localmoe("pull", REPO, MAIN)  # as `hf download` takes a file
    assert done.returncode == 2
    assert f"localmoe pull {REPO}:{MAIN}" in done.stderr
