"""The names that people type or paste for a model, taken apart without a look at disk or network.

======================================== =========================================================
form                                     what it names
======================================== =========================================================
``alias``, ``alias:QUANT``               a family of the catalog, or a model that is here
``user/repo``, ``user/repo:QUANT``       a repository of the Hub, and which of its models
``user/repo:FILE``, ``user/repo/FILE``   one file of it; in the first form also a folder
``user/repo@REVISION``                   the same at a branch, a tag, a commit or ``refs/pr/3``
``hf://…``, ``hf:…``, ``-hf …``          the same, as other programs write it
``huggingface.co/…``, ``hf.co/…``        any page of a repository, with or without ``https://``
``ollama.com/library/…``, ``ollama://…`` what Ollama calls it
``file:///…``                            a path
======================================== =========================================================

``:latest`` is how Ollama says that no quantization was chosen. Case never matters but in what
people call their own files, and blanks around a name are not part of it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from localmoe.facts.local_files import is_gguf, quant_of

_INVISIBLE = " \t\r\n\v\f\u00a0\u200b\u2060\ufeff"
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_REPO = re.compile(f"{_PART}/{_PART}", re.ASCII)
_REVISION = r"refs/(?:pr|heads|convert)/[^/:@]+|[^/:@]+"
# user/repo, then @REVISION, /PATH and :WANTED, each optional; or :WANTED@REVISION.
_REFERENCE = re.compile(
    rf"({_PART}/{_PART})(?:@({_REVISION}))?(?:/([^:]*))?(?::([^@]*))?(?:@({_REVISION}))?", re.ASCII
)
_WORD = re.compile(rf"([^/:@]*)(?:@({_REVISION}))?(?::([^@]*))?(?:@({_REVISION}))?")
_SCHEME = re.compile(r"(?:hf|huggingface):(?://)?", re.IGNORECASE)
_OPTION = re.compile(r"(?:-hf|-hfr|--hf-repo)(?:\s+|=)", re.IGNORECASE)  # of llama.cpp
# With or without a scheme; "git@hf.co:" is what `git clone` takes.
_HOST = re.compile(
    r"(?:(?:https?|ssh)://)?(?:git@)?(?:www\.)?(?:huggingface\.co|hf\.co)(?:[/:]|$)",
    re.IGNORECASE,
)
_LOGIN = re.compile(r"(?<=://)[^/@]*:[^/@]*@")  # a token in an address is shown to nobody
_REF = re.compile(r"refs/(?:pr|heads|convert)/[^/:@]+")
_WEB = re.compile(r"https?://", re.IGNORECASE)
_PAGES = ("blob", "resolve", "raw", "tree", "blame", "edit", "commit", "commits")
_OTHER_KINDS = {
    "datasets": "a data set",
    "spaces": "a Space",
    "collections": "a collection",
    "papers": "a paper",
    "blog": "an article",
    "docs": "documentation",
    "models": "a search",
    "organizations": "a publisher",
}
_NO_QUANT = ("latest",)
# A page of Ollama's library, and what it writes for its own models.
_OLLAMA = re.compile(
    r"(?:ollama://|(?:https?://)?(?:www\.|registry\.)?ollama\.(?:com|ai)/)(?:library/)?",
    re.IGNORECASE,
)
_FILE = re.compile(r"file://(?:localhost)?(?=/)", re.IGNORECASE)
_OTHER_WEIGHTS = re.compile(r"\.(?:safetensors|pth|ckpt|onnx)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Name:
    """A typed name. ``base`` is ``user/repo`` or one word."""

    text: str  # as it was typed, without blanks around
    base: str
    wanted: str = ""  # a quantization, a file's path or a folder in the repository
    revision: str | None = None  # None: not said, so the Hub's main
    is_repo: bool = False  # whether ``base`` is a repository of the Hub
    refused: str = ""  # what it is instead, when the form alone shows that it is no model
    refused_by_hub: bool = False  # whether that is something of the Hub

    @property
    def refused_hint(self) -> str:
        """What to type instead of a name that is refused."""
        if self.refused_by_hub:
            return "name a repository that has GGUF files: USER/REPO, USER/REPO:QUANT"
        return (
            "models come from the Hub: USER/REPO:QUANT; from a mirror of it with HF_ENDPOINT; "
            "any other file: download it, then localmoe run PATH"
        )


def read_name(text: str) -> Name:
    """Take a name apart. Whatever fits no form is a name of one word: ``base`` is all of it."""
    text = _LOGIN.sub("", text.strip(_INVISIBLE))
    if at := _FILE.match(text):
        text = unquote(text[at.end() :])
    rest = _OPTION.sub("", text, count=1).strip(_INVISIBLE)
    address = _below_host(rest)
    if address is not None:
        return _of_page(text, address)
    if is_of_ollama(rest):
        return _of_word(text, _OLLAMA.sub("", rest, count=1))
    if scheme := _SCHEME.match(rest):
        rest = rest[scheme.end() :]
    if scheme or (rest.count("/") > 1 and not is_gguf(rest)):  # "datasets/user/data"
        rest = rest.removeprefix("models/")
        kind, _, below = rest.partition("/")
        if below and kind.lower() in _OTHER_KINDS:
            return _refused(text, f"{_OTHER_KINDS[kind.lower()]} of the Hub, not a model")
    if _OTHER_WEIGHTS.search(rest):
        return _refused(text, "a file of weights that is no GGUF")
    if scheme:
        return _of_reference(text, rest) or _of_word(text, rest)
    if _WEB.match(rest):
        return Name(text, rest, refused="an address that is not the Hub's")
    if is_written_as_path(rest):
        return Name(text, rest)
    return _of_reference(text, rest) or _of_word(text, rest)


def is_of_ollama(text: str) -> bool:
    """Whether it is an address of Ollama's library."""
    return _OLLAMA.match(text) is not None


def is_written_as_path(text: str) -> bool:
    """Whether the form of a name is that of a path, and nothing else's."""
    return text.startswith(("/", "./", "../", "~/", "~"))


def _of_reference(text: str, rest: str) -> Name | None:
    """``user/repo`` with what may follow; None for another form."""
    spaced = re.sub(r"\s*:\s*", ":", _decoded_revision(rest))
    found = _REFERENCE.fullmatch(spaced.rstrip("/"))
    if found is None or ".." in found[1]:
        return None
    if is_gguf(rest) and rest == found[1] and rest == text:
        return None  # folder/file.gguf
    repo, path, wanted = found[1], (found[3] or "").strip("/"), (found[4] or "").strip()
    revision = found[2] or found[5]
    if _REF.fullmatch(unquote(wanted)):
        revision, wanted = unquote(wanted), ""
    if path:
        page = _of_segments(text, repo, path.split("/"))
        if page is not None:
            return page
        if not (is_gguf(path) or quant_of(PurePosixPath(path)) or rest != text):
            return None  # three words and two strokes are no file of a repository
        wanted = path if not wanted else f"{path}/{wanted}"
    return Name(text, repo, _without_tag(wanted), _not_main(revision), is_repo=True)


def _of_word(text: str, rest: str) -> Name:
    found = _WORD.fullmatch(_decoded_revision(rest))
    if found is None or not found[1]:
        return Name(text, rest)
    revision = found[2] or found[4]
    return Name(text, found[1], _without_tag((found[3] or "").strip()), _not_main(revision))


def _below_host(text: str) -> str | None:
    """What follows the Hub's host in an address, or that of ``HF_ENDPOINT``; else None."""
    if host := _HOST.match(text):
        return text[host.end() :]
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if endpoint and f"{text}/".lower().startswith(f"{endpoint}/".lower()):
        return text[len(endpoint) :].lstrip("/")
    return None


def _of_page(text: str, address: str) -> Name:
    """A page of the Hub's web site; ``address`` is what follows the host."""
    try:
        parts = urlsplit(f"//host/{address}")
        shown = parse_qs(parts.query).get("show_file_info", [""])[-1].strip("/")
    except ValueError:
        return _refused(text, "no address of the Hub")
    segments = [segment for segment in parts.path.split("/") if segment]
    if segments[:1] == ["api"]:
        segments = segments[1:]
    if segments[:1] == ["models"] and len(segments) >= 3:
        segments = segments[1:]
    kind = segments[0].lower() if segments else ""
    if kind in _OTHER_KINDS:
        return _refused(text, f"{_OTHER_KINDS[kind]} of the Hub, not a model")
    if len(segments) < 2:
        return _refused(text, "a page of the Hub that is no model's")
    segments[1] = segments[1].removesuffix(".git")
    repo = "/".join(segments[:2])
    found = _REFERENCE.fullmatch(_decoded_revision("/".join(segments)))
    page = _of_segments(text, repo, segments[2:])
    if page is None and found is not None:
        wanted = found[4] or (found[3] if found[3] and is_gguf(found[3]) else "")
        wanted = _without_tag(unquote(wanted or ""))
        page = Name(text, found[1], wanted, _not_main(found[2] or found[5]), is_repo=True)
    if page is None or ".." in page.base or not _REPO.fullmatch(page.base):
        return _refused(text, "a page of the Hub that is no model's")
    if shown:
        return replace(page, wanted=shown)
    return page


def _of_segments(text: str, repo: str, segments: list[str]) -> Name | None:
    """``blob/REVISION/PATH``, ``refs/pr/3/PATH`` and the like, as they follow a repository.

    None for anything else.
    """
    page = segments[0] if segments and segments[0] in _PAGES else ""
    named = [part for s in segments[bool(page) :] for part in _revision_segment(s)]
    if not named or not (page or _REF.match("/".join(named))):
        return None
    count = 3 if named[0] == "refs" and len(named) >= 3 else 1
    revision, path = "/".join(named[:count]), "/".join(map(unquote, named[count:]))
    path, _, wanted = path.partition(":")
    if page in ("commit", "commits"):
        path = ""
    return Name(text, repo, _without_tag(wanted) or path, _not_main(revision), is_repo=True)


def _revision_segment(segment: str) -> list[str]:
    """``refs%2Fpr%2F3`` is three segments; in a file's name a ``%2F`` stays what it is."""
    decoded = unquote(segment)
    return decoded.split("/") if decoded.startswith("refs/") else [segment]


def _decoded_revision(text: str) -> str:
    return re.sub(r"(?<=@)refs%2F(\w+)%2F", r"refs/\1/", text, flags=re.IGNORECASE)


def _refused(text: str, what: str) -> Name:
    return Name(text, text, refused=what, refused_by_hub=True)


def _without_tag(wanted: str) -> str:
    return "" if wanted.lower() in _NO_QUANT else wanted


def _not_main(revision: str | None) -> str | None:
    revision = revision and unquote(revision).removeprefix("refs/heads/")
    return None if revision == "main" else revision
