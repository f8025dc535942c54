"""Programs of one user share a model that is loaded, if they want it as it is loaded."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import localmoe
from localmoe import storage
from localmoe.app.attach import Greeting, agree, served, served_model
from localmoe.app.listener import Silent
from localmoe.app.model import LoadedModel
from localmoe.app.model_socket import ModelSocket
from localmoe.app.records import decoded, encoded
from localmoe.app.requests import LoadRequest, PlanRequest
from localmoe.app.shared import SharedModel
from localmoe.chat.template import ChatTemplate
from localmoe.engine.attached import AttachedEngine
from localmoe.errors import EngineCrashError, TemplateError
from localmoe.planning.plan import Wishes
from tests.chat import templates
from tests.waiting import wait_until

pytestmark = pytest.mark.process

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
WISHES = Wishes(context=1024, threads=1, batch=32, prompt_cache=16 << 20)
QUESTION = "What is a router?"


@pytest.fixture(scope="module")
def path(arch_file: Callable[..., Path]) -> Path:
    return arch_file("qwen3moe", template=templates.CHATML)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[LoadedModel]:
    with localmoe.load(str(path), wishes=WISHES) as loaded:
        yield loaded


@pytest.fixture
def door(model: LoadedModel) -> Iterator[ModelSocket]:
    door = ModelSocket(SharedModel(model), PlanRequest(WISHES), "http://127.0.0.1:8080")
    yield door
    door.close()


@pytest.fixture
def attached(path: Path, door: ModelSocket) -> Iterator[LoadedModel]:
    """As another program has it."""
    with served_model(LoadRequest(str(path)), Silent()) as found:
        assert found is not None and isinstance(found.engine, AttachedEngine)
        list(found.bring_in())
        yield found


def greeting(model: LoadedModel, **wishes: object) -> Greeting:
    assert model.loaded is not None
    changed = dataclasses.replace(WISHES, **wishes)  # type: ignore[arg-type]
    return Greeting((), changed, (), model.plan, model.machine, model.loaded, "")


def test_the_same_words_through_the_socket(model: LoadedModel, attached: LoadedModel) -> None:
    """Answers, counts, bytes of tokens and the plan, without an engine of its own."""
    prompt = "Grüße, <s> 世界"
    assert attached.plan == model.plan
    assert attached.machine == model.machine
    assert attached.facts == model.facts
    assert attached.chat(QUESTION, **GREEDY).result().answer == (
        model.chat(QUESTION, **GREEDY).result().answer
    )
    assert attached.count_tokens(prompt) == model.count_tokens(prompt)
    tokens = model.tokenize(prompt, special=True, whole=True)
    assert attached.tokenize(prompt, special=True, whole=True) == tokens
    assert attached.spell(tokens) == model.spell(tokens)
    with pytest.raises(localmoe.LocalmoeError) as caught:
        attached.chat("word " * 2000).result()
    assert caught.value.code == "context_full"


def test_templates_are_rendered_by_the_server(model: LoadedModel, attached: LoadedModel) -> None:
    """No process is started for them, and a refusal has the words of one's own renderer."""
    said = []
    for renderer in (model.renderer, attached.renderer):
        with pytest.raises(TemplateError) as caught:
            _ = ChatTemplate("{% if %}", renderer=renderer).think_control
        said.append((caught.value.message, caught.value.hint))
    assert said[0] == said[1]
    assert attached.renderer._process is None


def test_stopping_stops_its_own_answer(door: ModelSocket, attached: LoadedModel) -> None:
    """A client that stops, and one that vanishes, frees the model for the next."""
    with attached.generate("Once", max_tokens=900, temperature=1.0) as stream:
        next(stream)
    wait_until(lambda: not door._shared.busy)
    assert attached.chat(QUESTION, **GREEDY).result().answer
    stream = attached.generate("Once", max_tokens=900, temperature=1.0)
    next(stream)
    attached.engine.close()
    wait_until(lambda: not door._shared.busy)


def test_a_server_that_ends(door: ModelSocket, attached: LoadedModel, path: Path) -> None:
    """Who is attached is told; who comes then finds no server, and no file of it is left."""
    door.close()
    with pytest.raises(EngineCrashError, match="has ended"):
        attached.chat(QUESTION, **GREEDY).result()
    with pytest.raises(EngineCrashError):
        list(attached.bring_in())
    with served_model(LoadRequest(str(path)), Silent()) as found:
        assert found is None
    assert os.listdir(storage.state_dir() / "served") == []  # noqa: PTH208


def test_a_file_that_has_changed_is_another_model(door: ModelSocket, path: Path) -> None:
    """Rewritten since the server has loaded it: its words would be those of the old one."""
    then = path.stat()
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns + 1))
    try:
        assert served(path, PlanRequest()) is None
    finally:
        os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    found = served(path, PlanRequest())
    assert found is not None
    found.connected.close()


def test_a_socket_that_was_left_behind(model: LoadedModel) -> None:
    """Of a server that was killed: nobody answers, and it is removed."""
    folder = storage.private_dir(storage.state_dir() / "served")
    with socket.socket(socket.AF_UNIX) as dead:
        number = os.open(folder, os.O_RDONLY)
        dead.bind(f"/proc/self/fd/{number}/dead")
        os.close(number)
    assert served(model.facts.paths[0], PlanRequest()) is None
    assert not (folder / "dead").exists()


def test_a_socket_that_says_something_else(model: LoadedModel) -> None:
    """It is nobody's server; the model is loaded here."""
    folder = storage.private_dir(storage.state_dir() / "served")
    with socket.socket(socket.AF_UNIX) as odd:
        number = os.open(folder, os.O_RDONLY)
        odd.bind(f"/proc/self/fd/{number}/odd")
        os.close(number)
        odd.listen()
        for said in (b"", b"{}\n", b"[1]\n", b'{"files": 1}\n', b"\xff" * 99):

            def speak(said: bytes = said) -> None:
                with odd.accept()[0] as connected:
                    connected.sendall(said)

            speaker = threading.Thread(target=speak)
            speaker.start()
            assert served(model.facts.paths[0], PlanRequest()) is None
            speaker.join()
    (folder / "odd").unlink()


def asking(op: str, **fields: object) -> bytes:
    return json.dumps({"id": 1, "op": op, **fields}).encode() + b"\n"


WRONG: list[object] = [["a"], [None], [True], 1, [[]]]
ODD = [
    *(b"{}\n", b"[]\n", b"\xff\n", b"\n", asking("load")),
    *(asking("spell", tokens=wrong) for wrong in WRONG),
    asking("count", text=1, data=[], whole=True),
    asking("count", text="a", data=[["x", 1]], whole=True),
    asking("tokenize", text=None, special=True, whole=True),
    asking("split", texts=[1]),
    asking("generate", request={}),
    asking("generate", request={"prompt": 1}),
    asking("generate", request={"prompt": "a", "sampling": {"temperature": "hot"}}),
    asking("generate", request={"prompt": "a", "another": 1}),
]


def test_a_client_that_says_something_else(door: ModelSocket, model: LoadedModel) -> None:
    """Its connection ends, and its mistake reaches no engine: the model answers others."""
    worker = model.engine.pid  # type: ignore[attr-defined]
    for line in ODD:
        found = served(model.facts.paths[0], PlanRequest())
        assert found is not None, line
        with found.connected as connected:
            connected.sendall(line * 3)
            connected.shutdown(socket.SHUT_WR)
            assert connected.recv(100) == b"", line
    with served_model(LoadRequest(str(model.facts.paths[0])), Silent()) as other:
        assert other is not None
        list(other.bring_in())
        assert other.chat(QUESTION, **GREEDY).result().answer
    assert model.engine.pid == worker  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("asked", "there", "is_agreed"),
    [
        ({}, {}, True),
        ({"context": 1024}, {}, True),
        ({"context": 512}, {}, False),
        ({"threads": 1}, {}, True),
        ({"threads": 2}, {}, False),
        ({"type_k": "q8_0"}, {}, False),
        ({"ram": 1 << 30}, {}, False),
        ({"cache": "private"}, {}, False),
        ({}, {"cache_ram": 1 << 30}, True),
        ({}, {"experts": 1}, False),
        ({"experts": 1}, {"experts": 1}, True),
        ({}, {"prefer_cached": 0.2}, False),
    ],
)
def test_who_agrees(
    asked: dict[str, Any], there: dict[str, Any], is_agreed: bool, model: LoadedModel
) -> None:
    """An option that was given has to be the server's; one that changes answers, always."""
    assert agree(PlanRequest(Wishes(**asked)), greeting(model, **there)) == is_agreed


def test_a_greeting_survives_its_journey(model: LoadedModel) -> None:
    """Every record in it, field for field."""
    sent = greeting(model)
    assert decoded(Greeting, encoded(sent)) == sent
