"""What ``doctor`` finds, from records: every problem comes with what to type."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from localmoe.app.diagnosis import (
    engine_findings,
    gpu_findings,
    machine_findings,
    model_findings,
    speed_findings,
)
from localmoe.engine.devices import EngineInfo
from localmoe.errors import EngineError
from localmoe.facts import bandwidth
from localmoe.facts.catalog import models_package
from localmoe.facts.hardware import Gpu
from tests.cli.command import Localmoe
from tests.planning.invented import GIB, machine
from tests.planning.rates import RATES

ENGINE = EngineInfo("x", ("CPU",), ("AVX2",), True, ())


def test_an_idle_gpu_comes_with_the_command_that_builds_for_it() -> None:
    """The command names the GPU's backend; where there is no special one, that of any GPU."""
    idle = Gpu("RTX 4060", 8 * GIB, 8 * GIB, False, None, "cuda")
    (finding,) = gpu_findings(replace(machine(16), gpus=(idle,)))
    assert finding.text == "GPU idle: RTX 4060 is not in this engine build"
    assert finding.fix == "localmoe engine install cuda"
    (other,) = gpu_findings(replace(machine(16), gpus=(replace(idle, backend=None),)))
    assert other.fix == "localmoe engine install vulkan"


def test_a_gpu_in_use_needs_nothing() -> None:
    (finding,) = gpu_findings(machine(16, 8))
    assert finding.fix is None and "8.0 GiB free of 8.0 GiB" in finding.text


def test_limits_of_the_machine() -> None:
    """A memory limit and a full disk are told with what would change them."""
    healthy = list(machine_findings(machine(16)))
    assert all(finding.fix is None for finding in healthy)
    limited = replace(machine(16), ram_limited_by="cgroup v2", disk_free=GIB)
    fixes = {f.area: f for f in machine_findings(limited) if f.fix}
    assert set(fixes) == {"memory", "disk"}
    assert "limited by cgroup v2" in fixes["memory"].text


def test_the_engine() -> None:
    """A missing or idle helper says what is lost; an engine that does not start says why."""
    assert all(f.fix is None for f in engine_findings(ENGINE, None, "1.2.3"))
    without = engine_findings(replace(ENGINE, native_helper=False), None, "1.2.3")
    (missing,) = [finding for finding in without if finding.fix]
    assert "native helper: missing" in missing.text
    beside = engine_findings(replace(ENGINE, helper_preloaded=False), None, "1.2.3")
    (idle,) = [finding for finding in beside if finding.fix]
    assert "reads the whole file" in idle.text
    (broken,) = engine_findings(None, EngineError("no such library"), "1.2.3")
    assert "no such library" in broken.text
    assert broken.fix is not None and broken.fix.endswith("llama-cpp-python==1.2.3")


def test_a_measurement_can_be_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One made beside other programs says so, and both say what to type."""
    calm = replace(RATES, when="2026-02-03T04:05:06+00:00")
    text, again = (finding for finding in speed_findings(calm))
    assert "GB/s" in text.text and again.fix is None
    assert "measured 2026-02-03; localmoe doctor --measure" in again.text
    *_, busy = speed_findings(replace(calm, others=0.4))
    assert "other programs took 40%" in busy.text
    assert busy.fix is not None and busy.fix.startswith("localmoe doctor --measure")
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    bandwidth.save("key", calm)
    assert bandwidth.load("key") is not None
    bandwidth.forget()
    assert bandwidth.load("key") is None
    bandwidth.forget()


def test_ones_own_machine_file_forecasts_what_is_forecast_here(
    localmoe: Localmoe, arch_file: Callable[..., Path], tmp_path: Path
) -> None:
    """By the same rates, disk and earlier runs; another machine's file knows nothing of those."""
    model, file = arch_file("qwen3moe"), tmp_path / "own.json"
    assert localmoe("run", "-m", model, "hi", "-n", "40", "--temp", "0").returncode == 0
    (kept,) = tmp_path.rglob("speeds.jsonl")
    ran = [json.loads(line) | {"decode": 1.5} for line in kept.read_text().splitlines()]
    kept.write_text("".join(f"{json.dumps(line)}\n" for line in ran))
    document = localmoe.document("doctor")
    file.write_text(json.dumps(document))
    (here,) = localmoe.document("fit", model)["files"]
    (own,) = localmoe.document("fit", model, "--machine", file)["files"]
    speeds = ("decode_tps", "prefill_tps", "first_token_s", "speed_why", "max_context", "fits")
    assert {name: own[name] for name in speeds} == {name: here[name] for name in speeds}
    assert "as in earlier runs" in own["speed_why"]
    file.write_text(json.dumps(document | {"machine": document["machine"] | {"key": "another"}}))
    (other,) = localmoe.document("fit", model, "--machine", file)["files"]
    assert "as in earlier runs" not in other["speed_why"]


def test_the_bundled_model() -> None:
    here = models_package() / "nano.gguf"
    assert [f.fix for f in model_findings([here])] == [None]
    (_, missing) = model_findings([Path("/elsewhere/big.gguf")])
    assert "bundled model is missing" in missing.text and missing.fix
