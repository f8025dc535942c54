"""What ``doctor`` finds, from records: every problem comes with what to type."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from localmoe.app.diagnosis import engine_findings, gpu_findings, machine_findings, model_findings
from localmoe.engine.devices import EngineInfo
from localmoe.errors import EngineError
from localmoe.facts.catalog import models_package
from localmoe.facts.hardware import Gpu
from tests.planning.invented import GIB, machine

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


def test_the_bundled_model() -> None:
    here = models_package() / "nano.gguf"
    assert [f.fix for f in model_findings([here])] == [None]
    (_, missing) = model_findings([Path("/elsewhere/big.gguf")])
    assert "bundled model is missing" in missing.text and missing.fix
