"""Model files that other programs on this machine have downloaded.

========= ======================================== =========================================
program   where                                    layout
========= ======================================== =========================================
LM Studio ~/.lmstudio/models,                      PUBLISHER/REPOSITORY/FILE.gguf
          ~/.cache/lm-studio/models
Ollama    $OLLAMA_MODELS, ~/.ollama/models,        manifests/HOST/NAMESPACE/NAME/TAG: JSON
          /usr/share/ollama/.ollama/models         that names one of blobs/sha256-…
llama.cpp $LLAMA_CACHE, ~/.cache/llama.cpp         USER_REPOSITORY_FILE.gguf
========= ======================================== =========================================

Ollama's layout: its docs/modelfile and server/manifest.go. Everything here is only read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmoe import kept, storage
from localmoe.facts.local_files import model_name, models_below, quant_of

OLLAMA = "Ollama"
MAX_MANIFESTS = 1000
_MANIFEST_LIMIT = 1 << 20  # bytes; a real one has about 1 KB
_MODEL_LAYER = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_USUAL_HOST = ("registry.ollama.ai", "library")


@dataclass(frozen=True, slots=True)
class OtherFile:
    """The first file of a model of another program."""

    program: str
    name: str  # to type: "publisher/repository:QUANT", "qwen3:30b", or the file's name
    path: Path


def other_files() -> list[OtherFile]:
    """Every model of other programs, each file once."""
    found: list[OtherFile] = []
    seen: set[Path] = set()
    for file in (*_lm_studio(), *_ollama(), *_llama_cpp()):
        real = file.path.resolve()
        if real not in seen:
            seen.add(real)
            found.append(file)
    return found


def _lm_studio() -> Iterator[OtherFile]:
    for folder in ("~/.lmstudio/models", "~/.cache/lm-studio/models"):
        root = storage.user_path(folder)
        for path in models_below(root):
            parts = path.relative_to(root).parts
            name = f"{parts[0]}/{parts[1]}" if len(parts) >= 3 else model_name(path)
            quant = quant_of(path)
            yield OtherFile("LM Studio", f"{name}:{quant}" if quant else name, path)


def _llama_cpp() -> Iterator[OtherFile]:
    folder = os.environ.get("LLAMA_CACHE") or "~/.cache/llama.cpp"
    for path in models_below(storage.user_path(folder)):
        yield OtherFile("llama.cpp", model_name(path), path)


def _ollama() -> Iterator[OtherFile]:
    stated = os.environ.get("OLLAMA_MODELS")
    folders = (stated,) if stated else ("~/.ollama/models", "/usr/share/ollama/.ollama/models")
    for folder in folders:
        root = storage.user_path(folder)
        try:
            manifests = sorted((root / "manifests").glob("*/*/*/*"))[:MAX_MANIFESTS]
        except OSError:
            continue
        for manifest in manifests:
            blob = _model_blob(manifest, root / "blobs")
            if blob is not None:
                host, namespace, model, tag = manifest.parts[-4:]
                usual = (host, namespace) == _USUAL_HOST
                name = model if usual else f"{host}/{namespace}/{model}"
                yield OtherFile(OLLAMA, f"{name}:{tag}", blob)


def _model_blob(manifest: Path, blobs: Path) -> Path | None:
    """The weights that a manifest names; None for what is no manifest of a whole model."""
    try:
        with manifest.open("rb") as file:
            document: Any = kept.parse(file.read(_MANIFEST_LIMIT))
        digests = [
            _DIGEST.fullmatch(layer["digest"])
            for layer in document["layers"]
            if layer["mediaType"] == _MODEL_LAYER
        ]
    except (OSError, *kept.DAMAGED):
        return None
    if len(digests) != 1 or digests[0] is None:
        return None
    blob = blobs / f"sha256-{digests[0][1]}"
    return blob if blob.is_file() else None
