"""Files that change, shrink or cannot be read while their experts come from them.

Each is an error that says so, never an answer made of old logits; and the conversation goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Loaded, Request, Sampling, Token
from localmoe.errors import EngineCrashError, EngineError, LocalmoeError, ModelFileError
from localmoe.facts.model import read_model
from localmoe.planning.cache import routed_tensors
from localmoe.planning.memory import EngineSettings
from tests.engine.cache_matrix import BASE, FIRST, variants
from tests.engine.cached import Case, Conversation, Turn, in_child, planned, run_cases
from tests.needs import no_mount

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]
REGIMES = ("page", "private, least", "private, half")
OTHER = "Something else, so that other experts are needed: zebra, 1234, code. "


@pytest.fixture
def file(arch_file: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copy2(arch_file("qwen3moe"), tmp_path / "model.gguf"))


@contextlib.contextmanager
def loaded(path: Path, settings: EngineSettings) -> Iterator[Engine]:
    with Engine(read_model(path), settings, remember=False) as engine:
        list(engine.load())
        yield engine


def ask(engine: Engine, prompt: str = FIRST) -> str:
    request = Request(prompt, max_tokens=6, sampling=Sampling(temperature=0), ignore_end=True)
    events = list(engine.generate(request))
    done = events[-1]
    assert isinstance(done, Finished)
    assert done.reason == "length", "the engine's error is not the user's interrupt"
    return "".join(event.text for event in events if isinstance(event, Token))


def settings_of(path: Path, regime: str) -> EngineSettings:
    return dict(variants(path))[regime]


@pytest.mark.parametrize("regime", REGIMES)
def test_a_truncated_file(regime: str, file: Path) -> None:
    """Every request says so; when the rest is back, the same conversation goes on rightly."""
    settings, content, times = settings_of(file, regime), file.read_bytes(), file.stat()
    with loaded(file, settings) as engine:
        expected = ask(engine, OTHER)
    with loaded(file, settings) as engine:
        ask(engine)
        os.truncate(file, len(content) - 50_000)
        for _ in range(2):
            with pytest.raises(ModelFileError, match=r"model\.gguf was changed") as caught:
                ask(engine, OTHER)
            assert "load the model again" in (caught.value.hint or "")
        assert engine.alive
        with file.open("r+b") as out:
            out.write(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert ask(engine, OTHER) == expected


@pytest.mark.parametrize("regime", REGIMES)
def test_a_file_rewritten_in_place(regime: str, file: Path, arch_file: Callable[..., Path]) -> None:
    """No answer of two models: an error until it is loaded again, then the new one's answers."""
    settings, other = settings_of(file, regime), arch_file("qwen3moe", seed=1).read_bytes()
    with loaded(file, settings) as engine:
        ask(engine)
        with file.open("r+b") as out:
            out.write(other)
            out.truncate(len(other))
        for prompt in (OTHER, FIRST):
            with pytest.raises(ModelFileError, match="was changed"):
                ask(engine, prompt)
        assert isinstance(list(engine.load())[-1], Loaded)
        answer = ask(engine)
    with loaded(arch_file("qwen3moe", seed=1), settings) as engine:
        assert answer == ask(engine)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_replaced_file(regime: str, file: Path, arch_file: Callable[..., Path]) -> None:
    """A new file under the old name is not the one in use: answers stay those of the old one."""
    settings = settings_of(file, regime)
    with loaded(file, settings) as engine:
        expected = ask(engine), ask(engine, OTHER)
    with loaded(file, settings) as engine:
        Path(shutil.copy2(arch_file("qwen3moe", seed=1), file.with_suffix(".new"))).replace(file)
        assert (ask(engine), ask(engine, OTHER)) == expected


@pytest.mark.parametrize("regime", REGIMES)
def test_a_file_truncated_in_the_middle_of_an_answer(regime: str, file: Path) -> None:
    """At worst the worker dies of it, with that cause; the next load works again."""
    settings, content = settings_of(file, regime), file.read_bytes()
    request = Request(FIRST, max_tokens=100, sampling=Sampling(temperature=0), ignore_end=True)
    with loaded(file, settings) as engine:
        with pytest.raises((ModelFileError, EngineCrashError), match="model") as caught:
            for event in engine.generate(request):
                if isinstance(event, Token) and event.tokens == 3:
                    os.truncate(file, len(content) - 50_000)
        assert engine.alive == isinstance(caught.value, ModelFileError)
        file.write_bytes(content)
        list(engine.load())
        expected = ask(engine)
    with loaded(file, settings) as engine:
        assert ask(engine) == expected


def break_direct_reads(path: Path, prompts: tuple[str, str]) -> None:
    """Direct reads fail with EIO (reading unmapped memory does), then work again."""
    settings = settings_of(path, "private, least")
    (reference,) = run_cases(path, [Case(settings, (Turn(prompts[1], 6),))])
    with Conversation(path, settings) as conversation:
        assert conversation.say(Turn(prompts[0])).reason == "length"
        (number,) = (
            int(entry.name)
            for entry in Path("/proc/self/fd").iterdir()
            if entry.is_symlink()
            and entry.readlink() == path
            and fcntl.fcntl(int(entry.name), fcntl.F_GETFL) & os.O_DIRECT
        )
        good, bad = os.dup(number), os.open("/proc/self/mem", os.O_RDONLY)
        for descriptor in (bad, good):
            os.dup2(descriptor, number)
            said = conversation.say(Turn(prompts[1], 6))
            assert (said.text, said.answer) == (reference.turns[0].text, reference.turns[0].answer)
            assert conversation.say(Turn(prompts[0])).reason == "length"


def test_direct_reads_that_fail_for_a_while(arch_file: Callable[[str], Path]) -> None:
    """What cannot be read past the page cache is read through it: the same logits."""
    in_child(break_direct_reads, arch_file("gpt-oss"), (FIRST, OTHER))


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system on a loop device; what is cut off the end of its image cannot be read."""
    image, folder = tmp_path / "disk.img", tmp_path / "disk"
    folder.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 64 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        no_mount(error)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def drop(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("regime", REGIMES)
def test_unreadable_sectors(
    regime: str, arch_file: Callable[[str], Path], failing_disk: Path
) -> None:
    """A disk that loses its end: an error that names the file, and answers when it is back."""
    path = Path(shutil.copy2(arch_file("qwen3moe"), failing_disk / "model.gguf"))
    image = failing_disk.with_suffix(".img")
    settings = dataclasses.replace(settings_of(path, regime), read_ahead=False)
    experts = min(routed_tensors(read_model(path)), key=lambda tensor: -tensor.offset)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        file.seek(experts.offset)
        block = file.read(4096)
    subprocess.run(["sync", "-f", path], check=True)
    whole = image.read_bytes()
    cut = whole.index(block) // 4096 * 4096
    with loaded(path, settings) as engine:
        expected = ask(engine)
    drop(path)
    with loaded(path, settings) as engine:
        drop(path)
        os.truncate(image, cut)
        try:
            for _ in range(2):
                with pytest.raises(LocalmoeError, match=r"model\.gguf") as caught:
                    ask(engine)
                assert isinstance(caught.value, EngineError | ModelFileError)
            assert engine.alive
        finally:
            image.write_bytes(whole)
        assert ask(engine) == expected


def test_a_bad_trace_leaves_no_cache_behind(arch_file: Callable[[str], Path], file: Path) -> None:
    """A load that fails after the cache was opened: the next model in that worker is right."""
    settings = planned(file, BASE, "private", 2 << 20)
    with loaded(file, settings) as engine:
        expected = ask(engine)
    no_trace = file.with_name("no.trace")
    no_trace.write_bytes(b"nothing of the kind")
    bad = dataclasses.replace(settings, replay=str(no_trace))
    with Engine(read_model(file), bad, remember=False) as engine:
        for _ in range(2):
            with pytest.raises(LocalmoeError):
                list(engine.load())
        engine._settings = settings
        list(engine.load())
        assert ask(engine) == expected
