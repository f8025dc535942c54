"""Remote models as files that the engine can be asked about: headers, extended by a hole.

    with skeletons(models, headers) as found:      # {ModelFiles: Model}
        Oracle(found[model])…

The files are sparse and take a few hundred kilobytes on disk, whatever their size.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from localmoe import storage
from localmoe.errors import ModelFileError, StorageError
from localmoe.facts.model import Model, read_model
from localmoe.hub.compact import Compact
from localmoe.hub.headers import Found
from localmoe.hub.names import ModelFiles
from localmoe.hub.refusals import RefusedFileError

Skeleton = Model | ModelFileError | RefusedFileError
"""A model that can be asked about, or why this one cannot."""


@contextlib.contextmanager
def skeletons(
    models: Sequence[ModelFiles], headers: Mapping[str, Found]
) -> Iterator[dict[ModelFiles, Skeleton]]:
    """Each model as it would be read from disk, until the block ends.

    Sizes, offsets and names are those of the real files; ``paths`` are the skeletons, and the
    vocabulary is missing from ``metadata``. Raises StorageError.
    """
    folder = storage.private_dir(storage.cache_dir())
    with tempfile.TemporaryDirectory(prefix="fit-", dir=folder) as name:
        found: dict[ModelFiles, Skeleton] = {}
        for number, model in enumerate(models):
            try:
                found[model] = _build(model, headers, Path(name) / str(number))
            except (ModelFileError, RefusedFileError) as error:
                found[model] = error
        yield found


def _build(model: ModelFiles, headers: Mapping[str, Found], folder: Path) -> Model:
    parts = [_readable(headers[file.path]) for file in model.files]
    paths = [folder / PurePosixPath(file.path).name for file in model.files]
    try:
        folder.mkdir()
        for path, part in zip(paths, parts, strict=True):
            with path.open("wb") as file:
                file.write(part.data)
                file.truncate(part.size - part.cut)
    except OSError as error:
        raise StorageError(
            f"cannot write a header file of {part.size:,} bytes in {folder}: {error.strerror}",
            hint="set LOCALMOE_HOME to a folder on a disk that allows large sparse files",
        ) from error
    found = read_model(paths[0])
    return replace(
        found,
        name=model.name,
        size=model.size,
        header_bytes=sum(part.header_bytes for part in parts),
        metadata={k: v for k, v in found.metadata.items() if k not in _added(found, parts[0])},
        tensors=tuple(
            replace(tensor, offset=tensor.offset + parts[tensor.part].cut)
            for tensor in found.tensors
        ),
    )


def _readable(found: Found) -> Compact:
    """Raises ModelFileError or RefusedFileError for a header that could not be read."""
    if not isinstance(found, Compact):
        raise found
    return found


def _added(model: Model, first: Compact) -> set[str]:
    """The keys that stand in for the vocabulary, and are not in the real file."""
    if first.block is None:
        return set()
    added = {"tokenizer.ggml.model", "localmoe.filler"}
    return added if first.block.states_size else added | {f"{model.architecture}.vocab_size"}
