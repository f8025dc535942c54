"""OpenAI's chat completions against the real server with the bundled model."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.served import Served, events_of
from tests.waiting import wait_until

QUESTION = "What is a mixture of experts?"
CHAT = "/v1/chat/completions"


def long_request(**more: object) -> bytes:
    """A request whose answer takes long enough to be interrupted."""
    messages = [{"role": "user", "content": "go on"}]
    return json.dumps({"messages": messages, "stream": True, "seed": 1, **more}).encode()


@pytest.fixture
def talker(arch_file: Callable[..., Path], serve: Callable[..., Served]) -> Served:
    """A server whose model does not stop by itself."""
    return serve(arch_file("qwen3moe"), "--ctx", "16k")


def begin(served: Served, body: bytes) -> tuple[http.client.HTTPConnection, Any]:
    """A streamed request, up to its first token."""
    connection = served.connect()
    connection.request("POST", CHAT, body)
    answer = connection.getresponse()
    while b'"content":"' not in (line := answer.readline()) or b'"role"' in line:
        assert line
    return connection, answer


class TestAnswers:
    def test_streamed_and_whole_are_the_same_answer(self, nano: Served) -> None:
        """The pieces of a stream are not the whole answer, or its figures are others."""
        whole = nano.chat(QUESTION, max_tokens=30)
        text = nano.chat(
            QUESTION, max_tokens=30, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last, usage = events_of(text)
        assert text.endswith("data: [DONE]\n\n")
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        pieces = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
        assert "".join(pieces) == whole["choices"][0]["message"]["content"]
        assert last["choices"][0]["finish_reason"] == "length"
        assert usage["choices"] == []
        counted = usage["usage"]
        assert counted["completion_tokens"] == 30 == whole["usage"]["completion_tokens"]
        assert counted["prompt_tokens_details"]["cached_tokens"] > 0
        assert last["timings"]["predicted_n"] == 30
        assert {chunk["id"] for chunk in (*chunks, last, usage)} == {last["id"]}

    def test_json_follows_the_schema(self, nano: Served) -> None:
        """An answer with a response_format is not the JSON that was asked for."""
        schema = {
            "type": "object",
            "properties": {"n": {"enum": [1, 2]}},
            "required": ["n"],
            "additionalProperties": False,
        }
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        answer = nano.chat(QUESTION, response_format=wanted)
        assert json.loads(answer["choices"][0]["message"]["content"])["n"] in (1, 2)

    def test_a_stop_text_ends_the_answer(self, nano: Served) -> None:
        """The stop text or what follows it is in the answer."""
        answer = nano.chat(QUESTION, stop=["mixture"])["choices"][0]
        assert "mixture" not in answer["message"]["content"]
        assert answer["finish_reason"] == "stop"

    def test_several_answers(self, nano: Served) -> None:
        """An answer has another's index or seed, or the prompt counts twice."""
        every: dict[str, Any] = {"top_k": 0, "top_p": 1, "min_p": 0}  # any token may come
        how = {"max_tokens": 6, "temperature": 3, **every}
        alone = [nano.chat(QUESTION, seed=seed, **how) for seed in (5, 6)]
        texts = [one["choices"][0]["message"]["content"] for one in alone]
        assert texts[0] != texts[1]
        both = nano.chat(QUESTION, n=2, seed=5, **how)
        assert [choice["index"] for choice in both["choices"]] == [0, 1]
        assert [choice["message"]["content"] for choice in both["choices"]] == texts
        usages = [one["usage"] for one in (*alone, both)]
        assert usages[2]["prompt_tokens"] == usages[0]["prompt_tokens"]
        assert usages[2]["completion_tokens"] == sum(u["completion_tokens"] for u in usages[:2])
        text = nano.chat(
            QUESTION, n=2, seed=5, stream=True, stream_options={"include_usage": True}, **how
        )
        *chunks, usage = events_of(text)
        for index in (0, 1):
            own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
            assert "".join(c["delta"].get("content") or "" for c in own) == texts[index]
            assert own[-1]["finish_reason"] == "length"
            assert own[0]["delta"]["role"] == "assistant"
        assert usage["usage"]["completion_tokens"] == usages[2]["completion_tokens"]
        assert text.count("[DONE]") == 1
        prompt = {"prompt": "A mixture of", "n": 2, "max_tokens": 3, "seed": 5, "echo": True}
        listed = nano.post("/v1/completions", **prompt)["choices"]
        streamed = [c["choices"][0] for c in events_of(nano.post(
            "/v1/completions", stream=True, **prompt))]  # fmt: skip
        for index, choice in enumerate(listed):
            pieces = [piece["text"] for piece in streamed if piece["index"] == index]
            assert "".join(pieces) == choice["text"]
            assert choice["text"].startswith("A mixture of")

    def test_texts_and_tokens(self, nano: Served) -> None:
        """Tokens are another text's, or what is counted is not what is read."""
        text = "Zwölf <|im_end|> 媽"
        tokens = nano.post("/tokenize", content=text)["tokens"]
        assert nano.post("/detokenize", tokens=tokens)["content"] == text
        status, _, wrong = nano.ask("POST", "/detokenize", {"tokens": [1, "2"]})
        assert (status, wrong["error"]["param"]) == (400, "tokens")
        messages = [{"role": "user", "content": QUESTION}]
        prompt = nano.post("/apply-template", messages=messages)["prompt"]
        assert QUESTION in prompt
        count = len(nano.post("/tokenize", content=prompt, add_special=True)["tokens"])
        paths = ("chat/completions/input_tokens", "messages/count_tokens")
        counts = [nano.post(f"/v1/{path}", messages=messages)["input_tokens"] for path in paths]
        counts.append(nano.post("/v1/responses/input_tokens", input=QUESTION)["input_tokens"])
        assert counts == [count] * 3

    def test_models_are_listed(self, nano: Served) -> None:
        """A client that looks for models under either name finds none, or another name fails."""
        _, _, listed = nano.ask("GET", "/v1/models")
        assert [model["id"] for model in listed["data"]] == ["nano"]
        assert listed["models"] == listed["data"]
        assert nano.ask("GET", "/v1/models/gpt-4o")[0] == 200
        assert nano.chat(QUESTION, max_tokens=1, model="gpt-4o")["model"] == "gpt-4o"
        assert nano.ask("GET", "/health")[2] == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "cat", "content": ""}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1e999}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 17}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"seed": 2**70}, "seed"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"$ref": "#/x"}},
                }
            },
            "response_format",
        ),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"model": 3}, "model"),
    ],
)
def test_a_wrong_field_is_named(nano: Served, body: dict[str, object], param: str) -> None:
    """A field of the wrong type is taken, or blamed on another, or is a server's error."""
    if "messages" not in body and param != "messages":
        body = {"messages": [{"role": "user", "content": "hi"}], **body}
    data = json.dumps(body).replace("Infinity", "1e999").encode()
    status, _, document = nano.ask("POST", CHAT, data)
    assert (status, document["error"]["param"]) == (400, param), document
    assert document["error"]["type"] == "invalid_request_error"


def test_a_prompt_that_is_too_long_is_an_error_with_counts(nano: Served) -> None:
    """A prompt longer than the context is cut, or its error is not the dialect's own."""
    body = {"messages": [{"role": "user", "content": "word " * 5000}]}
    status, _, document = nano.ask("POST", CHAT, body)
    assert (status, document["error"]["code"]) == (400, "context_length_exceeded")
    assert document["error"]["n_prompt_tokens"] > 5000 and document["error"]["n_ctx"] == 2048
    assert "2048" in document["error"]["message"]
    assert "trained for" in document["error"]["message"]  # and so no larger context would help


def test_a_longer_context_is_named(
    arch_file: Callable[..., Path], serve: Callable[..., Served]
) -> None:
    """A prompt that another start could read is refused without a way on, in some dialect; also in
    the queue.
    """
    served = serve(arch_file("qwen3moe"), "--ctx", "4k")
    text = "word " * 5_000
    said: dict[str, Any] = {"messages": [{"role": "user", "content": text}], "max_tokens": 3}
    bodies = {
        CHAT: said,
        "/v1/completions": {"prompt": text},
        "/v1/responses": {"input": text},
        "/v1/messages": said,
    }

    def refused(path: str, **more: object) -> str:
        status, _, document = served.ask("POST", path, bodies[path] | more)
        assert status == 400
        return str(document["error"]["message"])

    busy, _ = begin(served, long_request())
    queued = {path: refused(path) for path in bodies}
    busy.close()
    for path in bodies:
        words = refused(path)
        assert "maximum context length is 4096" in words or "> 4096 maximum" in words
        tokens, larger = (int(n) for n in re.findall(r"\d+", words) if n != "4096")
        assert words.endswith(f"use --ctx {larger})")
        assert 5_000 < tokens < larger < 2 * tokens
        assert words == queued[path] == refused(path, stream=True)


class TestClientsThatLeave:
    def test_only_its_own_answer_is_cancelled(self, talker: Served) -> None:
        """A client that goes away, running or queued, ends another's answer, or keeps the turn."""
        running, _ = begin(talker, long_request())
        queued = talker.connect()
        queued.request("POST", CHAT, long_request())
        answers: list[Any] = []
        thread = threading.Thread(
            target=lambda: answers.append(talker.chat("hello", max_tokens=5, seed=1))
        )
        thread.start()
        queued.close()
        wait_until(lambda: any(" 499 " in line for line in talker.lines))
        assert not answers
        running.close()
        thread.join()
        assert answers[0]["usage"]["completion_tokens"] == 5
        assert sum(" 499 " in line for line in talker.lines) == 2

    def test_a_dead_engine_is_an_error_and_the_next_request_has_a_new_one(
        self, talker: Served
    ) -> None:
        """A crash of the engine hangs the request, kills the server, or stays."""
        connection, answer = begin(talker, long_request())
        first = talker.worker
        os.kill(first, signal.SIGKILL)
        rest = answer.read().decode()
        connection.close()
        assert events_of(rest)[-1]["error"]["code"] == "engine_crash"
        assert "[DONE]" not in rest
        assert talker.chat("hello", max_tokens=5)["usage"]["completion_tokens"] == 5
        assert talker.worker not in (0, first)


class TestTheEnd:
    def test_sigterm_lets_an_answer_end(self, serve: Callable[..., Served]) -> None:
        """SIGTERM cuts an answer off, or a new request is taken after it."""
        served = serve("nano")
        connection, answer = begin(
            served,
            json.dumps(
                {"messages": [{"role": "user", "content": QUESTION}], "stream": True}
            ).encode(),
        )
        served.process.send_signal(signal.SIGTERM)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        connection.close()
        assert served.process.wait(60) == 0
        assert served.worker == 0

    def test_a_second_one_does_not(self, talker: Served) -> None:
        """A second SIGTERM waits for the answers too."""
        connection, _ = begin(talker, long_request())
        worker = talker.worker
        talker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: any("ending after 1 request" in line for line in talker.lines))
        talker.process.send_signal(signal.SIGTERM)
        talker.process.wait(60)
        connection.close()
        wait_until(lambda: not Path(f"/proc/{worker}").exists())
