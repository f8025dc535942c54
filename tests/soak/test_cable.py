"""A cable that is pulled: two machines as network namespaces, joined by a pair of interfaces."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localmoe.cli.loaded import REMOTE_SILENCE
from localmoe.engine.rpc import ANSWER_LIMIT, DEAD_AFTER
from localmoe.engine.rpc_serving import Server
from scripts.make_standin import MODELS, make_standin
from tests.archs.rpc_server import HOST, free_port
from tests.cli.command import COMMAND, environment
from tests.needs import missing
from tests.soak.conftest import Figures
from tests.waiting import wait_until

pytestmark = pytest.mark.soak
HERE, THERE, PORT = "10.77.31.1", "10.77.31.2", 50052
FAR, NEAR_END, FAR_END = "localmoe-far", "lmoe-near", "lmoe-far"
RATE = "400mbit"  # of the cable, so that a load takes a while
LATEST = ANSWER_LIMIT + DEAD_AFTER + 30.0  # seconds until everybody has been told, on any machine


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Cable:
    """Two interfaces, one here and one in the other machine's namespace."""

    ends = ("here", "there")

    def set(self, end: str, state: str) -> None:
        if end == "here":
            ip("link", "set", NEAR_END, state)
        else:
            ip("-n", FAR, "link", "set", FAR_END, state)


@pytest.fixture(scope="module")
def cable(rpc_lib: Path) -> Iterator[Cable]:
    for left_over in (("link", "del", NEAR_END), ("netns", "del", FAR)):
        with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError):
            ip(*left_over)
    try:
        ip("netns", "add", FAR)
        ip("link", "add", NEAR_END, "type", "veth", "peer", "name", FAR_END, "netns", FAR)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        missing(f"no network namespace can be made here: {error}", expected=False)
    ip("addr", "add", f"{HERE}/30", "dev", NEAR_END)
    ip("-n", FAR, "addr", "add", f"{THERE}/30", "dev", FAR_END)
    limit = ("root", "tbf", "rate", RATE, "burst", "512k", "latency", "100ms")
    subprocess.run(["tc", "qdisc", "add", "dev", NEAR_END, *limit], check=True)
    cable = Cable()
    for end in cable.ends:
        cable.set(end, "up")
    ip("-n", FAR, "link", "set", "lo", "up")
    yield cable
    ip("netns", "del", FAR)


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.4 GB: eight seconds on this cable."""
    path = tmp_path_factory.mktemp("cable") / "one-layer.gguf"
    return make_standin(MODELS["qwen3-30b-a3b"], path, layers=1, vocab=4096)


@contextlib.contextmanager
def worker(home: Path) -> Iterator[subprocess.Popen[str]]:
    """``localmoe worker`` on the other machine."""
    home.mkdir(exist_ok=True)
    words = ["worker", "--host", THERE, "--port", str(PORT), "--ram", "2", "--json"]
    child = subprocess.Popen(
        ["ip", "netns", "exec", FAR, *COMMAND, *words],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    try:
        said = ""
        while not said.endswith("\n}\n"):
            line = child.stdout.readline()
            assert line, said
            said += line
        yield child
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(30)


STAGES = {  # what `run --jsonl` writes when a stage is under way
    "load": lambda event: event.get("event") == "load" and event["fraction"] > 0.2,
    "prefill": lambda event: event.get("event") == "prefill" and event.get("done", 1) > 0,
    "decode": lambda event: event.get("event") == "answer",
}
PROMPT = "A mixture of experts has many small networks and a router. " * 300


def begun(home: Path, model: Path, stage: str) -> subprocess.Popen[str]:
    """A run on the worker that is in the middle of ``stage``."""
    words = ["run", "-m", str(model), "--remote", f"{THERE}:{PORT}", "--jsonl", "-c", "8192"]
    child = subprocess.Popen(
        [*COMMAND, *words, "-n", "3000", "--temp", "0", PROMPT if stage == "prefill" else "Once"],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    seen = []
    for line in child.stdout:
        seen.append(line)
        if STAGES[stage](json.loads(line)):
            return child
    raise AssertionError((seen, child.communicate()))


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("end", Cable.ends)
def test_a_pulled_cable(
    stage: str, end: str, cable: Cable, one_layer: Path, tmp_path: Path, figures: Figures
) -> None:
    """A cable pulled in a load, a prompt or an answer ends the run, which names the worker."""
    with worker(tmp_path / "far"):
        child = begun(tmp_path, one_layer, stage)
        start = time.monotonic()
        cable.set(end, "down")
        try:
            out, err = child.communicate(timeout=LATEST)
        finally:
            child.kill()
            cable.set(end, "up")
        figures |= {f"s until the run ended ({stage}, down {end})": round(time.monotonic() - start)}
        print(figures)
        told = err + out.splitlines()[-1]
        assert child.returncode == 1, told
        assert f"{THERE}:{PORT}" in told
        assert "Traceback" not in told
        print(told)
        # The worker has noticed as well, and serves again.
        again = [*COMMAND, "run", "-m", str(one_layer), "--remote", f"{THERE}:{PORT}", "-n", "3"]

        def serves() -> bool:
            done = subprocess.run(
                [*again, "-c", "512", "hi"], env=environment(tmp_path), capture_output=True
            )
            return done.returncode == 0

        wait_until(serves, "the worker serves nobody after the cable was out")


@pytest.mark.parametrize("stage", list(STAGES))
def test_ctrl_c_without_a_cable(
    stage: str, cable: Cable, one_layer: Path, tmp_path: Path, figures: Figures
) -> None:
    """The first Ctrl-C leaves a worker whose cable is out, whatever it was doing."""
    with worker(tmp_path / "far"):
        child = begun(tmp_path, one_layer, stage)
        cable.set("there", "down")
        time.sleep(1.0)
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        try:
            out, err = child.communicate(timeout=LATEST)
        finally:
            child.kill()
            cable.set("there", "up")
        figures[f"s from Ctrl-C to the prompt ({stage})"] = round(time.monotonic() - start)
        print(figures)
        told = err + out.splitlines()[-1]
        assert child.returncode == 130, told
        assert f"{THERE}:{PORT}" in told
        print(told)


def test_a_worker_that_sleeps_and_wakes(
    rpc_lib: Path, one_layer: Path, tmp_path: Path, figures: Figures
) -> None:
    """One of two workers is stopped in an answer and goes on later: so does the answer, word for
    word, and meanwhile a line says who is waited for.
    """
    with Server(HOST, free_port(), 1, 2 << 30) as one, Server(HOST, free_port(), 1, 2 << 30) as two:
        asked = [*COMMAND, "run", "-m", str(one_layer), "-n", "60", "--temp", "0", "-c", "512"]
        asked += ["--remote", one.endpoint, "--remote", two.endpoint, "--jsonl"]
        asked += ["-ot", "ffn_up_exps=RPC0", "-ot", "ffn_down_exps=RPC1", "Once"]
        env = environment(tmp_path)
        undisturbed = subprocess.run(asked, env=env, capture_output=True, text=True)
        assert undisturbed.returncode == 0, undisturbed.stderr
        child = subprocess.Popen(
            asked, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        said = []
        for line in child.stdout:
            said.append(json.loads(line))
            if said[-1].get("event") == "answer":
                break
        os.kill(two.pid, signal.SIGSTOP)
        time.sleep(REMOTE_SILENCE + 3)
        os.kill(two.pid, signal.SIGCONT)
        out, err = child.communicate(timeout=LATEST)
    assert child.returncode == 0, err
    assert f"the workers at {one.endpoint}, {two.endpoint}" in err
    before = json.loads(undisturbed.stdout.splitlines()[-1])
    after = json.loads(out.splitlines()[-1])
    assert after["text"] == before["text"]
    figures["s asleep"] = round(REMOTE_SILENCE) + 3
    figures |= {"tokens": after["usage"]["completion_tokens"]}
    print(figures, err)
