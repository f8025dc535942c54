"""One model, many callers that come and go."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import localmoe
from localmoe.app.shared import SharedModel
from localmoe.errors import EngineCrashError
from tests.soak.conftest import Figures

pytestmark = pytest.mark.soak
AT_ONCE = 8
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
FILLER = "Experts are small networks. A router chooses a few of them for each token. " * 60
QUESTIONS = [
    "What is a router?",
    "What is a mixture of experts?",
    "What is a KV cache?",
    "What is quantization?",
    FILLER + "What is a router?",
    FILLER[:900] + "What is a KV cache?",
]


def test_callers_that_come_and_go(under_way: Callable[[], bool], figures: Figures) -> None:
    """Eight threads, a third of the requests left at random, the engine killed now and then: every
    answer is whole and its question's own, and nothing is left behind."""
    figures |= dict.fromkeys(("answers", "requests left", "crashes told"), 0)
    wishes = localmoe.Wishes(threads=1, batch=64, prompt_cache=16 << 20)
    with localmoe.load(context=2048, wishes=wishes) as model:
        expected = {q: model.chat(q, **GREEDY).result().answer for q in QUESTIONS}
        shared, threads = SharedModel(model), threading.active_count()

        def client(seed: int) -> None:
            rng = random.Random(seed)
            while under_way():
                question = rng.choice(QUESTIONS)
                leave_after = rng.randrange(1, 12) if rng.random() < 0.33 else None
                if seed == 0 and rng.random() < 0.02:
                    os.kill(model.engine.pid, signal.SIGKILL)  # type: ignore[attr-defined]
                try:
                    with shared.caller().chat(question, **GREEDY) as stream:
                        for seen, event in enumerate(stream):
                            if seen == leave_after:
                                figures["requests left"] += 1
                                break
                            if isinstance(event, localmoe.TurnDone):
                                figures["answers"] += 1
                                assert event.answer == expected[question]
                except EngineCrashError:
                    figures["crashes told"] += 1

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(client, range(AT_ONCE)))
        assert (shared.busy, shared.waiting) == (False, 0)
        assert threading.active_count() <= threads + 1  # a crash's engine has other readers
        question = QUESTIONS[0]
        assert shared.caller().chat(question, **GREEDY).result().answer == expected[question]
