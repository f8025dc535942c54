"""Models by their names: loaded when they are asked for, given back when nobody asks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.planning.plan import Wishes
from localmoe.planning.roomy import ROOMY, roomy
from localmoe.server.answering import fitting
from tests.cli.command import environment
from tests.hub.command import HubCommand
from tests.hub.server import HubServer
from tests.server.served import Served, events_of, serving
from tests.waiting import PATIENCE, wait_until

QUESTION = "What is a mixture of experts?"


def test_models_come_by_name_and_go_when_idle(
    arch_file: Callable[..., Path], serve: Callable[..., Served]
) -> None:
    """The wrong model answers; an unknown name, a path or one not here is loaded or fetched; an
    idle model stays in memory."""
    other = arch_file("qwen3moe")
    served = serve("--alias", f"gpt-4o={other}", "--idle", "1s")
    assert served.worker == 0
    listed = [model["id"] for model in served.ask("GET", "/v1/models")[2]["data"]]
    assert {"nano", "gpt-4o"} <= set(listed)
    assert (
        "neural network" in served.chat(QUESTION, model="nano")["choices"][0]["message"]["content"]
    )
    nano = served.worker
    assert served.chat("hi", model="GPT-4o", max_tokens=3)["usage"]["completion_tokens"] == 3
    assert served.worker not in (0, nano)
    for name in ("nothing-7b", str(other), "../nano.gguf", "user/repo:Q8_0", "hf://a/b"):
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
        status, _, document = served.ask("POST", "/v1/chat/completions", body)
        assert (status, document["error"]["code"]) == (404, "model_not_found"), name
    wait_until(lambda: served.worker == 0)
    assert served.chat("hi", model="gpt-4o", max_tokens=3)["usage"]["completion_tokens"] == 3


def test_what_does_not_fit_leaves_what_is_loaded(
    arch_file: Callable[..., Path], serve: Callable[..., Served]
) -> None:
    """A model that cannot be had takes the place of the one that answers."""
    served = serve("nano", "--alias", "big=/nowhere/big.gguf", "--alias", "bad=/dev/null")
    worker = served.worker
    for name in ("big", "bad"):
        body = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
        assert 400 <= served.ask("POST", "/v1/chat/completions", body)[0] < 500
    assert served.worker == worker != 0


@pytest.mark.process
@pytest.mark.parametrize("allowed", [False, True])
def test_a_request_downloads_only_where_it_may(
    arch_file: Callable[..., Path], tmp_path: Path, allowed: bool
) -> None:
    """A request fetches its model unasked; or --allow-pull does not let it."""
    with HubServer() as hub:
        hub.add("user/tiny-GGUF", {"tiny-Q8_0.gguf": arch_file("qwen3moe").read_bytes()})
        env = HubCommand(hub, tmp_path).environment()
        with serving(tmp_path, *(["--allow-pull"] if allowed else []), env=env) as served:
            body = {
                "model": "user/tiny-GGUF",
                "messages": [{"role": "user", "content": "hi"}],
                "max_tokens": 3,
            }
            status, _, document = served.ask("POST", "/v1/chat/completions", body)
            if not allowed:
                assert (status, document["error"]["code"]) == (404, "model_not_found")
                assert not hub.requests
                return
            assert status == 200, document
            assert document["usage"]["completion_tokens"] == 3
            fetched = len(hub.requests)
            assert served.ask("POST", "/v1/chat/completions", body)[0] == 200
            assert len(hub.requests) == fetched
            listed = served.ask("GET", "/v1/models")[2]["data"]
            assert any("tiny" in model["id"] for model in listed)


def test_overflow_drop_leaves_out_the_oldest(serve: Callable[..., Served]) -> None:
    """What is too long is refused in spite of --overflow drop, or the last question is dropped."""
    served = serve("nano", "--overflow", "drop")
    said = [{"role": "user", "content": "word " * 900}, {"role": "assistant", "content": "yes"}]
    last = {"role": "user", "content": QUESTION}
    body = {"messages": [*said, *said, *said, last], "temperature": 0, "max_tokens": 12}
    answer = served.post("/v1/chat/completions", **body)
    assert answer["usage"]["prompt_tokens"] < 2048
    assert any("messages too long ago" in line for line in served.lines)
    alone = [{"role": "user", "content": "word " * 5000}]
    assert served.ask("POST", "/v1/chat/completions", {"messages": alone})[0] == 400


@pytest.mark.parametrize(("room", "left"), [(99, "sabcde"), (4, "scde"), (3, "se"), (1, "se")])
def test_whole_turns_are_dropped(room: int, left: str) -> None:
    """A turn is cut in two, or the system's words or the last turn are dropped."""
    roles = {"s": "system", "a": "user", "b": "assistant", "c": "user", "d": "tool", "e": "user"}
    messages = [{"role": role, "content": name} for name, role in roles.items()]
    kept = fitting(messages, len, room)
    assert "".join(str(message["content"]) for message in kept) == left


def test_a_context_for_agents_is_wished_for(arch_file: Callable[..., Path]) -> None:
    """serve plans with no more context than run; or it changes what was stated."""
    from localmoe.facts.model import read_model

    model = read_model(arch_file("qwen3moe"))
    large, smaller, plain = roomy(model, Wishes())
    assert large.context == smaller.context == min(ROOMY, model.context_train)
    assert (large.type_k, smaller.type_k, plain) == ("f16", "q8_0", Wishes())
    assert roomy(model, Wishes(context=512)) == (Wishes(context=512),)
    assert len(roomy(model, Wishes(type_k="q4_0"))) == 2


def test_likelihoods_are_told(nano: Served) -> None:
    """logprobs are not those of the answer's tokens, streamed or whole, or fewer than asked."""
    how = {"max_tokens": 5, "logprobs": True, "top_logprobs": 3}
    choice = nano.chat(QUESTION, **how)["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert [len(token["top_logprobs"]) for token in tokens] == [3] * 5
    assert all(token["top_logprobs"][0]["token"] == token["token"] for token in tokens)
    chunks = [c["choices"][0] for c in events_of(nano.chat(QUESTION, stream=True, **how))]
    streamed = [t for c in chunks if c.get("logprobs") for t in c["logprobs"]["content"]]
    assert [t["token"] for t in streamed] == [t["token"] for t in tokens]
    text = nano.post("/v1/completions", prompt="A mixture", max_tokens=4, logprobs=2, temperature=0)
    figures = text["choices"][0]["logprobs"]
    assert "".join(figures["tokens"]) == text["choices"][0]["text"]
    assert figures["text_offset"][0] == 0
    banned = nano.ask(
        "POST", "/tokenize", {"content": tokens[0]["token"], "with_pieces": True}
    )[2]["tokens"]  # fmt: skip
    bias = {str(token["id"]): -100 for token in banned}
    other = nano.chat(QUESTION, max_tokens=5, logit_bias=bias)["choices"][0]["message"]["content"]
    assert other != choice["message"]["content"]


def test_run_uses_the_model_that_is_served(serve: Callable[..., Served], tmp_path: Path) -> None:
    """run loads a model a second time; or its answer is another one."""
    served = serve("nano")
    done = subprocess.run(
        [sys.executable, "-m", "localmoe", "run", "nano", QUESTION, "--temp", "0", "-n", "12"],
        env=environment(tmp_path), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE, check=True,
    )  # fmt: skip
    whole = served.chat(QUESTION, max_tokens=12)["choices"][0]["message"]["content"]
    assert done.stdout.strip() == whole.strip()
    assert served.url in done.stderr
