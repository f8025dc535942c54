"""docs/json.md against what the commands write: every field is in its table, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest

from localmoe.app.bench_documents import advice_document, summary_document
from localmoe.app.documents import guessed, machine_summary
from localmoe.app.machine_file import machine_of
from localmoe.app.planned_model import CatalogGuess, Skipped
from localmoe.app.requests import LoadRequest
from localmoe.bench.figures import Spread, Summary
from localmoe.bench.variants import Variant
from localmoe.chat.attachments import Attachment
from localmoe.chat.events import ReasoningDelta
from localmoe.chat.export import to_document
from localmoe.chat.session import Message, Session, Turn
from localmoe.cli.engine import document as engine_document
from localmoe.cli.loaded import load_document
from localmoe.cli.serve import document as serve_document
from localmoe.cli.worker import document as worker_document
from localmoe.engine.backends import Tool
from localmoe.engine.devices import EngineInfo
from localmoe.engine.events import LoadProgress
from localmoe.engine.modules import file_name
from localmoe.engine.rpc_serving import Served
from localmoe.facts.catalog import catalog
from localmoe.facts.gpus import Gpu
from localmoe.hub.names import ModelFiles, RepoFile
from localmoe.planning.plan import Verdict
from localmoe.schema import SCHEMA_VERSION
from localmoe.server.requests import ServeRequest
from tests.chat import templates
from tests.cli.command import SOURCE
from tests.cli.test_experts import QWEN3, two_domains
from tests.cli.test_tuning import found as found_by_tuning
from tests.hub.command import HubCommand
from tests.hub.pulling import FILE, REPO
from tests.hub.server import HubServer

pytestmark = pytest.mark.process  # of the commands that write the documents

PAGE = SOURCE / "docs" / "json.md"
Documents = dict[str, list[Any]]
"""Section of the page → documents of that kind."""
IDLE_GPU = {"name": "a card", "total": 8 << 30, "free": 7 << 30, "in_engine": False}
BOX = {"schema_version": 1, "ram_total": 32 << 30, "gpus": [IDLE_GPU], "disk_free": 1 << 40}
BENCH = ("-n", "6", "--prompt-tokens", "12", "--runs", "1", "-t", "1", "--tune", "0")
SHORT = ("-t", "1", "-n", "4", "--temp", "0", "--ctx", "512")


class Commands:
    """Runs commands in one home, and keeps the documents that they write by section."""

    def __init__(self, localmoe: HubCommand) -> None:
        self.localmoe = localmoe
        self.documents: Documents = {}

    def __call__(self, section: str, *args: str | Path, code: int = 0, **env: str) -> Any:
        done = self.localmoe(*map(str, args), "--json", **env)
        assert done.returncode == code, (args, done.stdout, done.stderr)
        document = json.loads(done.stdout)
        self.add(section, document)
        return document

    def events(self, *args: str | Path, **env: str) -> None:
        """With ``--jsonl``; every line is of the section of its event."""
        done = self.localmoe(*map(str, args), "--jsonl", **env)
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        *events, last = map(json.loads, done.stdout.splitlines())
        for event in events:
            self.add(f"event: {event['event']}", event)
        assert last["event"] in ("done", "pulled")

    def add(self, section: str, document: Any) -> None:
        assert document.pop("schema_version", SCHEMA_VERSION) == SCHEMA_VERSION
        self.documents.setdefault(section, []).append(document)


@pytest.fixture(scope="module")
def written(
    arch_file: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Documents]:
    """At least one document of every kind; those of devices that are not here are invented."""
    home = tmp_path_factory.mktemp("home")
    model = arch_file("qwen3moe", template=templates.CHATML)
    (home / "box.json").write_text(json.dumps(BOX))
    with HubServer() as hub:
        hub.add(REPO, {FILE: model})
        run = Commands(HubCommand(hub, home))
        run("error", "show", "no-such-model", code=2)
        run("fit", "fit", REPO, "--machine", "box.json")
        run("fit", "fit", model, "--ram", "4", "--vram", "1")
        run("fit", "fit", HF_HUB_OFFLINE="1")
        run("plan", "plan", model, "--ram", "4", "--vram", "1", "--experts-on", "disk:1")
        run("plan", "plan", model, "--ram", "4")
        run.events("pull", REPO, "--yes")
        run("pull", "pull", REPO, "--yes")
        run("list", "list")
        run("show", "show", model)
        run("rm", "rm", REPO)
        run("run", "run", "-m", model, *SHORT, "hi", "-f", home / "box.json")
        run("run", "run", "-m", model, *SHORT, "hi", "--schema", schema(home), code=1)
        run.events("run", "-m", model, *SHORT, "hi")
        run.events("run", "nano", "hi", *calling(home))
        run("run", "run", "nano", "hi", *calling(home))
        run("config", "config", "set", "temp", "0.5")
        run("config", "config", "alias", "mine", "nano")
        run("config alias", "config", "alias")
        run("config path", "config", "path")
        run("config explain", "config", "explain")
        run("doctor", "doctor")
        run("engine", "engine")
        run("engine install", "engine", "install", "cpu", "--dry-run")
        module = home / ".cache" / "localmoe" / "engines" / file_name("vulkan")
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text("no library")
        run("engine", "engine")
        run("engine remove", "engine", "remove", "vulkan")
        run(
            "experts record",
            "experts",
            "record",
            model,
            "-t",
            "1",
            "-n",
            "4",
            "-o",
            "a.trace",
            "hi",
        )
        run("experts show", "experts", "show", QWEN3)
        run("experts show", "experts", "show", "a.trace")
        run("experts compare", "experts", "compare", two_domains(home / "domains.trace"))
        run("experts simulate", "experts", "simulate", QWEN3)
        run("experts simulate", "experts", "simulate", "a.trace", "-m", model)
        run("experts report", "experts", "report", "domains.trace", "-o", "r.html", "--png", "png")
        run("bench", "bench", model, *BENCH, "--memory", "1", "--regimes", "private")
        run.events("bench", model, *BENCH, "--regimes", "off")
    search = found_by_tuning(Variant("threads", 1, 2))
    made: Documents = {
        "bench": [
            {"advice": advice_document(search, ["…"]), "ratios": {"1 GiB": {"page": 1.0}}},
            {"machine": {"gpus": [asdict(GPU)]}, "runs": [summary_document(all_figures())]},
        ],
        "fit": [{"skipped": [asdict(Skipped("x", "damaged"))], "catalog": [guessed(GUESS)]}],
        "engine": [{"gpus": [asdict(GPU)], "idle_gpus": [asdict(GPU)]}],
        "engine install": [{"missing": [asdict(Tool("cmake"))]}],
        "engine install FILE": [
            {"backend": "cuda", **engine_document(ENGINE), "gpus": [asdict(GPU)]}
        ],
        "doctor": [
            {"machine": {"gpus": [asdict(GPU)]}, "engine": asdict(ENGINE) | {"gpus": [asdict(GPU)]}}
        ],
        "run": [{"plan": {"machine": machine_summary(BOX_WITH_GPU)}}],
        "worker": [worker_document(SERVER, None)],
        "serve": [serve_document("http://127.0.0.1:1", ServeRequest(LoadRequest("nano")))],
        "event: load": [load_document(LoadProgress(0.5))],
        "event: reasoning": [{"event": "reasoning", **asdict(ReasoningDelta("hm"))}],
        "save": [json.loads(to_document(SESSION, "talk"))],
    }
    for section, documents in made.items():
        for document in documents:
            run.add(section, document)
    yield run.documents


def all_figures() -> Summary:
    """A summary that lacks none of its figures."""
    spread, kinds = Spread(1.0, 1.0, 1.0), get_type_hints(Summary)
    values = {name: spread for name, kind in kinds.items() if Spread in get_args(kind)}
    others: dict[str, Any] = {"regime": "page", "memory": 1, "runs": 1, "steps": 1}
    rest = {name: 0 for name in kinds if name not in (*values, *others)}
    return Summary(**(rest | values | others | {"ran": (), "errors": ()}))


ENGINE = EngineInfo("b1", ("CPU",), (), True, (), modules={"cuda": ""})
GPU = Gpu("a card", 8 << 30, 7 << 30, True, "CUDA0", "cuda")
ENTRY = catalog()[0][0]
GUESS = CatalogGuess(ENTRY, ModelFiles("x", "Q4_K_M", (RepoFile("x.gguf", 1, "0"),)), Verdict.RAM)
BOX_WITH_GPU = machine_of(BOX | {"gpus": [IDLE_GPU]}, "here")
SERVER: Any = SimpleNamespace(endpoint="127.0.0.1:1", pid=1, devices=[Served("CPU", "cpu", 1, 2)])
SESSION = Session()
SESSION.add(
    Turn(
        Message("user", "Who?", files=(Attachment("n.txt", "notes"),)),
        Message("assistant", "I.", reasoning="hm", interrupted=True),
    )
)


def calling(home: Path) -> tuple[str | Path, ...]:
    """A tool that must be called, with nothing to choose in its arguments."""
    parameters = {"properties": {"at": {"const": "sky"}}, "required": ["at"]}
    path = home / "tools.json"
    path.write_text(json.dumps([{"name": "look", "parameters": parameters}]))
    return "--tools", path, "--tool-choice", "look", "-n", "200", "-c", "1024", "-t", "1"


def schema(home: Path) -> Path:
    path = home / "schema.json"
    path.write_text('{"type": "string", "minLength": 40}')
    return path


ROW = re.compile(r"\| `([^`]+)` \| ([^|]+) \|")
LINK = re.compile(r"\[([^\]]+)\]\(#[\w-]+\)")
Fields = dict[str, str]
"""Path of a field → its type, as the page has it."""


def sections() -> dict[str, Fields]:
    """The tables of the page, by their headings."""
    parts = re.split(r"^### (.+)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    return {
        title: {path: kind.strip() for path, kind in ROW.findall(body)}
        for title, body in zip(parts[::2], parts[1::2], strict=True)
    }


def expanded(page: dict[str, Fields], section: str) -> Fields:
    """A section's fields, with those of the sections that its types link to."""
    found: Fields = {}
    for path, kind in page[section].items():
        lead = path.removesuffix("*")
        if lead == path:
            found[path] = kind
            lead += "."
        if link := LINK.search(kind):
            found |= {lead + name: inner for name, inner in expanded(page, link[1]).items()}
    return found


def paths(value: Any, known: Fields, at: str = "") -> Iterator[str]:
    """The path of every field in a document; ``known`` says what is a map, and what is opaque."""
    if isinstance(value, dict) and known.get(at) != "opaque":
        for key, inner in value.items():
            path = f"{at}{{}}" if f"{at}{{}}" in known else f"{at}.{key}" if at else key
            yield path
            yield from paths(inner, known, path)
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, known, f"{at}[]")


def test_every_field_is_described_and_every_description_is_of_a_field(written: Documents) -> None:
    """For each kind of document: the fields of the table are those that were written."""
    page = sections()
    wrong: dict[str, tuple[set[str], set[str]]] = {}
    for section, documents in written.items():
        fields = expanded(page, section)
        seen = {path for document in documents for path in paths(document, fields)}
        wrong |= {section: (seen - set(fields), set(fields) - seen)} if seen != set(fields) else {}
    assert wrong == {}, "section: (not described, never written)"


def test_every_kind_of_document_is_written(written: Documents) -> None:
    """Sections are documents, events, or parts of those."""
    page = sections()
    parts = {
        link for fields in page.values() for kind in fields.values() for link in LINK.findall(kind)
    }
    assert set(page) == written.keys() | parts


def test_the_version_is_stated() -> None:
    """The page names the version that the program writes."""
    assert f"has `schema_version`, a whole number: {SCHEMA_VERSION}." in PAGE.read_text("utf-8")
