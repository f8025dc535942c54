"""What a name means: repositories, the models in them, and everything that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from localmoe.errors import TransferError, UnknownModelError
from localmoe.facts import catalog, file_kind
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
    contents = names.contents(files(*(paths or LISTING)))
    return names.choose(contents.models, reference, contents.others)


@pytest.mark.parametrize(
    ("name", "repo", "wanted", "revision"),
    [
        ("someone/M-GGUF", "someone/M-GGUF", "", None),
        ("someone/M-GGUF:q4_k_m", "someone/M-GGUF", "q4_k_m", None),
        ("someone/M-GGUF:i1-Q4_K_M", "someone/M-GGUF", "i1-Q4_K_M", None),
        ("someone/M-GGUF:a/M-Q4_K_M.gguf", "someone/M-GGUF", "a/M-Q4_K_M.gguf", None),
        ("glm-4.6", "unsloth/GLM-4.6-GGUF", "", None),
        ("GLM-4.6:UD-Q4_K_XL", "unsloth/GLM-4.6-GGUF", "UD-Q4_K_XL", None),
        # Ollama's tag for "no quantization chosen".
        ("someone/M-GGUF:latest", "someone/M-GGUF", "", None),
        ("glm-4.6:LATEST", "unsloth/GLM-4.6-GGUF", "", None),
        # Blanks around, also those that nobody sees.
        ("  someone/M-GGUF:Q8_0\n", "someone/M-GGUF", "Q8_0", None),
        ("\u00a0someone/M-GGUF\u200b", "someone/M-GGUF", "", None),
        # A file behind the repository.
        ("a/b/M-Q8_0.gguf", "a/b", "M-Q8_0.gguf", None),
        ("a/b/c/M-Q8_0.GGUF", "a/b", "c/M-Q8_0.GGUF", None),
        ("a/b/UD-Q4_K_XL", "a/b", "UD-Q4_K_XL", None),
        ("a/b/blob/main/c/d.gguf", "a/b", "c/d.gguf", None),
        # As other programs write it.
        ("hf://a/b", "a/b", "", None),
        ("hf://a/b:Q8_0", "a/b", "Q8_0", None),
        ("HF://a/b/c/d.gguf", "a/b", "c/d.gguf", None),
        ("hf:a/b:Q8_0", "a/b", "Q8_0", None),
        ("hf://models/a/b", "a/b", "", None),
        ("-hf a/b:Q8_0", "a/b", "Q8_0", None),
        ("--hf-repo a/b", "a/b", "", None),
        ("-hfr=a/b", "a/b", "", None),
        # A revision.
        ("a/b@v2", "a/b", "", "v2"),
        ("a/b@v2:Q8_0", "a/b", "Q8_0", "v2"),
        ("a/b:Q8_0@v2", "a/b", "Q8_0", "v2"),
        ("a/b@main:Q8_0", "a/b", "Q8_0", None),
        ("a/b@refs/pr/3", "a/b", "", "refs/pr/3"),
        ("a/b@refs/pr/3:Q8_0", "a/b", "Q8_0", "refs/pr/3"),
        ("a/b:Q8_0@refs/pr/3", "a/b", "Q8_0", "refs/pr/3"),
        ("hf://a/b@refs%2Fpr%2F3/d.gguf", "a/b", "d.gguf", "refs/pr/3"),
        ("glm-4.6@v2:Q8_0", "unsloth/GLM-4.6-GGUF", "Q8_0", "v2"),
        ("a/b:refs/pr/3", "a/b", "", "refs/pr/3"),
        ("a/b:refs%2Fpr%2F3", "a/b", "", "refs/pr/3"),
        ("a/b/refs/pr/3", "a/b", "", "refs/pr/3"),
        ("a/b/refs%2Fpr%2F3/c/d.gguf", "a/b", "c/d.gguf", "refs/pr/3"),
        ("a/b/tree/refs/pr/3", "a/b", "", "refs/pr/3"),
        ("a/b : Q8_0", "a/b", "Q8_0", None),
        # Pages of the Hub.
        ("https://huggingface.co/a/b.git", "a/b", "", None),
        ("git@hf.co:a/b.git", "a/b", "", None),
        ("https://me:hf_secret@huggingface.co/a/b", "a/b", "", None),
        ("https://huggingface.co/a/b", "a/b", "", None),
        ("huggingface.co/a/b/", "a/b", "", None),
        ("hf.co/a/b:Q8_0", "a/b", "Q8_0", None),
        ("HF.co/a/b:latest", "a/b", "", None),
        ("HTTPS://HuggingFace.co/a/b", "a/b", "", None),
        ("https://www.huggingface.co/a/b#usage", "a/b", "", None),
        ("https://huggingface.co/models/a/b", "a/b", "", None),
        ("https://huggingface.co/api/models/a/b", "a/b", "", None),
        ("https://huggingface.co/a/b/blob/main/c/d.gguf", "a/b", "c/d.gguf", None),
        ("https://hf.co/a/b/resolve/v2/d.gguf?download=true", "a/b", "d.gguf", "v2"),
        ("https://huggingface.co/a/b/tree/main/UD-Q4_K_XL", "a/b", "UD-Q4_K_XL", None),
        ("https://huggingface.co/a/b/blob/main/d%20e.gguf", "a/b", "d e.gguf", None),
        ("https://huggingface.co/a/b?show_file_info=d.gguf", "a/b", "d.gguf", None),
        ("https://huggingface.co/a/b/tree/v2?x=1&show_file_info=c%2Fd.gguf", "a/b", "c/d.gguf",
         "v2"),
        ("https://huggingface.co/a/b/tree/refs%2Fpr%2F3", "a/b", "", "refs/pr/3"),
        ("https://huggingface.co/a/b/blob/refs%2Fpr%2F3/c/d.gguf", "a/b", "c/d.gguf", "refs/pr/3"),
        ("https://huggingface.co/a/b/resolve/refs/pr/12/d.gguf", "a/b", "d.gguf", "refs/pr/12"),
        ("https://huggingface.co/a/b/commit/0123456789ab", "a/b", "", "0123456789ab"),
        ("https://huggingface.co/a/b/discussions/3", "a/b", "", None),
    ],
)  # fmt: skip
def test_what_a_name_means(name: str, repo: str, wanted: str, revision: str | None) -> None:
    """Aliases, repositories and URLs, each with what is asked of them."""
    found = names.parse(name)
    assert found is not None
    assert (found.repo, found.wanted, found.revision) == (repo, wanted, revision)
    assert "hf_secret" not in found.text
    assert (found.entry is None) == (not name.lower().startswith("glm"))


PAGE = Path(__file__).parents[2] / "docs" / "names.md"


def rows_of(columns: int) -> list[list[str]]:
    """The rows of the tables in docs/names.md with so many columns."""
    lines = (line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `"))
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if len(row) == columns]


@pytest.mark.parametrize(("typed", "repo", "wanted", "revision"), rows_of(4))
def test_the_page_of_names(typed: str, repo: str, wanted: str, revision: str) -> None:
    """What docs/names.md says a form means is what it means."""
    found = names.parse(typed)
    assert found is not None
    assert (found.repo, found.wanted, found.revision or "") == (repo, wanted, revision)


@pytest.mark.parametrize(("typed", "what"), rows_of(2))
def test_the_page_of_refused_names(typed: str, what: str) -> None:
    """And what it says is refused is refused for that."""
    with pytest.raises(UnknownModelError, match=what):
        names.parse(typed)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("https://huggingface.co/datasets/a/b", "a data set"),
        ("hf://datasets/a/b", "a data set"),
        ("hf.co/spaces/a/b", "a Space"),
        ("https://huggingface.co/collections/a/b-123", "a collection"),
        ("https://huggingface.co/papers/2401.04088", "a paper"),
        ("https://huggingface.co/models?search=moe", "a search"),
        ("https://huggingface.co/someone", "no model's"),
        ("https://huggingface.co/", "no model's"),
        ("https://example.com/m.gguf", "not the Hub's"),
        ("http://example.com/a/b", "not the Hub's"),
    ],
)
def test_addresses_of_something_else(name: str, words: str) -> None:
    """Each says what it is instead, with exit code 2 and the form that works."""
    for ask in (names.parse, catalog.resolve):
        with pytest.raises(UnknownModelError, match=words) as caught:
            ask(name)
        assert caught.value.exit_code == 2
        assert "USER/REPO:QUANT" in (caught.value.hint or "")


def test_the_endpoints_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs of a mirror are understood when ``HF_ENDPOINT`` names it, else refused with that."""
    url = "http://mirror.example:8080/a/b/blob/main/c.gguf"
    with pytest.raises(UnknownModelError, match="not the Hub's") as caught:
        names.parse(url)
    assert "HF_ENDPOINT" in (caught.value.hint or "")
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
        ("M-Q8_0.gguf", "Q8_0/M-Q8_0-00001-of-00003.gguf"),
        ("Q4_K_M.gguf", "M-Q4_K_M.gguf"),
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


@pytest.mark.parametrize("asked", ["mmproj-M-F16.gguf", "F16"])
def test_a_side_file_by_name(asked: str) -> None:
    """Asked for by name or quantization, a projector is said to be one, and what there is."""
    with pytest.raises(
        UnknownModelError, match=r"mmproj-M-F16\.gguf is a side .*projector"
    ) as caught:
        chosen(f"a/b:{asked}")
    assert "it has Q4_K_M, " in (caught.value.hint or "")


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
    """A name that would fool a terminal or another system is that of no model.

    The other models of its repository can be had; it cannot, whatever it is asked for by. A name
    made to lead out of the folder refuses the whole repository.
    """
    with pytest.raises(TransferError, match="unsafe name") as caught:
        names.check_path(path)
    assert caught.value.message.isprintable()
    if names.leads_out(path):
        with pytest.raises(TransferError, match="unsafe name"):
            names.contents(files("M-Q4_K_M.gguf", path))
        return
    contents = names.contents(files("M-Q4_K_M.gguf", path))
    assert [model.name for model in contents.models] == ["M-Q4_K_M"]
    if path.endswith(".gguf"):
        with pytest.raises(TransferError, match="unsafe name"):
            names.choose(contents.models, Reference("x", "a/b", path), contents.others)


@pytest.mark.parametrize(
    ("path", "hostile"),
    [("../x.gguf", True), ("a/../../x", True), ("/x.gguf", True), ("a//x", True), ("", True),
     ("x\0.gguf", True), ("C:\\x.gguf", False), ("a:b.gguf", False), ("x\u202e.gguf", False)],
)  # fmt: skip
def test_which_names_condemn_a_repository(path: str, hostile: bool) -> None:
    """Those that lead out of a folder, which git has none of; an odd one is only left out."""
    assert names.leads_out(path) is hostile


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
    path = names.parse("models/mine/x-Q8_0.gguf")
    assert path is not None
    assert "no file models/mine/x-Q8_0.gguf here" in names.not_on_hub(path).message


def sized(path: str, size: int) -> RepoFile:
    return RepoFile(path, size, f"{abs(hash(path)):064x}"[:64])


def test_labels_are_what_choose_takes() -> None:
    """What a listing calls a model means that model and no other, whatever their names share."""
    paths = ("Two-Q4_K_M.gguf", "Two-v2-Q4_K_M.gguf", "old/Two-Q4_K_M.gguf", "Two-Q8_0.gguf",
             "plain.gguf", "x/IQ2_M/part-00001-of-00001.gguf", "Case.gguf", "case.gguf",
             "M.i1-Q6_K.gguf")  # fmt: skip
    found = models(*paths)
    assert len(found) == len(paths)
    assert len({model.label for model in found}) == len(paths)
    assert {"Q8_0", "IQ2_M", "Q6_K", "old/Two-Q4_K_M.gguf"} <= {model.label for model in found}
    for model in found:
        assert chosen(f"a/b:{model.label}", *paths) == model
        again = names.parse(f"a/b/{model.files[0].path}")
        assert again is not None
        assert names.choose(found, again) == model


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ("i1-Q4_K_M", "M.i1-Q4_K_M.gguf"),
        ("I1-q4_k_m", "M.i1-Q4_K_M.gguf"),
        ("M.Q4_K_M", "M.Q4_K_M.gguf"),
        ("Q6_K", "M.i1-Q6_K.gguf"),
        ("M.I1-Q6_K", "M.i1-Q6_K.gguf"),
        ("case.gguf", "case.gguf"),
        ("Case.gguf", "Case.gguf"),
        ("MXFP4_MOE", "M-MXFP4_MOE.gguf"),
        ("Q5_K_M", "Q5_K_M/weights.GGUF"),
        ("sub/deep", "sub/deep/other.gguf"),
    ],
)
def test_other_ways_to_choose(asked: str, path: str) -> None:
    """The end of a file's name, a folder's quantization, names that differ in case only."""
    paths = ("M.i1-Q4_K_M.gguf", "M.Q4_K_M.gguf", "M.i1-Q6_K.gguf", "Case.gguf", "case.gguf",
             "M-MXFP4_MOE.gguf", "Q5_K_M/weights.GGUF", "sub/deep/other.gguf")  # fmt: skip
    found = chosen(f"a/b:{asked}", *paths)
    assert found is not None
    assert found.files[0].path == path


@pytest.mark.parametrize(
    "main", ["Ornith-9B-MTP-Q4_K_M.gguf", "Draft-Horse-7B-Q4_K_M.gguf", "M-imatrix-Q4_K_M.gguf",
             "eagle-7b-Q4_K_M.gguf", "My-Assistant-Q4_K_M.gguf"],
)  # fmt: skip
def test_a_model_with_the_name_of_a_draft(main: str) -> None:
    """Alone it is the model; beside others its header decides, not its name."""
    alone = chosen("a/b:Q4_K_M", main, "mmproj-x-BF16.gguf")
    assert alone is not None
    assert alone.files[0].path == main
    listing = files(main, "M-Q8_0.gguf")
    assert main in [file.path for file in names.doubtful(listing)]
    for kind, count in ((file_kind.MODEL, 2), (file_kind.DRAFT, 1)):
        assert len(names.contents(listing, {main: kind}).models) == count


def test_a_draft_with_the_name_of_a_model() -> None:
    """What a header has called a draft is none of the models, and is said to be a draft."""
    listing = files("M-MXFP4.gguf", "small-Q8_0.gguf")
    contents = names.contents(listing, {"small-Q8_0.gguf": file_kind.DRAFT})
    assert [model.label for model in contents.models] == ["MXFP4"]
    for wanted in ("Q8_0", "small-Q8_0.gguf"):
        with pytest.raises(UnknownModelError, match="a draft for speculative decoding") as caught:
            names.choose(contents.models, Reference("x", "a/b", wanted), contents.others)
        assert caught.value.hint == "it has MXFP4"


def test_a_small_model_as_a_draft() -> None:
    """With a draft's name and half the size of the same quantization, a model is a draft."""
    listing = [sized("M-Q8_0.gguf", 3000), sized("draft-M-Q8_0.gguf", 900),
               sized("M-MTP-Q8_0.gguf", 3100)]  # fmt: skip
    kinds = dict.fromkeys(("draft-M-Q8_0.gguf", "M-MTP-Q8_0.gguf"), file_kind.MODEL)
    found = names.contents(listing, kinds)
    assert [model.name for model in found.models] == ["M-Q8_0", "M-MTP-Q8_0"]
    assert found.others == {"draft-M-Q8_0.gguf": "a side file"}


@pytest.mark.parametrize("piece", ["M-Q8_0.gguf.part1of2", "M-Q8_0.gguf-split-a", "M-Q8_0.gguf.aa"])
def test_pieces_of_a_file(piece: str) -> None:
    """A file cut by other tools is no model; asked for, the error says how to join it."""
    for asked in ("Q8_0", piece, "M-Q8_0.gguf"):
        reference = Reference("x", "a/b", asked)
        contents = names.contents(files("M-Q4_K_M.gguf", piece))
        with pytest.raises(UnknownModelError, match=r"a piece of M-Q8_0\.gguf") as caught:
            names.choose(contents.models, reference, contents.others)
        assert "cat M-Q8_0.gguf?* > M-Q8_0.gguf" in (caught.value.hint or "")
