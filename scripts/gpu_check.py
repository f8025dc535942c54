"""Whether a device computes what the processor does, holds what was planned, and how fast it is.

    scripts/gpu_check.sh FOLDER [--vram GIB] [--model NAME] [--layers N] [--minutes M]

``FOLDER``: has the module of a backend, and gets gpu.json and gpu.md. A stand-in is made there and
run as localmoe plans it for ``--vram``, and as llama.cpp does by default and with ``--n-cpu-moe``.
What there is no time for is left out, and said to be.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from localmoe.app.engine_builds import install_file
from localmoe.app.forecasts import tuned_here, with_forecast
from localmoe.app.listener import Silent
from localmoe.app.machine import find_machine
from localmoe.app.plans import plan_for
from localmoe.bench.runner import prompt_of
from localmoe.cli.arguments import parse
from localmoe.cli.requests import plan_request
from localmoe.engine import modules
from localmoe.engine.client import Engine
from localmoe.engine.devices import engine_info
from localmoe.engine.events import Finished, Loaded, Request, Sampling, Token
from localmoe.engine.package import binding_version
from localmoe.errors import LocalmoeError
from localmoe.facts import catalog
from localmoe.facts.model import read_model
from localmoe.planning.layout import experts_to_host
from localmoe.planning.memory import EngineSettings
from localmoe.planning.plan import Plan
from scripts.make_standin import MODELS, make_standin

ROOT = Path(__file__).resolve().parents[1]
GIB = 1 << 30
GREEDY = Sampling(temperature=0.0)
LAYOUTS = {
    "all on the device": [],
    "experts in RAM": ["--experts-on", "ram"],
    "experts on disk": ["--experts-on", "disk", "--cache-ram", "0.02"],
}


@dataclass
class Row:
    """One way to run the stand-in: tokens per second, bytes on the device."""

    name: str
    batch: int = 0
    prefill_tps: float = 0.0
    decode_tps: float = 0.0
    planned: int = 0  # by the plan; 0 where nothing was planned
    reported: int = 0  # by the engine, once loaded
    used: int = 0  # less was free on the device then
    error: str = ""


@dataclass
class Report:
    """All that is found."""

    day: str
    system: str
    device: str
    memory: int
    engine: str
    seconds: dict[str, float] = field(default_factory=dict)
    tests: str = "not run"
    same_words: dict[str, bool] = field(default_factory=dict)
    model: str = ""
    size: int = 0
    prompt_tokens: int = 0
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


class Check:
    """The steps, until ``minutes`` are over."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._begun = time.monotonic()
        info = engine_info()
        found = [gpu for gpu in info.gpus if gpu.device and gpu.remote is None]
        if not found:
            raise SystemExit(f"the engine sees no device: {info.modules or info.backends}")
        self._device, self._backend = str(found[0].device), found[0].backend or ""
        self.report = Report(
            date.today().isoformat(),
            f"{platform.system()} {platform.release()}, {os.cpu_count()} cores",
            f"{self._device}: {found[0].name}",
            found[0].total,
            f"llama-cpp-python {binding_version()}",
        )

    def run(self) -> Report:
        """Each step in turn; one that fails does not keep the others from running."""
        self._step("words", 60, self._same_words)
        self._step("tests", 150, self._tests)
        self._step("stand-in", 60, self._make)
        if self.report.size:
            if not self._options.untimed:
                self._step("timing", 60, self._time)
            for name, settings in self._ways():
                self._step(name, 45, partial(self._row, name, settings))
        return self.report

    def _step(self, name: str, needs: float, act: Callable[[], None]) -> None:
        """``needs``: seconds without which it is not begun."""
        left = 60 * self._options.minutes - (time.monotonic() - self._begun)
        if left < needs:
            self.report.left_out.append(name)
            return
        start = time.monotonic()
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            act()
        except (LocalmoeError, OSError, subprocess.SubprocessError) as error:
            self.report.left_out.append(f"{name}: {error}")
        self.report.seconds[name] = round(time.monotonic() - start, 1)

    def _same_words(self) -> None:
        """nano's answer after a prompt of several batches' length, on the device and off it."""
        path = catalog.resolve("nano")
        words = "".join(f"Tell me about the router of layer {n}, please. " for n in range(40))
        plain = self._answer(path, ["--gpu-layers", "0"], words)
        for name, options in LAYOUTS.items():
            self.report.same_words[name] = self._answer(path, options, words) == plain

    def _answer(self, path: Path, options: Sequence[str], words: str) -> str:
        plan = planned(path, *options, "--ctx", "1024")
        with Engine(read_model(path), plan.settings, remember=False) as engine:
            list(engine.load())
            request = Request(words, max_tokens=24, sampling=GREEDY)
            return "".join(e.text for e in engine.generate(request) if isinstance(e, Token))

    def _tests(self) -> None:
        module = modules.installed()[self._backend]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-n", "0", "-m", "soak", "-x"),
                *("-p", "no:cacheprovider", "tests/soak/test_devices.py"),
            ],
            env={**os.environ, "LOCALMOE_DEVICE_MODULE": str(module)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )
        self.report.tests = (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]

    def _make(self) -> None:
        options, report = self._options, self.report
        path = options.folder / f"{options.model}-{options.layers or 'all'}.gguf"
        if not path.exists():
            make_standin(MODELS[options.model], path, layers=options.layers, uniform=True)
        self._model = read_model(path)
        report.model, report.size = path.stem, self._model.size

    def _time(self) -> None:
        """What the machine can do, by which plans are tuned."""
        asked = plan_request(parse(["plan", str(self._model.paths[0])]))
        machine = find_machine(asked, hypothetical=False)
        plan = plan_for(self._model, machine, asked, hypothetical=False)
        with_forecast(self._model, plan, machine, asked, Silent())

    def _ways(self) -> list[tuple[str, Plan | EngineSettings]]:
        vram = self._options.vram or min(self.report.memory, self._model.size // 2) / GIB
        context = ("--ctx", str(self._options.prompt + 512))
        path = self._model.paths[0]
        ours = planned(path, *context, "--vram", f"{vram:.2f}")
        whole = planned(path, *context)
        base = replace(
            whole.settings,
            batch=512,
            ubatch=512,
            devices=(self._device,),
            tensor_split=(),
            gpu_layers=-1,
            overrides=(),
            op_offload=True,
            cache="off",
            read_ahead=True,
        )
        layers = [layer.index for layer in self._model.layers if layer.expert_count]
        half = layers[: len(layers) // 2]
        return [
            (f"localmoe, --vram {vram:.2f}", ours),
            (f"localmoe, --vram {vram:.2f}, --batch 512", self._small(path, vram, context)),
            ("localmoe, all of the device", whole),
            ("llama.cpp's defaults", base),
            (f"--n-cpu-moe {len(half)}", replace(base, overrides=experts_to_host(half))),
            (f"--n-cpu-moe {len(layers)}", replace(base, overrides=experts_to_host(layers))),
        ]

    def _small(self, path: Path, vram: float, context: tuple[str, str]) -> Plan:
        return planned(path, *context, "--vram", f"{vram:.2f}", "--batch", "512")

    def _row(self, name: str, way: Plan | EngineSettings) -> None:
        settings = way if isinstance(way, EngineSettings) else way.settings
        row = Row(name, settings.ubatch)
        if isinstance(way, Plan):
            row.planned = way.memory.on(self._device).total
        self.report.rows.append(row)
        before = self._free()
        try:
            with Engine(self._model, settings, remember=False) as engine:
                *_, loaded = engine.load()
                assert isinstance(loaded, Loaded)
                row.reported = loaded.memory.on(self._device).total
                done = self._finished(engine)
                row.used = before - self._free()
        except LocalmoeError as error:
            row.error = error.message
            return
        row.prefill_tps, row.decode_tps = done.prefill_tps or 0.0, done.decode_tps or 0.0
        self.report.prompt_tokens = done.prompt_tokens

    def _finished(self, engine: Engine) -> Finished:
        prompt = prompt_of(self._options.prompt, engine.count_tokens)
        request = Request(prompt, max_tokens=self._options.tokens, sampling=GREEDY, ignore_end=True)
        *_, done = engine.generate(request)
        assert isinstance(done, Finished)
        return done

    def _free(self) -> int:
        return next(gpu.free for gpu in engine_info().gpus if gpu.device == self._device)


def planned(path: Path, *options: str) -> Plan:
    """As the command line would, by what was timed so far."""
    asked = plan_request(parse(["run", str(path), *options]))
    machine = find_machine(asked, hypothetical=False)
    model = read_model(path)
    plan = plan_for(model, machine, asked, hypothetical=False)
    return tuned_here(model, plan, machine, asked)


def page(report: Report) -> str:
    """The report for docs."""

    def size(count: int) -> str:
        return f"{count / (1 << 20):,.0f} MiB" if count else "–"

    same = [f"{name}: {'yes' if is_so else 'NO'}" for name, is_so in report.same_words.items()]
    lines = [
        "# On a GPU",
        "",
        f"Written by `scripts/gpu_check.sh` on {report.day}: {report.device}, "
        f"{report.memory / GIB:.1f} GiB, {report.system}, {report.engine}.",
        "",
        "- nano says on it word for word what it says on the processor: "
        f"{', '.join(same) or 'not tried'}",
        f"- tests/soak/test_devices.py: {report.tests}",
        f"- {report.model}, {report.size / 1e9:.1f} GB, random weights: a prompt of "
        f"{report.prompt_tokens:,} tokens, one run each:",
        "",
        "| how | batch | prompt tok/s | answer tok/s | planned there | engine's report | used |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in report.rows:
        speeds = row.error or f"{row.prefill_tps:,.0f} | {row.decode_tps:.1f}"
        bytes_ = " | ".join(map(size, (row.planned, row.reported, row.used)))
        lines.append(f"| {row.name} | {row.batch} | {speeds}{' |' * bool(row.error)} | {bytes_} |")
    lines += ["", f"Left out: {'; '.join(report.left_out) or 'nothing'}."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vram", type=float, help="GiB that a plan may use (half of the model)")
    parser.add_argument("--model", choices=sorted(MODELS), default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, default=24, help="of the stand-in (24)")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens to read (4096)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to write (64)")
    parser.add_argument("--untimed", action="store_true", help="for a rehearsal: a slow device")
    parser.add_argument("--minutes", type=float, default=8)
    options = parser.parse_args(arguments)
    found = [options.folder / modules.file_name(name) for name in modules.NAMES]
    for path in found:
        if path.is_file():
            install_file(path)
    report = Check(options).run()
    document: dict[str, Any] = asdict(report)
    (options.folder / "gpu.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.folder / "gpu.md").write_text(page(report))
    print(page(report))
    return 0 if report.same_words and all(report.same_words.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
