"""Runs of llama.cpp's own programs beside ours."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.bench.figures import summarize, window
from localmoe.bench.limits import Unlimited
from localmoe.bench.records import Job, Run
from localmoe.bench.runner import Start
from localmoe.bench.versus import BENCH, SERVER, Program, bench_args, program_of, speeds_of_bench
from localmoe.errors import EngineError, UsageError
from localmoe.facts.model import Model, read_model
from localmoe.planning.memory import EngineSettings

SETTINGS = EngineSettings(context=512, batch=64, ubatch=64, threads=1)

# What llama-bench (b-version of llama-cpp-python 0.3.36) prints with ``-o json``, shortened.
ANSWER = """[
  {"model_type": "qwen3moe ?B", "n_batch": 64, "n_threads": 1, "n_prompt": 24, "n_gen": 0,
   "avg_ns": 9000000, "stddev_ns": 0, "avg_ts": 2666.6, "stddev_ts": 0.0, "samples_ts": [ 2666.6 ]},
  {"model_type": "qwen3moe ?B", "n_batch": 64, "n_threads": 1, "n_prompt": 0, "n_gen": 12,
   "avg_ns": 12000000, "stddev_ns": 0, "avg_ts": 1000.5, "stddev_ts": 0.0, "samples_ts": [ 1000.5 ]}
]"""


@pytest.fixture(scope="module")
def model(arch_file: Callable[..., Path]) -> Model:
    return read_model(arch_file("qwen3moe"))


def script(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}")
    path.chmod(0o755)
    return path


def measured(program: Program, model: Model) -> Run:
    return program.measure(Run(job(model, program)), model, Start(SETTINGS), Unlimited())


def job(model: Model, program: Program) -> Job:
    return Job(model.name, model.size, program.name, None, 0, prompt_tokens=24, steps=12)


@pytest.mark.parametrize("command", ["", "ollama serve", "llama-cli", "/no/such/llama-server", "'"])
def test_other_programs_are_refused(command: str) -> None:
    """With the two that can be compared named."""
    with pytest.raises(UsageError) as error:
        program_of(command)
    assert "llama-server" in (error.value.hint or "")


def test_a_command_may_have_options(tmp_path: Path) -> None:
    path = script(tmp_path, "llama-server", "")
    assert program_of(f"'{path}' -fa on") == Program(SERVER, (str(path), "-fa", "on"))


@pytest.mark.process
def test_llama_bench_gets_the_same_settings(model: Model, tmp_path: Path) -> None:
    """The program is asked for the same lengths and settings; its two speeds are what it says."""
    said = tmp_path / "said"
    path = script(tmp_path, BENCH, f'echo "$@" > {said}\ncat <<END\n{ANSWER}\nEND\n')
    program = program_of(str(path))
    made = measured(program, model)
    assert (made.prefill_tps, made.decode_tps) == (2666.6, 1000.5)
    words = said.read_text().split()
    for flag, value in (("-p", "24"), ("-n", "12"), ("-t", "1"), ("-ub", "64"), ("-dev", "none")):
        assert words[words.index(flag) + 1] == value
    assert words[words.index("-m") + 1] == str(model.paths[0])


def test_a_program_that_tells_its_speed_alone(model: Model) -> None:
    """Its decode speed counts over all steps; bytes that nobody counted are not zero."""
    told = Run(job(model, Program(BENCH, ())), decode_tps=4.0, prefill_tps=50.0)
    found = window(told, 12)
    assert found is not None and (found.tps, found.read) == (4.0, None)
    assert window(told, 6) is None
    summary = summarize([told], shared=12)
    assert summary.decode is not None and summary.decode.median == 4.0
    assert summary.bytes_per_token is None and summary.own_bound is None


@pytest.mark.process
def test_a_program_that_fails_is_told(model: Model, tmp_path: Path) -> None:
    """With its last words."""
    for name in (BENCH, SERVER):
        program = program_of(str(script(tmp_path, name, "echo out of luck >&2; exit 7\n")))
        with pytest.raises(EngineError) as error:
            measured(program, model)
        assert "out of luck" in error.value.message and "7" in error.value.message


@pytest.mark.parametrize("answer", ["[]", "{}", "[1]", '[{"n_gen": 1}]', "null"])
def test_other_answers_are_no_speeds(answer: str) -> None:
    with pytest.raises(ValueError):
        speeds_of_bench(json.loads(answer))


def test_experts_elsewhere_are_told_to_llama_bench() -> None:
    settings = EngineSettings(
        2048, devices=("CUDA0",), gpu_layers=-1, overrides=(("blk.0.*exps", "CPU"), ("x", "CUDA0"))
    )
    args = bench_args(settings, 1, 1)
    assert args[args.index("-ot") + 1] == "blk.0.*exps=CPU;x=CUDA0"
    assert args[args.index("-ngl") + 1] == "999"


@pytest.mark.skipif(
    not os.environ.get("LOCALMOE_LLAMA_SERVER") and not shutil.which(SERVER),
    reason="no llama-server here (scripts/llama_programs.py builds one)",
)
def test_llama_server_writes_what_we_write(model: Model) -> None:
    """The real program: every token is timed, and counted as ours are."""
    program = program_of(os.environ.get("LOCALMOE_LLAMA_SERVER") or SERVER)
    made = measured(program, model)
    assert made.ticks[-1].tokens == 13
    assert made.decode_tps > 0 and made.prefill_tps > 0 and made.load_s > 0
    assert made.first_s > made.ttft_s > 0
