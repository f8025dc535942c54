"""A disk that stops answering, at the start or in an answer: the prompt always comes back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from tests import rates
from tests.cli.chat.terminal import CTRL_C, CTRL_D, Terminal
from tests.cli.command import COMMAND, environment
from tests.engine.test_process import gone
from tests.systems.fault_fs import WAITING, mounted
from tests.waiting import PATIENCE, wait_until

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="FUSE is mounted by hand"),
]
# Memory for a few experts only, so that each token reads.
FEW = [
    "--cache",
    "private",
    "--cache-ram",
    "0.001",
    "-c",
    "512",
    "-n",
    "480",
    "-t",
    "1",
    "--temp",
    "0",
]


@dataclass(frozen=True, slots=True)
class Disk:
    """A mount with one model in it, which can stop answering."""

    path: Path
    stall: Path

    def hang(self) -> None:
        self.stall.touch()

    def wait_for_a_reader(self) -> None:
        """Until somebody waits for an answer of the disk, which hangs."""
        wait_until(self.stall.with_suffix(WAITING).exists)

    def go_on(self) -> None:
        self.stall.unlink(missing_ok=True)


@pytest.fixture
def disk(arch_file: Callable[[str], Path], tmp_path: Path) -> Iterator[Disk]:
    folder, stall = tmp_path / "models", tmp_path / "stall"
    folder.mkdir()
    shutil.copy2(arch_file("qwen3moe"), folder / "model.gguf")
    with mounted(folder, tmp_path / "disk", "--stall", str(stall)) as point:
        disk = Disk(point / "model.gguf", stall)
        try:
            yield disk
        finally:
            disk.go_on()


@dataclass(frozen=True, slots=True)
class Answering:
    """A ``localmoe run`` in the middle of its answer, from a file on the disk."""

    process: subprocess.Popen[bytes]
    disk: Disk
    worker: int

    def hang(self) -> None:
        """From now on the disk answers nothing; wait until no more of the answer comes."""
        self.disk.hang()
        self.disk.wait_for_a_reader()
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        while self.process.stdout.read() is not None:
            time.sleep(0.5)

    def says(self, words: str) -> bool:
        """Whether its standard error has these words, before it ends."""
        assert self.process.stderr is not None
        said = b""
        while words.encode() not in said:
            more = os.read(self.process.stderr.fileno(), 4096)
            if not more:
                return False
            said += more
        return True


@pytest.fixture
def answering(disk: Disk, tmp_path: Path) -> Iterator[Answering]:
    home = tmp_path / "home"
    rates.seed(home)
    command = [*COMMAND, "run", str(disk.path), "Go on", *FEW, "--no-history"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(home),
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(10)
        yield Answering(process, disk, worker_of(process.pid))
        process.stdout.close()
        process.stderr.close()
    finally:
        disk.go_on()
        process.kill()
        process.wait()


def worker_of(pid: int) -> int:
    """The engine process that another process has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (found,) = (
        int(child)
        for child in children
        if b"localmoe.engine.worker" in Path(f"/proc/{child}/cmdline").read_bytes()
    )
    return found


def test_ctrl_c_twice(answering: Answering) -> None:
    """The first is answered with what is waited for, the second leaves; the worker goes too."""
    answering.hang()
    answering.process.send_signal(signal.SIGINT)
    assert answering.says("waiting for the disk; Ctrl-C again leaves")
    answering.process.send_signal(signal.SIGINT)
    assert answering.process.wait(PATIENCE) == 130  # while the disk still hangs
    answering.disk.go_on()
    assert gone(answering.worker)


def test_the_first_sigterm(answering: Answering) -> None:
    """It ends the program, whatever the disk does."""
    answering.hang()
    answering.process.terminate()
    assert answering.process.wait(PATIENCE) == 143
    answering.disk.go_on()
    assert gone(answering.worker)


def test_ctrl_c_once_where_the_disk_comes_back(answering: Answering) -> None:
    """The answer ends as after any interrupt."""
    answering.hang()
    answering.process.send_signal(signal.SIGINT)
    answering.disk.go_on()
    assert answering.process.wait(PATIENCE) == 130


@pytest.mark.parametrize("ends", ["Ctrl-C twice", "SIGTERM"])
def test_in_a_chat(ends: str, disk: Disk, tmp_path: Path) -> None:
    """The same in a terminal, where the model's file cannot even be looked at any more."""
    home = tmp_path / "home"
    home.mkdir()
    terminal = Terminal(home, "-m", "localmoe", "chat", str(disk.path), *FEW)
    try:
        terminal.say("Go on")
        terminal.wait(lambda text: len(text.partition("> Go on")[2]) > 40)
        disk.hang()
        disk.wait_for_a_reader()
        time.sleep(1.5)  # what the system knows of the file is old then
        if ends == "SIGTERM":
            terminal.child.kill(signal.SIGTERM)
        else:
            terminal.type(CTRL_C)
            terminal.wait("waiting for the disk; Ctrl-C again leaves")
            terminal.type(CTRL_C)
        terminal.child.expect(pexpect.EOF, timeout=PATIENCE)
        terminal.child.wait()
        assert terminal.child.exitstatus == (143 if ends == "SIGTERM" else 130)
    finally:
        disk.go_on()
        terminal.child.close(force=True)


def open_files(pid: int) -> Iterator[Path]:
    """Their names, as the system knows them: none of them is looked at."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            yield link.readlink()


def test_a_chat_whose_model_never_comes(disk: Disk, tmp_path: Path) -> None:
    """The input line is there, the file's header is not: leaving gives the prompt back."""
    home = tmp_path / "home"
    home.mkdir()
    disk.hang()
    terminal = Terminal(home, "-m", "localmoe", "chat", str(disk.path), *FEW)
    try:
        terminal.wait("planning")
        pid = terminal.child.pid
        assert pid is not None
        wait_until(lambda: disk.path in open_files(pid))
        terminal.type(CTRL_D)
        terminal.child.expect(pexpect.EOF, timeout=PATIENCE)
        terminal.child.wait()
        assert terminal.child.exitstatus == 0
    finally:
        disk.go_on()
        terminal.child.close(force=True)


def waits_for(pid: int, path: Path) -> bool:
    """Whether a process's main thread is in the kernel until a file system answers for ``path``."""
    waits = Path(f"/proc/{pid}/wchan").read_text()
    if waits.startswith("folio_wait"):  # for a page, of that file or of another one
        return path in open_files(pid)
    return waits == "request_wait_answer"


@pytest.mark.parametrize(
    ("number", "code", "looks"),
    [(signal.SIGINT, 130, False), (signal.SIGTERM, 143, True)],
    ids=["Ctrl-C while it reads", "SIGTERM while it looks"],
)
def test_before_there_is_an_engine(
    number: signal.Signals, code: int, looks: bool, disk: Disk, tmp_path: Path
) -> None:
    """The command itself reads the file's header, or only looks whether it is there."""
    home = tmp_path / "home"
    home.mkdir()
    disk.hang()
    reader = None
    if looks:  # the file system answers one request at a time: with this one it is busy
        reader = subprocess.Popen(["head", "-c", "1", disk.path], stdout=subprocess.DEVNULL)
        wait_until(lambda: waits_for(reader.pid, disk.path))
    process = subprocess.Popen(
        [*COMMAND, "run", str(disk.path), "Go on", *FEW],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(home),
    )
    try:
        wait_until(lambda: waits_for(process.pid, disk.path))
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
        assert process.stderr is not None
        said = process.stderr.read()  # nothing where the system ended the read in time
        assert not said or b"the disk does not answer" in said
    finally:
        disk.go_on()
        for each in filter(None, (process, reader)):
            each.kill()
            each.communicate()
