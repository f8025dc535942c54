"""``fit`` and what follows from it, on names of the Hub, as people and scripts run them.

Real processes against a local Hub with headers of real size; memory is what the machine file or
``--ram`` says, so the verdicts are the same everywhere.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pexpect
import pytest

from localmoe.app import recommend as choosing
from localmoe.app.machine import with_gpu_build
from localmoe.app.planned_model import PlannedModel
from localmoe.app.plans import ModelPlanner
from localmoe.app.recommend import recommend
from localmoe.app.repository import Repository
from localmoe.app.requests import PlanRequest
from localmoe.cli.output import Output
from localmoe.errors import TransferError
from localmoe.facts import catalog
from localmoe.facts.hardware import Gpu, Machine
from localmoe.facts.model import read_model
from localmoe.hub import names
from localmoe.hub.survey import survey
from localmoe.planning.guess import guess
from localmoe.planning.plan import Tiers, Verdict, Wishes
from tests.archs import generate
from tests.hub import standins
from tests.hub.command import HubCommand
from tests.hub.content import Generated
from tests.hub.server import Fault, HubServer
from tests.waiting import PATIENCE

REPO = "someone/M-GGUF"
MIB, GIB = 1 << 20, 1 << 30


# Runs localmoe and says on stderr what it and its engine worker took at most, in KiB. (ru_maxrss of
# the process itself would count what its parent had.)
MEASURED = """
import re, resource, sys
from localmoe.cli.main import main
code = main(sys.argv[1:])
own = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(own + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


class Shell(HubCommand):
    """Commands and their JSON."""

    def document(self, *args: str | Path, code: int = 0, **env: str) -> dict[str, Any]:
        done = self(*map(str, args), "--json", **env)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        document = json.loads(done.stdout)
        assert document["schema_version"] == 1
        return dict(document)

    def error(self, *args: str, code: int, **env: str) -> str:
        """Message and hint of a command that fails; nothing else is on stdout."""
        error = self.document(*args, code=code, **env)["error"]
        done = self(*args, **env)
        assert (done.returncode, done.stdout) == (code, "")
        assert "Traceback" not in done.stderr
        return f"{error['message']} | {error['hint']}"


@pytest.fixture
def shell(hub: HubServer, tmp_path: Path) -> Shell:
    return Shell(hub, tmp_path)


def serve(hub: HubServer, sets: Sequence[list[Path]], **how: Any) -> None:
    hub.add(REPO, standins.served([path for paths in sets for path in paths]), **how)
    hub.forget()


def has_room(entry: dict[str, Any]) -> bool:
    """Whether this machine's disk could take the file, which ``fit`` says too."""
    return bool(entry["download"]["bytes"] <= entry["download"]["disk_free"])


def test_a_repository(hub: HubServer, shell: Shell, twenty: list[list[Path]]) -> None:
    """Twenty quantizations: the contract's document, its cost, and every prediction exact."""
    serve(hub, twenty)
    document = shell.document("fit", REPO, "--ram", "24", "--ctx", "8k")
    headers = {p[0].name: read_model(p[0]).header_bytes for p in twenty}
    assert document["transferred"] <= 5 * max(headers.values())
    assert document["transferred"] == hub.sent("sig=")
    assert document["seconds"] > 0
    assert (document["model"], document["context"], document["kv_type"]) == (REPO, 8192, "f16")
    assert document["exact"] is True
    assert len(document["files"]) == 20
    assert [f["size"] for f in document["files"]] == sorted(f["size"] for f in document["files"])
    assert {f["quant"] for f in document["files"]} == set(standins.QUANTS)
    by_name = {f["name"]: f for f in document["files"]}
    best = by_name[document["recommended"]]  # more than the usual one only on a quick machine
    assert best["size"] >= by_name["qwen3-30b-a3b-Q4_K_M"]["size"]
    assert best["quant"] == "Q4_K_M" or best["decode_tps"]["expected"] >= choosing.QUICK
    assert document["recommended_command"] == f"{REPO}:{best['quant']}"
    assert by_name["qwen3-30b-a3b-BF16"]["parts"] == 3
    assert by_name["qwen3-30b-a3b-BF16"]["fits"] == "ram+disk"
    for entry in document["files"]:
        assert entry["cached"] is False
        assert entry["download"]["bytes"] == entry["size"]
        assert entry["download"]["seconds"] == round(entry["size"] * 8 / 100e6)
    hub.forget()
    again = shell.document("fit", REPO, "--ram", "24", "--ctx", "8k")
    assert (again["transferred"], again["requests"]) == (0, 0)
    assert hub.seen(host="storage") == []
    for paths in (twenty[7], twenty[13], twenty[19]):
        here = shell.document("fit", paths[0], "--ram", "24", "--ctx", "8k")["files"][0]
        there = by_name[here["name"]]
        for field in ("memory", "placement", "fits", "max_context", "size", "parts"):
            assert here[field] == there[field], field
        assert (
            there["reason"] == here["reason"] if has_room(there) else "no room" in there["reason"]
        )
    for entry in (*again["files"], *document["files"]):
        # Others write to this disk, too.
        entry["reason"] = entry["reason"] if has_room(entry) else "no room"
        entry["download"].pop("disk_free")
    assert again["files"] == document["files"]


@pytest.mark.parametrize("kind", ["default context", "q8_0 cache", "supposed GPU"])
def test_predictions_are_those_of_the_local_file(
    kind: str, hub: HubServer, shell: Shell, twenty: list[list[Path]]
) -> None:
    """Whatever is asked: before the download the figures are those of after it."""
    serve(hub, [twenty[7]])
    asked = {
        "default context": ("--ram", "21"),
        "q8_0 cache": ("--ram", "24", "--kv-type", "q8_0", "--ctx", "16k"),
        "supposed GPU": ("--ram", "24", "--vram", "8"),
    }[kind]
    there = shell.document("fit", f"{REPO}:Q4_K_M", *asked)
    here = shell.document("fit", twenty[7][0], *asked)
    assert there["exact"] == here["exact"] == (kind != "supposed GPU")
    ours = {k: v for k, v in here["files"][0].items() if k not in ("cached", "download")}
    assert ours == {k: there["files"][0][k] for k in ours}


@pytest.mark.parametrize(
    ("model", "quant", "parts"), [("gpt-oss-120b", "MXFP4", 3), ("kimi-k2", "Q8_0", 25)]
)
def test_very_large_sets(
    model: str, quant: str, parts: int, hub: HubServer, shell: Shell, tmp_path: Path
) -> None:
    """63 GB in three parts, 1.09 TB in 25: the cost of a header, and less than 400 MB of memory."""
    family = standins.TERABYTE if model == "kimi-k2" else None
    paths = standins.conversion(tmp_path, model, quant, split=parts, family=family)
    assert len(paths) == parts
    serve(hub, [paths])
    here = read_model(paths[0])
    args = ("fit", f"{REPO}:{quant}", "--ram", "24", "--json")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *args],
        env=shell.environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    document = json.loads(done.stdout)
    entry = document["files"][0]
    code = 3 if entry["fits"] == "no" else 0
    assert done.returncode == (code if has_room(entry) else 3)
    assert document["transferred"] <= 1.2 * here.header_bytes + MIB
    assert document["files"][0]["size"] == here.size
    peak = int(done.stderr.split()[-1]) * 1024  # of localmoe and its engine worker together
    assert peak < 400e6
    local = shell.document("fit", paths[0], "--ram", "24", code=code)
    assert local["files"][0]["memory"] == document["files"][0]["memory"]
    with_note = f"{model} {quant} {here.size / 1e9:.1f} GB"
    print(with_note, document["transferred"], document["requests"], document["seconds"], peak)


def test_screens(hub: HubServer, shell: Shell, twenty: list[list[Path]]) -> None:
    """A line per quantization with size, time, tiers and context; one recommended, and why."""
    serve(hub, twenty[6:10])
    done = shell("fit", REPO, "--ram", "24")
    assert done.returncode == 0
    line = next(li for li in done.stdout.splitlines() if li.startswith("Q4_K_M"))
    for fact in ("18.6 GB", "24 min 45 s", "RAM", "40,960"):
        assert fact in line
    assert "at 100 Mbit/s" in done.stdout
    (best,) = re.findall(
        r"^recommended (\S+): (?:the usual balance|better than)", done.stdout, re.M
    )
    assert f"localmoe run {REPO}:{best}" in done.stdout
    assert "headers in" in done.stderr
    detail = shell("fit", f"{REPO}:UD-Q4_K_XL", "--ram", "24")
    assert "expert weights" in detail.stdout
    assert "24 min 45 s at 100 Mbit/s" in detail.stdout
    small = shell("fit", REPO, "--ram", "1")
    assert small.returncode == 0
    assert "runs, too slowly to use" in small.stdout
    assert "nothing of it is quick enough to use on this machine" in small.stdout
    none = shell("fit", REPO, "--ram", "0.1")
    assert none.returncode == 3
    assert "does not fit" in none.stdout
    assert "nothing of it fits this machine" in none.stdout


def test_no_room_on_the_disk(
    hub: HubServer, shell: Shell, twenty: list[list[Path]], tmp_path: Path
) -> None:
    """What the disk cannot hold is not recommended; when nothing has room, exit code 3."""
    serve(hub, [twenty[0], twenty[7]])
    machine = {"ram_total": 32 * GIB, "ram_available": 30 * GIB, "disk_free": 12 * GIB}
    file = tmp_path / "machine.json"
    file.write_text(json.dumps({"machine": machine}))
    document = shell.document("fit", REPO, "--machine", str(file))
    rooms = {f["quant"]: f["download"]["disk_room"] for f in document["files"]}
    assert rooms == {"Q2_K": True, "Q4_K_M": False}
    assert document["recommended"].endswith("Q2_K")
    assert "has no room on the disk" in document["recommended_reason"]
    reasons = {f["quant"]: f["reason"] for f in document["files"]}
    assert "18.6 GB to download, 12.9 GB free" in reasons["Q4_K_M"]
    file.write_text(json.dumps({"machine": machine | {"disk_free": GIB}}))
    assert shell.document("fit", REPO, "--machine", str(file), code=3)["recommended"] is None
    assert "no room" in shell("fit", f"{REPO}:Q2_K", "--machine", str(file)).stdout


def entry(quant: str, size: int, verdict: Verdict, disk: int = 0) -> PlannedModel:
    """As much of a fitted model as ``recommend`` looks at."""
    machine = Machine("", "", 1, 1, 64 * GIB, 64 * GIB, None, (), 0)
    planned = _PLANNED.get("plan")
    if planned is None:
        unknown = PlanRequest(Wishes(ram=8 * GIB), Path(os.devnull))  # no speeds
        with ModelPlanner(machine, unknown, Output()) as planner:
            planned = _PLANNED["plan"] = planner.plan(read_model(catalog.resolve("nano")))
    plan = dataclasses.replace(planned.plan, verdict=verdict, tiers=Tiers(0, 0, disk))
    model = dataclasses.replace(planned.model, quantization=quant, size=size)
    return PlannedModel(model, plan)


_PLANNED: dict[str, PlannedModel] = {}


@pytest.mark.process
def test_what_is_recommended() -> None:
    """Q4_K_M unless something smaller spares the disk; else the largest that needs none."""
    ram, disk, no = Verdict.RAM, Verdict.RAM_DISK, Verdict.NO
    q2, q3 = entry("Q2_K", 2 * GIB, ram), entry("Q3_K_M", 3 * GIB, ram)
    q4, q8 = entry("Q4_K_M", 4 * GIB, ram), entry("Q8_0", 8 * GIB, ram)
    assert recommend([q2, q3, q4, q8])[0] is q4
    assert recommend([q2, q3, q8])[0] is q8
    q4_disk, q2_disk = entry("Q4_K_M", 4 * GIB, disk, GIB), entry("Q2_K", 2 * GIB, disk, MIB)
    best, why = recommend([q2, q3, q4_disk])
    assert best is q3
    assert "Q4_K_M would need the disk" in why
    assert recommend([q2_disk, q4_disk])[0] is q4_disk
    q8_disk = entry("Q8_0", 8 * GIB, disk, 6 * GIB)
    assert recommend([q2_disk, q8_disk])[0] is q2_disk
    q4_no = entry("Q4_K_M", 4 * GIB, no)
    best, why = recommend([q2, q4_no])
    assert best is q2
    assert "Q4_K_M does not fit" in why
    assert recommend([q4_no]) == (None, "nothing of it fits this machine")
    assert recommend([])[0] is None


@pytest.mark.process
def test_a_gpu_outside_the_engine_build(
    hub: HubServer, hf: Path, twenty: list[list[Path]], tmp_path: Path, monkeypatch: Any
) -> None:
    """The verdict now, exact, and the verdict that a build with it would bring, estimated."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path / "home"))
    serve(hub, [twenty[7]])
    idle = Gpu("RTX 3090", 24 * GIB, 23 * GIB, in_engine=False, device=None, backend="cuda")
    machine = Machine("Linux", "", 8, 16, 16 * GIB, 14 * GIB, None, (idle,), 0)
    reference = names.parse(REPO)
    assert reference is not None
    (found,) = Repository(reference, PlanRequest(machine=Path(os.devnull)), Output()).plan(machine)
    assert found.plan.verdict is Verdict.RAM_DISK
    assert found.plan.memory.exact
    assert found.with_gpu_build is not None
    assert found.with_gpu_build.verdict is Verdict.GPU
    assert not found.with_gpu_build.memory.exact
    nothing_idle = dataclasses.replace(machine, gpus=())
    assert with_gpu_build(nothing_idle, Wishes()) is None


@pytest.mark.parametrize("command", ["fit", "plan", "show", "run"])
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("switch-transformer", 2, "olmoe-1b-7b"),
        ("qwen3-30b-a3", 2, "Did you mean qwen3-30b-a3b"),
        ("glm-4.6:Q4_K_M", 2, "stale"),
        ("unsloth/GLM-4.6-GUF", 2, "Did you mean unsloth/GLM-4.6-GGUF"),
        (f"{REPO}:Q4_K_XL", 2, "UD-Q4_K_XL"),
        (f"{REPO}:mmproj-F16.gguf", 2, "side file"),
        (f"{REPO}:Q6_K", 5, "00002-of-00002"),
        ("evil/paths", 5, "unsafe name"),
        ("someone/gated", 5, "gated"),
        ("someone/weights", 2, "no GGUF"),
    ],
)
def test_names(
    name: str, code: int, words: str, command: str, hub: HubServer, shell: Shell
) -> None:
    """Every command answers a name that cannot be used the same way, before any content."""
    files = {"M-UD-Q4_K_XL.gguf": b"x", "mmproj-F16.gguf": b"x", "M-Q6_K-00001-of-00002.gguf": b"x"}
    hub.add(REPO, files)
    hub.add("evil/paths", {"ok-Q4_K_M.gguf": b"x", "../evil-Q8_0.gguf": b"x"})
    gated = {"m-Q4_K_M.gguf": b"GGUF" * 100}
    hub.add("someone/gated", gated, gated=True, readers=frozenset({"hf_theirs"}))
    hub.add("someone/weights", {"model.safetensors": b"x"})
    rest = ("hello",) if command == "run" else ()
    assert words in shell.error(command, name, *rest, code=code)
    assert hub.sent("sig=") == 0


def test_offline(hub: HubServer, shell: Shell, twenty: list[list[Path]], tmp_path: Path) -> None:
    """Without a network what is here is answered, and what is not is said to be on the Hub."""
    serve(hub, [twenty[7]])
    assert "HF_HUB_OFFLINE" in shell.error("fit", REPO, code=5, HF_HUB_OFFLINE="1")
    snapshot = shell.cache / f"models--{REPO.replace('/', '--')}" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / twenty[7][0].name).symlink_to(twenty[7][0])
    document = shell.document("fit", REPO, "--ram", "24", HF_HUB_OFFLINE="1")
    assert document["files"][0]["cached"] is True
    assert document["recommended"] == "qwen3-30b-a3b-Q4_K_M"
    # A quantization that is here is answered from its file, with a network, too.
    hub.forget()
    shell.document("fit", f"{REPO}:Q4_K_M", "--ram", "24")
    assert hub.requests == []


def test_a_hub_that_fails_midway(hub: HubServer, shell: Shell, twenty: list[list[Path]]) -> None:
    """An error of one file is the error of the command, typed, and the next call is right."""
    serve(hub, twenty[:3])
    hub.fault("content", f"{REPO}/{twenty[1][0].name}", Fault(status=416))
    assert "416" in shell.error("fit", REPO, code=5)
    hub.heal()
    assert len(shell.document("fit", REPO, "--ram", "24")["files"]) == 3


def test_one_bad_file_among_good_ones(
    hub: HubServer, shell: Shell, twenty: list[list[Path]]
) -> None:
    """A file that is no model is named, and the others are answered."""
    files = standins.served(twenty[7]) | {"bad-Q2_K.gguf": b"<html>no</html>" * 10_000}
    hub.add(REPO, files)
    document = shell.document("fit", REPO, "--ram", "24")
    assert [f["quant"] for f in document["files"]] == ["Q4_K_M"]
    assert "web page" in json.dumps(document["skipped"])


def test_plan_and_show_before_the_download(
    hub: HubServer, shell: Shell, twenty: list[list[Path]]
) -> None:
    """Both read the header alone; the paths are those that a download will bring."""
    serve(hub, [twenty[7]])
    plan = shell.document("plan", f"{REPO}:Q4_K_M", "--ram", "24")
    shown = shell.document("show", f"{REPO}:Q4_K_M")
    assert hub.sent("sig=") < 12 * MIB
    assert plan["llama_cpp_args"][1] == shown["paths"][0]
    assert shown["paths"][0].startswith(str(shell.cache))
    local = shell.document("show", twenty[7][0])
    for field in ("experts", "parameters", "bytes", "layers", "context_train", "size"):
        assert shown[field] == local[field]
    assert not any("filler" in key for key in shown["metadata"])


@pytest.fixture
def small(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that really runs, in a repository."""
    path = generate("qwen3moe", tmp_path_factory.mktemp("small"))
    hub.add(REPO, {"tiny-Q4_K_M.gguf": path})
    return path


def test_run_downloads_when_told_to(hub: HubServer, shell: Shell, small: Path) -> None:
    """Verdict, download, answer; the second time nothing is fetched."""
    done = shell("run", REPO, "hello", "--yes", "-n", "3", "--temp", "0", "--ctx", "512")
    assert done.returncode == 0, done.stderr
    assert "fits in RAM" in done.stderr
    assert done.stdout.strip()
    hub.forget()
    again = shell("run", f"{REPO}:Q4_K_M", "hello", "-n", "3", "--temp", "0", "--ctx", "512")
    assert again.stdout == done.stdout
    assert hub.requests == []


def test_run_never_downloads_unasked(hub: HubServer, shell: Shell, small: Path) -> None:
    """In a pipe there is nobody to ask: how to insist is in the hint."""
    assert "--yes" in shell.error("run", REPO, "hello", code=2)
    assert not list(shell.cache.glob("models--*/blobs/*"))


@pytest.mark.parametrize("answer", ["y", "n"])
def test_run_asks(answer: str, hub: HubServer, shell: Shell, small: Path) -> None:
    """In a terminal the question comes after the verdict; no means no."""
    args = ["-m", "localmoe", "run", REPO, "hello", "-n", "3", "--ctx", "512"]
    env = shell.environment(TERM="xterm")
    child = pexpect.spawn(sys.executable, args, env=env, timeout=PATIENCE, encoding="utf-8")
    child.expect("fits in RAM")
    child.expect(r"\[y/N\] ")
    child.sendline(answer)
    child.expect(pexpect.EOF)
    child.close()
    here = list(shell.cache.glob("models--*/snapshots/*/tiny-Q4_K_M.gguf"))
    assert (child.exitstatus, len(here)) == ((0, 1) if answer == "y" else (2, 0))


def test_run_refuses_what_would_not_fit(
    hub: HubServer, shell: Shell, twenty: list[list[Path]]
) -> None:
    """Not even with --yes: it could not run; the download is never begun."""
    serve(hub, [twenty[7]])
    error = shell.error("run", f"{REPO}:Q4_K_M", "hello", "--yes", "--ram", "1", code=3)
    assert "Q4_K_M" in error
    assert hub.sent("sig=") < 12 * MIB


def test_the_catalog_is_ranked(hub: HubServer, shell: Shell) -> None:
    """Without MODEL: what is here, and families of the catalog by size, marked approximate."""
    sizes = {"gpt-oss-20b": 12, "qwen3-30b-a3b": 18, "gpt-oss-120b": 60, "kimi-k2": 600}
    for alias, size in sizes.items():
        found = catalog.entry_of(alias)
        assert found is not None
        hub.add(found.repo, {f"{alias}-Q4_K_M.gguf": Generated(size * GIB)})
    document = shell.document("fit", "--ram", "24")
    assert [f["name"] for f in document["files"]] == ["nano"]
    ranked = document["catalog"]
    assert [r["name"] for r in ranked] == [
        "qwen3-30b-a3b", "gpt-oss-20b", "gpt-oss-120b", "kimi-k2",
    ]  # fmt: skip
    assert [r["fits"] for r in ranked] == ["ram", "ram", "ram+disk", "no"]
    assert all(r["approximate"] for r in ranked)
    assert len(document["skipped"]) > 20
    assert all("stale" in skipped["reason"] for skipped in document["skipped"])
    assert hub.sent("sig=") == 0
    done = shell("fit", "--ram", "24")
    assert "approximate" in done.stdout
    offline = shell("fit", HF_HUB_OFFLINE="1")
    assert "offline" in offline.stderr
    assert "nano" in offline.stdout


def test_the_survey_has_a_time_limit(hub: HubServer, hf: Path) -> None:
    """Repositories that answer too late are left out, and nobody waits for them."""
    entries = [e for e in catalog.catalog()[0] if e.repo][:6]
    for number, item in enumerate(entries):
        hub.add(item.repo, {"m-Q4_K_M.gguf": Generated(GIB)})
        if number % 2:
            hub.fault("api", item.repo, Fault(delay=3))
    found = survey(entries, seconds=1)
    assert [bool(s.models) for s in found] == [True, False] * 3
    assert all("in time" in s.problem for s in found[1::2])


def test_the_survey_says_when_nobody_answers(hf: Path, monkeypatch: Any) -> None:
    """No network is one error, not forty."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TransferError):
        survey([e for e in catalog.catalog()[0] if e.repo][:3], seconds=5)


def test_guesses_follow_the_size() -> None:
    """GPU before RAM before disk; and a machine that is far too small is told so."""
    gpu = Gpu("g", 24 * GIB, 24 * GIB, in_engine=True, device="CUDA0", backend="cuda")
    machine = Machine("", "", 8, 8, 64 * GIB, 60 * GIB, None, (gpu,), 0)
    ordered = [guess(size * GIB, machine, Wishes()) for size in (10, 40, 100, 2000)]
    assert ordered == [Verdict.GPU, Verdict.GPU_RAM, Verdict.GPU_RAM_DISK, Verdict.NO]
    without = dataclasses.replace(machine, gpus=())
    assert guess(10 * GIB, without, Wishes()) is Verdict.RAM


def test_one_guess_per_family() -> None:
    """By sizes: Q4_K_M, unless only something smaller stays in memory."""
    sets = names.model_files(
        [names.RepoFile(f"m-{q}.gguf", s * GIB, "0" * 64) for q, s in
         (("Q2_K", 10), ("Q4_K_M", 20), ("Q8_0", 40))]
    )  # fmt: skip
    family = catalog.catalog()[0][0]

    def chosen(ram: int) -> str:
        def verdict(size: int) -> Verdict:
            return Verdict.RAM if size <= ram * GIB else Verdict.RAM_DISK

        found = choosing.guess_for(family, sets, verdict)
        assert found is not None
        return found.files.quant

    assert [chosen(ram) for ram in (5, 10, 20, 40)] == ["Q4_K_M", "Q2_K", "Q4_K_M", "Q4_K_M"]
    assert choosing.guess_for(family, (), lambda size: Verdict.RAM) is None


def test_files_of_other_programs(shell: Shell, small: Path, tmp_path: Path) -> None:
    """Models of LM Studio, Ollama and llama.cpp are listed and run by name, unread ones marked."""
    studio = tmp_path / ".lmstudio/models/publisher/Tiny-GGUF/Tiny-Q4_K_M.gguf"
    cpp = tmp_path / ".cache/llama.cpp/user_Other-Q4_K_M.gguf"
    ollama = tmp_path / ".ollama/models"
    for path in (studio, cpp):
        path.parent.mkdir(parents=True)
        shutil.copy(small, path)
    odd = small.read_bytes().replace(b"qwen3moe", b"qwenXmoe")
    for name, digest, data in (("tiny", "a" * 64, small.read_bytes()), ("odd", "b" * 64, odd)):
        manifest = ollama / "manifests/registry.ollama.ai/library" / name / "latest"
        manifest.parent.mkdir(parents=True)
        layers = [
            {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "c" * 64},
            {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
        ]
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
        (ollama / "blobs").mkdir(exist_ok=True)
        (ollama / "blobs" / f"sha256-{digest}").write_bytes(data)
    (ollama / "manifests/registry.ollama.ai/library/odd/broken").write_text("{nonsense")
    listed = {m["name"]: m for m in shell.document("list")["models"]}
    assert listed["publisher/Tiny-GGUF:Q4_K_M"]["program"] == "LM Studio"
    assert listed["user_Other-Q4_K_M"]["program"] == "llama.cpp"
    assert listed["tiny:latest"]["readable"] is True
    assert listed["odd:latest"]["readable"] is False
    assert "architecture" in listed["odd:latest"]["problem"]
    assert len(listed) == 5  # with nano
    assert "cannot be read" in shell("list").stdout
    for name in ("publisher/Tiny-GGUF", "tiny", "tiny:latest", "user_Other-Q4_K_M", str(studio)):
        done = shell("run", name, "hi", "-n", "2", "--temp", "0", "--ctx", "512")
        assert done.returncode == 0, (name, done.stderr)
    assert shell.error("run", "odd", "hi", code=4)
