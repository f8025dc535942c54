"""The parts of a multi-part model: found beside any one of them, and checked to belong together.

Names: llama.cpp's ``%s-%05d-of-%05d.gguf`` (llama_split_path). Metadata is in the first part; the
others may have ``split.*`` only.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from localmoe.errors import ModelFileError
from localmoe.facts.gguf import MAX_TENSORS, Header, read_header
from localmoe.facts.source import FileSource
from localmoe.text import clean_line

_PART = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.(?i:gguf))", re.DOTALL
)
# One file cut by other tools, the pieces no GGUF files: M.gguf.part1of2, M.gguf-split-a, M.gguf.aa.
_PIECE = re.compile(
    r"(.+\.gguf)[.-](?:part[-_.]?\w{1,6}(?:[-_.]?of[-_.]?\d+)?|split-\w{1,3}|\d{1,4}|[a-z]{2})",
    re.IGNORECASE | re.DOTALL,
)
_KEPT = ("general.architecture", "split.no", "split.count", "split.tensors.count")
_NAMED = 5  # missing parts that a message names
_HINT = "download the missing parts into the same folder"
_MIXED = "download the parts of one model again, into a folder of their own"


@dataclass(frozen=True, slots=True)
class PartName:
    """``name-00002-of-00003.gguf`` → ("name", 2, 3)."""

    stem: str
    number: int  # from 1
    count: int
    suffix: str = ".gguf"

    @classmethod
    def parse(cls, name: str) -> PartName | None:
        """The name taken apart; None for one of another form."""
        match = _PART.fullmatch(name)
        if match is None:
            return None
        part = cls(match["stem"], int(match["number"]), int(match["count"]), match["suffix"])
        return part if 1 <= part.number <= part.count else None

    def sibling(self, number: int) -> str:
        """The file name of another part."""
        return f"{self.stem}-{number:05d}-of-{self.count:05d}{self.suffix}"


def whole_of_piece(name: str) -> str | None:
    """The name of the file that a file of this name is a piece of; None for any other file."""
    piece = _PIECE.fullmatch(name)
    return piece[1] if piece else None


def read_parts(path: Path) -> tuple[tuple[Path, ...], tuple[Header, ...]]:
    """All parts of the model that ``path`` is a part of, in order, with their headers.

    Raises ModelFileError for a part that is missing, unreadable or of another model.
    """
    name = PartName.parse(path.name)
    if whole := whole_of_piece(path.name):
        joined = shlex.quote(clean_line(whole))
        raise ModelFileError(
            f"{clean_line(path.name)} is a piece of {clean_line(whole)}",
            hint=f"join all pieces: cat {joined}?* > {joined}",
        )
    first = _read(path)
    count = _split(first, "split.count", 1)
    if name is None or name.count == 1:
        if count > 1:
            number = _split(first, "split.no", 0) + 1
            raise ModelFileError(
                f"{clean_line(path.name)} is part {number} of {count}, but not named as one",
                hint=f"rename the parts to NAME-00001-of-{count:05d}.gguf and so on",
            )
        return (path,), (first,)
    paths = _all_parts(path, name)
    headers: list[Header] = []
    for number, each in enumerate(paths):
        header = first if each == path else _read(each)
        headers.append(header if number == 0 else _without_metadata(header))
        if sum(len(h.tensors) for h in headers) > MAX_TENSORS:
            raise ModelFileError(f"{clean_line(name.stem)}: more than {MAX_TENSORS:,} tensors")
    _check(paths, headers, name.count)
    return paths, tuple(headers)


def _read(path: Path) -> Header:
    with FileSource(path) as source:
        return read_header(source)


def _without_metadata(header: Header) -> Header:
    """The header with the keys that tell parts apart only.

    Every part may repeat all metadata, and those of many parts together take much memory.
    """
    kept = {key: value for key, value in header.metadata.items() if key in _KEPT}
    return dataclasses.replace(header, metadata=kept)


def _all_parts(path: Path, name: PartName) -> tuple[Path, ...]:
    try:
        here = {entry.name for entry in path.parent.iterdir()}
    except OSError:  # a folder may allow its files to be opened but not listed
        here = {n for i in range(name.count) if (path.parent / (n := name.sibling(i + 1))).exists()}
    wanted = [name.sibling(i + 1) for i in range(name.count)]
    missing = [clean_line(n) for n in wanted if n not in here]
    if missing:
        listed = ", ".join(missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ModelFileError(
            f"{len(missing)} of {name.count} parts missing: {listed}{more}", hint=_HINT
        )
    return tuple(path.parent / n for n in wanted)


def _check(paths: tuple[Path, ...], headers: list[Header], count: int) -> None:
    architecture = headers[0].metadata.get("general.architecture")
    for number, (path, header) in enumerate(zip(paths, headers, strict=True), start=1):
        name = clean_line(path.name)
        if (found := _split(header, "split.count", 1)) != count:
            raise _mixed(f"{name} belongs to a set of {found}, not of {count}")
        if (found := _split(header, "split.no", 0) + 1) != number:
            raise _mixed(f"{name} holds part {found}")
        other = header.metadata.get("general.architecture", architecture)
        if other != architecture:
            raise _mixed(f"{name} is of another model ({clean_line(str(other))[:60]})")
    total = sum(len(header.tensors) for header in headers)
    expected = _split(headers[0], "split.tensors.count", total)
    if total != expected:
        raise _mixed(f"{clean_line(paths[0].name)} promises {expected} tensors; there are {total}")
    names: set[str] = set()
    for path, header in zip(paths, headers, strict=True):
        for tensor in header.tensors:
            if tensor.name in names:
                shown = clean_line(tensor.name)
                raise _mixed(f'{clean_line(path.name)} repeats the tensor "{shown}"')
            names.add(tensor.name)


def _split(header: Header, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if not isinstance(value, int):
        raise ModelFileError(f"{key} is not a number", hint=_MIXED)
    return value


def _mixed(what: str) -> ModelFileError:
    return ModelFileError(f"mixed-up parts: {what}", hint=_MIXED)
