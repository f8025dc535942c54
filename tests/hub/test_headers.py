"""Headers over the network: what they cost, that they are right, and everything that goes wrong.

The client is huggingface_hub's session against a local server with two hosts, of which the storage
refuses any request with a token in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from localmoe.engine.oracle import Oracle
from localmoe.engine.process import WorkerProcess
from localmoe.errors import LocalmoeError, ModelFileError, TransferError
from localmoe.facts.model import Model, read_model
from localmoe.hub import client, headers, names, skeleton
from localmoe.hub.compact import Compact
from localmoe.hub.header_cache import HeaderCache
from localmoe.hub.listing import list_files
from localmoe.hub.names import ModelFiles
from localmoe.hub.patience import Patience
from localmoe.hub.ranges import RemoteSource, Traffic
from localmoe.hub.refusals import RefusedFileError
from localmoe.planning.memory import EngineSettings
from scripts.make_standin import hollow_data
from tests.archs import ARCHITECTURES
from tests.archs.families import FAMILIES
from tests.archs.vocabulary import vocabulary
from tests.archs.writer import write
from tests.hub import standins
from tests.hub.content import Generated
from tests.hub.server import Fault, HubServer

MIB = 1 << 20
REPO = "someone/M-GGUF"
TOKEN = "hf_ofthetestsalone"
QUICK = Patience(tries=3, first=0.01, longest=1)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """The server, as the Hub of this test; retries are quick."""
    with HubServer() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
        server.tokens.add(TOKEN)
        yield server


class Fetched:
    """What one look at a repository brought."""

    def __init__(
        self, wanted: str = "", cache: HeaderCache | None = None, patience: Patience = QUICK
    ) -> None:
        reference = names.parse(REPO + (f":{wanted}" if wanted else ""))
        assert reference is not None
        listing = list_files(reference)
        self.models: Sequence[ModelFiles] = names.model_files(listing.files)
        if wanted:
            chosen = names.choose(self.models, reference)
            assert chosen is not None
            self.models = [chosen]
        self.traffic = Traffic(patience)
        self.headers = headers.fetch(
            reference, listing.commit, self.models, self.traffic, cache or HeaderCache()
        )
        refused = [h for h in self.headers.values() if isinstance(h, RefusedFileError)]
        if len(refused) == len(self.headers):
            raise refused[0]

    @contextlib.contextmanager
    def skeletons(self) -> Iterator[list[Model]]:
        with skeleton.skeletons(self.models, self.headers) as found:
            ready = [model for model in found.values() if isinstance(model, Model)]
            assert len(ready) == len(found), found
            yield ready


def local(paths: Sequence[Path]) -> Model:
    return read_model(paths[0])


def assert_same(remote: Model, here: Model) -> None:
    """Equal but for the paths and what only a vocabulary can tell."""
    assert remote.tensors == here.tensors
    assert remote.layers == here.layers
    for field in ("name", "size", "header_bytes", "architecture", "quantization", "parameters"):
        assert getattr(remote, field) == getattr(here, field), field
    assert remote.active_parameters == here.active_parameters
    assert remote.context_train == here.context_train
    assert remote.chat_template == here.chat_template


def test_one_quantization(hub: HubServer, twenty: list[list[Path]]) -> None:
    """Costs at most 1.2 times its header and 1 MiB; a second time, no content at all."""
    for paths in (twenty[7], twenty[-1]):
        hub.add(REPO, standins.served([path for paths in twenty for path in paths]))
        hub.forget()
        here = local(paths)
        found = Fetched(here.quantization)
        assert found.traffic.transferred <= 1.2 * here.header_bytes + MIB
        # The server's own count, of both hosts, is the same but for the listing.
        assert hub.sent("sig=") == found.traffic.transferred
        assert found.traffic.requests == len(hub.seen("/resolve/")) + len(hub.seen("sig="))
        with found.skeletons() as (remote,):
            assert_same(remote, here)
        hub.forget()
        again = Fetched(here.quantization)
        assert (again.traffic.transferred, again.traffic.requests) == (0, 0)
        assert hub.seen(host="storage") == []
        assert again.headers == found.headers


def test_twenty_quantizations(hub: HubServer, twenty: list[list[Path]]) -> None:
    """Together at most five times the largest header; each equals its file to the byte."""
    hub.add(REPO, standins.served([path for paths in twenty for path in paths]))
    found = Fetched()
    here = {local(paths).name: local(paths) for paths in twenty}
    assert found.traffic.transferred <= 5 * max(model.header_bytes for model in here.values())
    assert hub.sent("sig=") == found.traffic.transferred
    with found.skeletons() as remotes:
        assert len(remotes) == len(here) == 20
        for remote in remotes:
            assert_same(remote, here[remote.name])
    whole = [h for path, h in found.headers.items() if "-of-" not in path]
    assert all(isinstance(h, Compact) and h.block is not None for h in whole)
    again = Fetched()
    assert (again.traffic.transferred, again.traffic.requests) == (0, 0)


def test_the_token_stays_with_the_hub(hub: HubServer, twenty: list[list[Path]]) -> None:
    """A gated file is read with the token; the host that the Hub redirects to never sees it."""
    hub.add(REPO, standins.served(twenty[0]), gated=True, readers=frozenset({TOKEN}))
    Fetched()
    assert all("authorization" in r.headers for r in hub.seen("/resolve/", host="hub"))
    assert hub.seen(host="storage")
    assert not any("authorization" in r.headers for r in hub.seen(host="storage"))


def test_the_storage_is_found_once(hub: HubServer, twenty: list[list[Path]]) -> None:
    """Of one file, only the first range asks the Hub where it is."""
    hub.add(REPO, standins.served(twenty[0]))
    Fetched()
    assert len(hub.seen("/resolve/")) == 1
    assert len(hub.seen("sig=")) > 3


SETTINGS = [
    EngineSettings(context, type_k=kv, type_v=kv, load_mode=mode)
    for context in (512, 4096)
    for kv in ("f16", "q8_0")
    for mode in ("none", "mmap")
]


@pytest.mark.process
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_engines_answer_is_the_same(architecture: str, hub: HubServer, tmp_path: Path) -> None:
    """To the byte, per architecture, context, KV type and load mode, without the vocabulary."""
    family = FAMILIES[architecture]
    family = replace(family, dims=replace(family.dims, vocab=8192))
    paths = write(
        family.recipe(),
        tmp_path / "m-Q4_K_M.gguf",
        data=hollow_data,
        vocabulary=standins.published_vocabulary(8192),
        file_type=family.storage.file_type,
        name="m",
        split=2,
    )
    hub.add(REPO, standins.served(paths))
    found = Fetched()
    first = found.headers[paths[0].name]
    assert isinstance(first, Compact)
    assert first.cut > 100_000  # the vocabulary is gone
    here = local(paths)
    worker = WorkerProcess()
    with contextlib.closing(worker), found.skeletons() as (remote,):
        assert_same(remote, here)
        with Oracle(here, worker) as file, Oracle(remote, worker) as skeletal:
            for settings in SETTINGS:
                assert skeletal(settings) == file(settings), settings


@pytest.mark.parametrize("kept", [True, False])
def test_other_vocabularies_are_noticed(hub: HubServer, tmp_path: Path, kept: bool) -> None:
    """Files that do not share one vocabulary are each read in full, and each rightly."""
    family = FAMILIES["qwen3moe"]
    family = replace(family, dims=replace(family.dims, vocab=8192))
    mine = standins.published_vocabulary(8192)
    # Longer by one byte at its start, its end, or of other words of the same length.
    others = {
        "A": mine,
        "B": replace(mine, tokens=(mine.tokens[0] + "x", *mine.tokens[1:])),
        "C": replace(mine, merges=(*mine.merges[:-1], mine.merges[-1] + "x")),
        "D": replace(mine, merges=(*mine.merges[:-1], "Ġz z")),
        "E": vocabulary(8192),
    }
    paths = [
        write(
            family.recipe(),
            tmp_path / f"{name}-Q4_K_M.gguf",
            data=hollow_data,
            vocabulary=words,
            file_type=family.storage.file_type,
            name="m" * (30 if kept else 31),
        )[0]
        for name, words in others.items()
    ]
    hub.add(REPO, standins.served(paths))
    found = Fetched()
    with found.skeletons() as remotes:
        for remote in remotes:
            (path,) = (p for p in paths if p.stem == remote.name)
            assert_same(remote, local([path]))
    assert found.traffic.transferred > 0.9 * sum(local([path]).header_bytes for path in paths)


def test_a_shared_vocabulary_behind_other_metadata(hub: HubServer, tmp_path: Path) -> None:
    """A longer name before and a longer template behind the vocabulary: still shared, and right."""
    family = FAMILIES["qwen3moe"]
    family = replace(family, dims=replace(family.dims, vocab=8192))
    paths = [
        write(
            family.recipe(),
            tmp_path / f"m-{quant}.gguf",
            data=hollow_data,
            vocabulary=standins.published_vocabulary(8192),
            file_type=family.storage.file_type,
            name=name,
            template=template,
        )[0]
        for quant, name, template in (
            ("Q2_K", "m", "{{ messages }}"),
            ("Q4_K_M", "a much longer name" * 20, "{{ messages }}" * 3000),
        )
    ]
    hub.add(REPO, standins.served(paths))
    found = Fetched()
    small, large = (local([path]) for path in paths)
    assert large.header_bytes > 350_000
    assert hub.sent(large.name) < 160_000
    with found.skeletons() as remotes:
        for remote in remotes:
            assert_same(remote, small if remote.name == small.name else large)
            assert remote.chat_template is not None


def test_a_small_vocabulary_stays(hub: HubServer, tmp_path: Path) -> None:
    """A header without a long vocabulary is kept as it is."""
    family = FAMILIES["qwen3moe"]
    (path,) = write(
        family.recipe(),
        tmp_path / "m-Q4_K_M.gguf",
        data=hollow_data,
        vocabulary=vocabulary(512),
        file_type=family.storage.file_type,
        name="m",
    )
    hub.add(REPO, standins.served([path]))
    found = Fetched()
    (header,) = found.headers.values()
    assert isinstance(header, Compact)
    assert (header.cut, header.data) == (0, standins.header_of(path))


def test_the_cache_is_bounded_and_trusts_nothing(
    hub: HubServer, twenty: list[list[Path]], tmp_path: Path
) -> None:
    """The headers used last stay; a damaged entry is fetched again."""
    hub.add(REPO, standins.served([path for paths in twenty[:4] for path in paths]))
    cache = HeaderCache(tmp_path / "cache", limit=120_000)
    Fetched(cache=cache)
    entries = sorted(cache.folder.iterdir())
    assert len(entries) == 4
    assert all(entry.stat().st_mode & 0o777 == 0o600 for entry in entries)
    cache.prune()
    left = list(cache.folder.iterdir())
    assert 0 < len(left) < 4
    assert sum(path.stat().st_size for path in left) <= 120_000
    Fetched(cache=cache)
    for number, entry in enumerate(sorted(cache.folder.iterdir())):
        data = entry.read_bytes()
        damages = (b"", data[:-1], data[:500] + b"X" + data[501:], b"{}\n" + data)
        entry.write_bytes(damages[number])
    again = Fetched(cache=cache)
    assert again.traffic.transferred > 0
    with again.skeletons() as remotes:
        assert len(remotes) == 4


FAULTS = {
    "range ignored": Fault(ignore_range=True),
    "short 206": Fault(short_by=100_000),
    "wrong range": Fault(headers={"Content-Range": "bytes 5-9/10"}),
    "no range stated": Fault(headers={"Content-Range": "everything"}),
    "endless body": Fault(endless=True, headers={"Content-Range": "bytes 0-99/100"}),
    "endless and right": Fault(ignore_range=True, endless=True),
    "encoded": Fault(headers={"Content-Encoding": "gzip"}),
    "401": Fault(status=401),
    "403": Fault(status=403),
    "404": Fault(status=404),
    "416": Fault(status=416),
    "429": Fault(status=429),
    "429, come back tomorrow": Fault(status=429, headers={"Retry-After": "86400"}),
    "500": Fault(status=500),
    "503": Fault(status=503),
    "dropped": Fault(drop_after=1000),
    "redirect loop": Fault(status=302, headers={"Location": "/"}),
    "redirect to nowhere": Fault(status=302, headers={"Location": "file:///etc/passwd"}),
    "redirect to no URL": Fault(status=302, headers={"Location": "http://[broken"}),
}


@pytest.mark.parametrize(
    ("stage", "name"),
    [("content", name) for name in FAULTS]
    + [("resolve", name) for name, fault in FAULTS.items() if fault.status],  # without content
)
def test_faults_are_typed_errors(
    stage: str, name: str, hub: HubServer, few: list[list[Path]]
) -> None:
    """Exit code 5, a hint, few bytes and few requests; nothing of it is remembered."""
    (path,) = few[0]
    hub.add(REPO, standins.served([path]))
    key = f"{REPO}/{path.name}"
    hub.fault(stage, key, FAULTS[name])  # type: ignore[arg-type]
    with pytest.raises(TransferError) as caught:
        Fetched()
    assert caught.value.exit_code == 5
    assert caught.value.hint
    assert TOKEN not in caught.value.message + caught.value.hint
    assert hub.count() <= 30
    received = hub.sent() if not FAULTS[name].endless else 0  # sent into the void does not count
    assert received < 20 * MIB
    hub.heal()
    with Fetched().skeletons() as (remote,):
        assert_same(remote, local([path]))


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=503, times=2),
        Fault(status=429, headers={"Retry-After": "0"}, times=2),
        Fault(drop_after=10_000, times=2),
        Fault(short_by=1000, times=2),
        Fault(status=403, times=1),
    ],
    ids=["503", "429", "dropped", "short", "signature expired"],
)
def test_what_passes_is_survived(fault: Fault, hub: HubServer, few: list[list[Path]]) -> None:
    """Trying again helps, and bytes that have come are not asked for again."""
    (path,) = few[0]
    hub.add(REPO, standins.served([path]))
    hub.fault("content", f"{REPO}/{path.name}", fault)
    found = Fetched()
    with found.skeletons() as (remote,):
        assert_same(remote, local([path]))
    assert found.traffic.transferred <= 1.2 * local([path]).header_bytes + MIB


def test_an_endless_body_is_cut_off(hub: HubServer, twenty: list[list[Path]]) -> None:
    """A server that never stops costs what was asked for and a chunk, however much it sends."""
    (path,) = twenty[0]
    hub.add(REPO, standins.served([path]))
    hub.fault("content", f"{REPO}/{path.name}", Fault(endless=True))
    found = None
    with contextlib.suppress(LocalmoeError):
        found = Fetched()
    if found is not None:
        assert found.traffic.transferred <= 1.2 * local([path]).header_bytes + 3 * MIB


def test_a_server_that_stalls(
    hub: HubServer, twenty: list[list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is given up after the time without a byte that huggingface_hub's users set."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    (path,) = twenty[0]
    hub.add(REPO, standins.served([path]))
    hub.fault("content", f"{REPO}/{path.name}", Fault(stall_after=1000))
    with pytest.raises(TransferError):
        Fetched()


def test_a_file_that_changes_meanwhile(hub: HubServer, twenty: list[list[Path]]) -> None:
    """What the Hub says of the file must be what it listed."""
    (path,) = twenty[0]
    repository = hub.add(REPO, standins.served([path]))
    reference = names.parse(REPO)
    assert reference is not None
    listing = list_files(reference)
    repository.revisions[listing.commit] = {
        path.name: dataclasses.replace(
            repository.revisions[listing.commit][path.name],
            content=Generated(path.stat().st_size, standins.header_of(path), seed=99),
        )
    }
    source = RemoteSource(reference, listing.commit, listing.files[0], Traffic())
    with pytest.raises(TransferError, match="changed"):
        source.read(0, 4)


@pytest.mark.parametrize("stage", ["resolve", "content"])
@pytest.mark.parametrize("status", [404, 410, 500, 503])
@pytest.mark.parametrize("broken", [0, 2])
def test_one_file_that_cannot_be_had(
    stage: str, status: int, broken: int, hub: HubServer, few: list[list[Path]]
) -> None:
    """Is named, and the others are answered all the same: the first one, and any other."""
    hub.add(REPO, standins.served([paths[0] for paths in few[:4]]))
    name = few[broken][0].name
    code = {"X-Error-Code": "EntryNotFound"} if broken else {}
    hub.fault(stage, f"{REPO}/{name}", Fault(status=status, headers=code))  # type: ignore[arg-type]
    found = Fetched()
    error = found.headers.pop(name)
    assert isinstance(error, RefusedFileError)
    assert (error.exit_code, error.message.startswith(f"{name}: ")) == (5, True)
    assert error.hint
    found.models = [model for model in found.models if model.files[0].path != name]
    with found.skeletons() as remote:
        assert len(remote) == 3


def test_a_slow_header_has_one_deadline(
    hub: HubServer, twenty: list[list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What trickles in is given up as a whole, however many requests and tries it would take."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    (path,) = twenty[0]
    hub.add(REPO, standins.served([path]))
    hub.fault("content", f"{REPO}/{path.name}", Fault(rate=4000))
    with pytest.raises(TransferError, match="too slow"):
        Fetched()  # all of a header of 6 MB would take 25 minutes
    assert hub.count("sig=") == 1


def test_a_slow_listing_has_one_deadline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for the description of a repository, and for all pages of a tree together."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    clock = Clock(monkeypatch)
    hub.blobs, hub.page_size = False, 1
    hub.add(REPO, {f"m-{number}.gguf": b"GGUF" for number in range(50)})
    reference = names.parse(REPO)
    assert reference is not None
    clock.each_chunk_takes = 0.1
    with pytest.raises(TransferError, match="too slow"):
        list_files(reference, QUICK)
    assert 3 < hub.count("/tree/") < 30


class Clock:
    """The clock of deadlines, which goes on with every chunk that arrives."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.each_chunk_takes = 0.0  # seconds
        self._late = 0.0
        received = client.Deadline.received

        def later(deadline: client.Deadline, count: int) -> None:
            self._late += self.each_chunk_takes
            received(deadline, count)

        real = time.monotonic
        monkeypatch.setattr(client.Deadline, "received", later)
        monkeypatch.setattr(time, "monotonic", lambda: real() + self._late)


def test_a_pause_that_the_server_asks_for_is_told(hub: HubServer, twenty: list[list[Path]]) -> None:
    """Who waits knows for whom and how long; of one that nobody notices nothing is said."""
    (path,) = twenty[0]
    hub.add(REPO, standins.served([path]))
    told: list[str] = []
    patience = dataclasses.replace(QUICK, longest=5, tell=told.append)
    for seconds in ("0", "1"):
        wait = Fault(status=429, headers={"Retry-After": seconds}, times=1)
        hub.fault("content", f"{REPO}/{path.name}", wait)
        Fetched(cache=HeaderCache(path.parent / seconds), patience=patience)
    (line,) = told
    assert "too many requests" in line
    assert "waiting 1" in line


def test_a_rewritten_history_is_no_missing_revision(
    hub: HubServer, twenty: list[list[Path]]
) -> None:
    """A commit that is gone since it was listed: said so, and to run it again (exit 5)."""
    (path,) = twenty[0]
    repository = hub.add(REPO, standins.served([path]))
    reference = names.parse(REPO)
    assert reference is not None
    listing = list_files(reference)
    repository.revisions["f" * 40] = repository.revisions.pop(listing.commit)
    repository.refs["main"] = "f" * 40
    source = RemoteSource(reference, listing.commit, listing.files[0], Traffic(QUICK))
    with pytest.raises(TransferError, match="history") as caught:
        source.read(0, 4)
    assert "main" not in caught.value.message
    assert "run it again" in (caught.value.hint or "")
    assert list_files(reference).commit == "f" * 40


@pytest.mark.parametrize(
    ("status", "words"), [(402, "paid"), (407, "proxy"), (451, "legal reasons")]
)
@pytest.mark.parametrize("stage", ["api", "resolve", "content"])
def test_refusals_with_a_meaning(
    status: int, words: str, stage: str, hub: HubServer, twenty: list[list[Path]]
) -> None:
    """Each says what it means and what to do; none is tried again."""
    (path,) = twenty[0]
    hub.add(REPO, standins.served([path]))
    key = REPO if stage == "api" else f"{REPO}/{path.name}"
    hub.fault(stage, key, Fault(status=status))  # type: ignore[arg-type]
    with pytest.raises(TransferError, match=words) as caught:
        Fetched()
    assert caught.value.exit_code == 5
    assert str(status) in caught.value.message
    assert "HF_ENDPOINT" not in (caught.value.hint or "HF_ENDPOINT")
    assert sum(request.status == status for request in hub.requests) == 1


@pytest.mark.parametrize("kind", ["web page", "cut off", "zeros", "empty"])
def test_files_that_are_no_models(
    kind: str, hub: HubServer, twenty: list[list[Path]], tmp_path: Path
) -> None:
    """Bad bytes over the network are bad model files (exit 4), as on disk."""
    (path,) = twenty[0]
    header = standins.header_of(path)
    data = {
        "web page": b"<!doctype html><p>Sorry" * 100,
        "cut off": header[: len(header) // 2],
        "zeros": bytes(300_000),
        "empty": b"",
    }[kind]
    hub.add(REPO, {"m-Q4_K_M.gguf": data})
    found = Fetched()
    (error,) = found.headers.values()
    assert isinstance(error, ModelFileError)
    assert error.exit_code == 4
    with skeleton.skeletons(found.models, found.headers) as models:
        assert list(models.values()) == [error]
    assert not list((tmp_path / "home" / "cache").glob("headers/*"))


def test_offline(hub: HubServer, twenty: list[list[Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    """``HF_HUB_OFFLINE`` sends nothing, and the error says so."""
    hub.add(REPO, standins.served(twenty[0]))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TransferError, match="HF_HUB_OFFLINE"):
        Fetched()
    assert hub.count() == 0


def test_nobody_there(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that does not answer is a typed error with what to check."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    reference = names.parse(REPO)
    assert reference is not None
    file = names.RepoFile("m.gguf", 1000, "0" * 64)
    with pytest.raises(TransferError) as caught:
        RemoteSource(reference, "main", file, Traffic()).read(0, 10)
    assert "network" in (caught.value.hint or "")
