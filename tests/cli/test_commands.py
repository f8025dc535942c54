"""``fit``, ``plan``, ``show``, ``list`` and ``doctor`` on generated models, as scripts see them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.archs import generate
from tests.cli.command import Localmoe, assert_clear_error

ArchFile = Callable[..., Path]

FIT = {
    "schema_version", "model", "machine", "context", "kv_type", "exact", "files", "recommended",
    "transferred", "requests", "seconds", "skipped", "recommended_reason", "recommended_command",
}  # fmt: skip
MACHINE = {"ram_total", "ram_available", "gpus", "disk_free"}
FILE = {
    "name", "quant", "parts", "size", "cached", "fits", "memory", "placement", "context",
    "max_context", "decode_tps", "prefill_tps", "first_token_s", "loaded_first_token_s",
    "speed_why", "reason", "advice", "warnings", "prompt_bytes_per_token",
}  # fmt: skip
FITTED = FILE | {"download", "with_gpu_build", "rank"}
PLAN = FILE | {
    "schema_version", "model", "machine", "kv_type", "exact", "layers", "cache", "engine",
    "llama_cpp_args", "devices", "batches",
}  # fmt: skip
RUN = {
    "schema_version", "text", "reasoning", "finish_reason", "model", "usage", "timings", "cache",
    "plan", "tool_calls",
}  # fmt: skip
LAYER = {
    "index", "dense", "experts", "dense_bytes", "expert_bytes", "expert_count", "expert_used",
    "device", "experts_gpu", "experts_ram", "experts_disk",
}  # fmt: skip
SHOW = {
    "schema_version", "model", "paths", "size", "architecture", "quantization", "layers",
    "moe_layers", "experts", "parameters", "bytes", "context_train", "chat_template", "tokenizer",
    "metadata", "tool_calls",
}  # fmt: skip


def check_file(entry: dict[str, Any]) -> None:
    """The parts of one file's memory add up, and so do the tiers."""
    memory, placement = entry["memory"], entry["placement"]
    assert set(memory) == {"weights", "kv", "compute", "total"}
    assert set(memory["weights"]) == {"dense", "experts"}
    assert set(placement) == {"gpu", "ram", "disk"}
    parts = sum(memory["weights"].values()) + memory["kv"] + memory["compute"]
    assert parts == memory["total"] == sum(placement.values())
    assert (entry["decode_tps"] is None) == (entry["fits"] == "no")


def test_fit_document(localmoe: Localmoe, arch_file: ArchFile) -> None:
    """A small MoE in ample RAM: exactly the contract's keys, and figures that add up."""
    path = arch_file("qwen3moe")
    document = localmoe.document("fit", path, "--ram", "4", "--ctx", "2048")
    assert set(document) == FIT
    assert set(document["machine"]) == MACHINE
    assert document["context"] == 2048
    assert (document["kv_type"], document["exact"]) == ("f16", True)
    assert document["recommended"] == document["model"] == path.stem
    assert (document["transferred"], document["requests"]) == (0, 0)
    (entry,) = document["files"]
    assert set(entry) == FITTED
    check_file(entry)
    assert entry["fits"] == "ram"
    assert entry["size"] == path.stat().st_size
    assert entry["memory"]["weights"]["experts"] > 0
    assert entry["max_context"] >= 2048


def test_fit_screen_names_the_same_verdict(localmoe: Localmoe, arch_file: ArchFile) -> None:
    done = localmoe("fit", arch_file("qwen3moe"), "--ram", "4")
    assert (done.returncode, done.stderr) == (0, "")
    assert "fits in RAM" in done.stdout
    assert "\x1b" not in done.stdout


def test_does_not_fit(localmoe: Localmoe, arch_file: ArchFile) -> None:
    """Too little memory is an answer, not an error: exit code 3 with the numbers, in both forms."""
    path = arch_file("qwen3moe")
    document = localmoe.document("fit", path, "--ram", "0.1", code=3)
    assert set(document) == FIT
    (entry,) = document["files"]
    assert (entry["fits"], document["recommended"]) == ("no", None)
    assert entry["advice"]
    done = localmoe("fit", path, "--ram", "0.1")
    assert done.returncode == 3
    assert "does not fit" in done.stdout and entry["reason"] in done.stdout
    assert localmoe("plan", path, "--ram", "0.1").returncode == 3
    quiet = localmoe("fit", path, "--ram", "0.1", "--quiet")
    assert (quiet.returncode, quiet.stdout) == (3, "does not fit\n")


def test_options_reach_the_plan(localmoe: Localmoe, arch_file: ArchFile) -> None:
    """Context, cache type, threads and batch are in the engine's settings and in its flags."""
    path = arch_file("qwen3moe")
    document = localmoe.document(
        "plan", path, "-c", "1k", "--kv-type", "q8_0", "-t", "1", "-b", "64", "--ram", "4"
    )
    engine = document["engine"]
    assert (engine["context"], engine["batch"], engine["threads"]) == (1024, 64, 1)
    assert (engine["type_k"], engine["type_v"]) == ("q8_0", "q8_0")
    flags = document["llama_cpp_args"]
    for flag, value in (("-m", str(path)), ("-c", "1024"), ("-ctk", "q8_0"), ("-t", "1")):
        assert flags[flags.index(flag) + 1] == value


def test_smaller_cache_types_take_less(localmoe: Localmoe, arch_file: ArchFile) -> None:
    """The engine's own KV sizes: q8_0 is 34/64 of f16 (GGML block of 32: 34 bytes for 64)."""
    path = arch_file("qwen3moe")
    sizes = [
        localmoe.document("fit", path, "--ctx", "4096", "--kv-type", kind)["files"][0]["memory"][
            "kv"
        ]
        for kind in ("f16", "q8_0")
    ]
    assert sizes[1] * 64 == sizes[0] * 34


def test_plan_document(localmoe: Localmoe, arch_file: ArchFile) -> None:
    """One row per layer, with the experts that the file has."""
    document = localmoe.document("plan", arch_file("qwen3moe"), "--ram", "4")
    assert set(document) == PLAN
    check_file(document)
    assert {"regime", "budget", "why"} == set(document["cache"])
    assert [layer["index"] for layer in document["layers"]] == list(range(len(document["layers"])))
    shown = localmoe.document("show", arch_file("qwen3moe"))
    assert len(document["layers"]) == shown["layers"]
    for layer in document["layers"]:
        assert set(layer) == LAYER
        assert (layer["dense"], layer["experts"]) == ("ram", "ram")
        assert layer["expert_count"] == shown["experts"]["count"]
        assert layer["expert_used"] == shown["experts"]["used"]


def test_run_document(localmoe: Localmoe, arch_file: ArchFile) -> None:
    """``run --json``: the contract's keys, the plan of ``plan --json``, files and session."""
    document = localmoe.document("run", arch_file("qwen3moe"), "hello", "-n", "3", "--temp", "0")
    assert set(document) == RUN | {"files", "session", "no_answer"}
    assert document["finish_reason"] in ("stop", "length")
    assert document["usage"]["completion_tokens"] <= 3
    assert {"prompt_tokens", "completion_tokens"} <= set(document["usage"])
    assert set(document["timings"]) == {"load_s", "ttft_s", "prefill_tps", "decode_tps"}
    assert set(document["cache"]) == {"regime", "hits", "misses", "hit_rate", "bytes_read"}
    assert set(document["plan"]) == PLAN - {"schema_version"}


def test_run_refuses_what_does_not_fit(localmoe: Localmoe, arch_file: ArchFile) -> None:
    """Nothing is loaded when the plan says no."""
    done = localmoe("run", arch_file("qwen3moe"), "hello", "--ram", "0.1")
    assert_clear_error(done, 3, "RAM can give")
    assert localmoe("chat", arch_file("qwen3moe"), "--ram", "0.1").returncode == 3


def test_supposed_gpu(localmoe: Localmoe, arch_file: ArchFile) -> None:
    """``--vram`` asks what a GPU of that size would change; the figures are marked as estimates."""
    document = localmoe.document("plan", arch_file("qwen3moe"), "--vram", "4")
    assert document["exact"] is False
    assert document["fits"].startswith("gpu")
    assert {layer["experts"] for layer in document["layers"]} == {"gpu"}
    check_file(document)


def test_another_machine(localmoe: Localmoe, arch_file: ArchFile, tmp_path: Path) -> None:
    """``doctor --json`` of one machine is ``--machine`` on another."""
    doctor = localmoe.document("doctor")
    assert set(doctor) == {
        "schema_version", "version", "python", "machine", "engine", "paths", "findings",
    }  # fmt: skip
    doctor["machine"]["ram_available"] = doctor["machine"]["ram_total"] = 1 << 28
    file = tmp_path / "small.json"
    file.write_text(json.dumps(doctor))
    document = localmoe.document("fit", arch_file("qwen3moe"), "--machine", file, code=3)
    assert document["machine"]["ram_total"] == 1 << 28


@pytest.mark.parametrize("content", ["", "no json", "[" * 5000, "{}", '{"ram_total": "x"}', None])
def test_bad_machine_files(
    localmoe: Localmoe, arch_file: ArchFile, tmp_path: Path, content: str | None
) -> None:
    """A usage error that names the file and says how to write one."""
    if content is not None:
        (tmp_path / "m.json").write_text(content)
    done = localmoe("fit", arch_file("qwen3moe"), "--machine", "m.json")
    assert_clear_error(done, 2, "--machine m.json", hint=content != '{"ram_total": "x"}')


def test_machine_is_refused_where_a_model_is_loaded(
    localmoe: Localmoe, arch_file: ArchFile
) -> None:
    done = localmoe("run", arch_file("qwen3moe"), "--machine", "m.json", "hi")
    assert_clear_error(done, 2, "--machine plans for another machine")


@pytest.mark.parametrize("part", [0, 1, 2])
def test_any_part_of_a_multi_part_model(localmoe: Localmoe, model_dir: Path, part: int) -> None:
    """Whichever part is named, the model is the whole."""
    first = generate("qwen3moe", model_dir, split=3)
    parts = sorted(first.parent.glob("qwen3moe-0-*-of-00003.gguf"))
    document = localmoe.document("show", parts[part])
    assert document["paths"] == [str(path) for path in parts]
    assert document["size"] == sum(path.stat().st_size for path in parts)


def test_show(localmoe: Localmoe, arch_file: ArchFile) -> None:
    document = localmoe.document("show", arch_file("deepseek2"))
    assert set(document) == SHOW
    assert document["architecture"] == document["metadata"]["general.architecture"] == "deepseek2"
    assert document["experts"]["shared"] > 0
    assert 0 < document["moe_layers"] < document["layers"]
    assert 0 < document["parameters"]["active"] < document["parameters"]["total"]
    assert document["chat_template"] is True
    tensors = sum(document["bytes"].values())
    assert 0.5 * document["size"] < tensors <= document["size"]


def test_dense_model(localmoe: Localmoe, arch_file: ArchFile) -> None:
    """A dense model works; it has no experts, and says so."""
    path = arch_file("llama-dense")
    done = localmoe("show", path)
    assert done.returncode == 0
    assert "no experts (a dense model)" in done.stdout
    document = localmoe.document("plan", path, "--ram", "4")
    assert document["memory"]["weights"]["experts"] == 0
    assert {layer["experts"] for layer in document["layers"]} == {None}


@pytest.mark.parametrize("command", ["fit", "plan", "show", "run"])
@pytest.mark.parametrize(
    ("kind", "fragment"),
    [
        ("not_gguf", "gguf"),
        ("empty", "gguf"),
        ("truncated", ""),
        ("truncated_header", ""),
        ("missing_part", "missing"),
        ("mixed_parts", ""),
        ("future_version", "version"),
    ],
)
def test_bad_model_files(
    localmoe: Localmoe, bad: dict[str, Path], command: str, kind: str, fragment: str
) -> None:
    """Every command refuses a bad file with what is wrong, exit code 4 and a hint."""
    words = ["hello"] if command == "run" else []
    assert_clear_error(localmoe(command, bad[kind], *words), 4, bad[kind].name[:7], fragment)


def test_bad_model_file_as_json(localmoe: Localmoe, bad: dict[str, Path]) -> None:
    document = localmoe.document("fit", bad["truncated"], code=4)
    assert document["error"]["code"] == "bad_model"
    assert document["error"]["hint"]


@pytest.mark.parametrize("kind", ["one_tensor_per_expert", "unknown_architecture"])
@pytest.mark.parametrize("command", ["fit", "run"])
def test_files_the_engine_refuses(
    localmoe: Localmoe, bad: dict[str, Path], command: str, kind: str
) -> None:
    """Files from 2023 with one tensor per expert, and unknown architectures: named as such."""
    words = ["hello"] if command == "run" else []
    said = {"one_tensor_per_expert": "expert", "unknown_architecture": "unheard_of"}[kind]
    assert_clear_error(localmoe(command, bad[kind], *words), 4, said)


def test_unreadable_files(localmoe: Localmoe, tmp_path: Path) -> None:
    """A folder, a loop of links and a file that is not there are told apart from bad content."""
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    for name in ("folder.gguf", "loop.gguf", "gone.gguf"):
        done = localmoe("fit", tmp_path / name)
        assert done.returncode in (2, 4)
        assert_clear_error(done, done.returncode, name)


@pytest.mark.parametrize("command", ["fit", "plan", "show", "run", "chat"])
def test_mistyped_model_name(localmoe: Localmoe, command: str) -> None:
    """The nearest name is offered; nothing is answered by another model."""
    words = ["hello"] if command == "run" else []
    done = localmoe(command, "nanoo", *words)
    assert_clear_error(done, 2, 'no model "nanoo". Did you mean nano?')


def test_list(localmoe: Localmoe) -> None:
    """In an empty home there is the bundled model, and nothing else."""
    document = localmoe.document("list")
    (entry,) = document["models"]
    assert set(entry) == {
        "name", "path", "parts", "size", "architecture", "quant", "parameters", "program",
        "readable", "problem",
    }  # fmt: skip
    assert entry["name"] == "nano"
    assert entry["size"] == Path(entry["path"]).stat().st_size
    assert "nano" in localmoe("list").stdout
    assert_clear_error(localmoe("list", "nano"), 2, "takes no MODEL")


def test_fit_without_model(localmoe: Localmoe) -> None:
    """A verdict for every model found here."""
    document = localmoe.document("fit")
    assert set(document) == FIT | {"catalog"}
    assert document["catalog"] == []  # offline
    assert document["model"] is None
    assert [entry["name"] for entry in document["files"]] == ["nano"]
    assert document["recommended"] == "nano"
    assert "nano" in localmoe("fit").stdout


def test_doctor_screen(localmoe: Localmoe) -> None:
    done = localmoe("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    for area in ("processor", "memory", "disk", "gpu", "engine", "models"):
        assert area in done.stdout
