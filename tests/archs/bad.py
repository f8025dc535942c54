"""Files a user may have that cannot be run, each in its own folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.archs.families import FAMILIES, Family
from tests.archs.recipe import Recipe
from tests.archs.vocabulary import vocabulary
from tests.archs.writer import random_data, write


def bad_files(directory: Path) -> dict[str, Path]:
    """Writes every kind of bad file below ``directory``; the path is the one to open.

    ``one_tensor_per_expert``: Mixtral as converted in 2023, before experts were fused.
    ``unknown_architecture``: well-formed, of a family nobody knows.
    ``truncated``, ``truncated_header``: an interrupted download, in the data or before it.
    ``missing_part``: three parts without the second. ``mixed_parts``: the third twice.
    ``future_version``: GGUF version 99. ``not_gguf``: a web page. ``empty``: no bytes.
    """
    folder = _Folders(directory)
    mixtral = FAMILIES["mixtral"]
    good = _write(mixtral, mixtral.recipe(), folder("good") / "good.gguf")[0].read_bytes()

    files: dict[str, Path] = {}
    old = _one_tensor_per_expert(mixtral.recipe(), mixtral.dims.experts)
    path = folder("one_tensor_per_expert") / "mixtral-2023.gguf"
    files["one_tensor_per_expert"] = _write(mixtral, old, path)[0]

    stranger = _renamed(mixtral.recipe(), "unheard_of")
    path = folder("unknown_architecture") / "stranger.gguf"
    files["unknown_architecture"] = _write(mixtral, stranger, path)[0]

    for name, content in {
        "truncated": good[: len(good) // 2],
        "truncated_header": good[:500],
        "future_version": good[:4] + (99).to_bytes(4, "little") + good[8:],
        "not_gguf": b"<!DOCTYPE html><html><body>Not Found</body></html>",
        "empty": b"",
    }.items():
        files[name] = folder(name) / f"{name}.gguf"
        files[name].write_bytes(content)

    parts = _write(mixtral, mixtral.recipe(), folder("missing_part") / "model.gguf", split=3)
    parts[1].unlink()
    files["missing_part"] = parts[0]
    parts = _write(mixtral, mixtral.recipe(), folder("mixed_parts") / "model.gguf", split=3)
    parts[1].write_bytes(parts[2].read_bytes())
    files["mixed_parts"] = parts[0]
    return files


class _Folders:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir(parents=True, exist_ok=True)
        return path


def _write(family: Family, recipe: Recipe, path: Path, split: int | None = None) -> list[Path]:
    words = vocabulary(family.dims.vocab)
    return write(
        recipe,
        path,
        data=random_data(recipe, 0, words),
        vocabulary=words,
        file_type=family.storage.file_type,
        name=path.stem,
        split=split,
    )


def _one_tensor_per_expert(recipe: Recipe, experts: int) -> Recipe:
    """``blk.N.ffn_up_exps.weight`` → ``blk.N.ffn_up.E.weight`` for every expert E."""
    split = []
    for spec in recipe.tensors:
        if "_exps." not in spec.name:
            split.append(spec)
            continue
        split.extend(
            replace(spec, name=spec.name.replace("_exps.", f".{e}."), shape=spec.shape[:2])
            for e in range(experts)
        )
    recipe.tensors = split
    return recipe


def _renamed(recipe: Recipe, architecture: str) -> Recipe:
    old = recipe.architecture
    recipe.architecture = architecture
    recipe.metadata = {
        architecture + key.removeprefix(old): value for key, value in recipe.metadata.items()
    }
    return recipe
