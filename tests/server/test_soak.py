"""Many clients for minutes: some leave, the engine is killed, nothing is mixed up or left."""

from __future__ import annotations

import functools
import http.client
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.served import Served, events_of
from tests.waiting import wait_until

SECONDS = float(os.environ.get("LOCALMOE_SERVER_SOAK", "600"))
CLIENTS, DEATHS = 8, 2
QUESTIONS = (
    "What is a mixture of experts?",
    "What does the router do?",
    "What is a KV cache?",
    "What is quantization?",
    "How do I see what fits?",
)


class Clients:
    """Clients that ask until the end; every third request is left at a random moment."""

    def __init__(self, served: Served, answers: dict[str, str]) -> None:
        self._served = served
        self._answers = answers
        self._end = threading.Event()
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self.wrong: list[str] = []
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]

    @property
    def asking(self) -> int:
        """Clients that have not ended."""
        return sum(thread.is_alive() for thread in self._threads)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        chance = random.Random(number)
        while not self._end.is_set():
            question, stream = chance.choice(QUESTIONS), chance.random() < 0.7
            leaves = chance.random() < 1 / 3
            try:
                self._one(question, stream, chance.uniform(0, 0.5) if leaves else None)
            except (OSError, http.client.HTTPException) as error:
                self.counts["broken"] += 1  # the engine died in an answer that is not streamed
                self.errors.append(repr(error))

    def _one(self, question: str, stream: bool, leaves_after: float | None) -> None:
        connection = self._served.connect()
        connection.timeout = None  # a machine that stands still for minutes proves nothing
        try:
            messages = [{"role": "user", "content": question}]
            body = {"messages": messages, "temperature": 0, "stream": stream}
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            if leaves_after is not None:
                time.sleep(leaves_after)
                self.counts["left"] += 1
                return
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        if answer.status != 200 or '"error"' in text:
            self.counts["error"] += 1
            self.errors.append(f"{answer.status} {text[-300:]}")
            return
        said = _said(text, stream)
        self.counts["answered"] += 1
        if said != self._answers[question]:
            self.wrong.append(f"{question}: {said}")


def _said(text: str, stream: bool) -> str:
    if not stream:
        return str(json.loads(text)["choices"][0]["message"]["content"])
    assert text.endswith("data: [DONE]\n\n"), text[-200:]
    deltas = [chunk["choices"][0]["delta"] for chunk in events_of(text)]
    return "".join(delta.get("content") or "" for delta in deltas)


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def another(served: Served, worker: int) -> bool:
    """Whether the server has an engine again, and not that one."""
    return served.worker not in (0, worker)


def descriptors_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def rest(seconds: float) -> None:
    """In steps: a machine that stands still for minutes takes one of them, not all."""
    for _ in range(round(seconds)):
        time.sleep(1)


@pytest.mark.soak
@pytest.mark.timeout(SECONDS * 6 + 3600)
def test_clients_come_and_go(
    serve: Callable[..., Served], record_property: Callable[[str, object], None]
) -> None:
    """Clients leave and engines die: no answer is another's, a cut one says so, nothing stays."""
    served = serve("nano")
    answers = {q: served.chat(q)["choices"][0]["message"]["content"] for q in QUESTIONS}
    warm = Clients(served, answers)
    warm.start()
    rest(min(20.0, SECONDS / 4))
    warm.stop()
    pid = served.process.pid
    descriptors, memory = descriptors_of(pid), resident(pid)
    clients = Clients(served, answers)
    clients.start()
    for _ in range(DEATHS):
        rest(SECONDS / (DEATHS + 1))
        worker = served.worker
        os.kill(worker, signal.SIGKILL)
        wait_until(functools.partial(another, served, worker))
    rest(SECONDS / (DEATHS + 1))
    assert clients.asking == CLIENTS
    clients.stop()
    grown = (resident(pid) - memory) / 2**20
    figures = {**clients.counts, "engines killed": DEATHS, "MiB more": f"{grown:+.1f}"}
    record_property("figures", figures)
    print(figures, *clients.errors, sep="\n")
    assert not clients.wrong
    assert clients.counts["answered"] > CLIENTS
    assert len(clients.errors) <= CLIENTS * DEATHS  # of those who were being answered
    assert not [said for said in clients.errors if not _tells_of_a_death(said)]
    wait_until(lambda: descriptors_of(pid) <= descriptors + 2)
    assert resident(pid) < memory + (48 << 20)
    worker = served.worker
    assert served.end() == 0
    assert not Path(f"/proc/{worker}").exists()


def _tells_of_a_death(said: str) -> bool:
    return "engine_crash" in said or said.startswith(("IncompleteRead", "RemoteDisconnected"))
