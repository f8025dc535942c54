"""Each client through one transcript: answer, error, 20,000 tokens, a cancel, a second turn.

The libraries of OpenAI and Anthropic, both ways each, and the `llm` program of the folder that
``LOCALMOE_AGENTS`` names.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.chat.templates import CHATML
from tests.needs import missing
from tests.server.served import Served, serving
from tests.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

CONTEXT = 24_576  # tokens
LONG = 20_000  # words, each a token at least
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Heard:
    """One answer as a client had it."""

    text: str
    prompt_tokens: int = 0
    cached: int = 0


Ask = Callable[[str, Messages, bool], Heard]
"""The address of the server, the messages, and whether to leave as soon as it has begun."""


def openai_sync(url: str, messages: Any, leave: bool) -> Heard:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=1200) as client:
        stream = client.chat.completions.create(
            model="x", messages=messages, stream=True, max_tokens=4,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = []
        for chunk in stream:
            chunks.append(chunk)
            if leave:
                stream.close()
                return Heard("")
    return _of_chunks(chunks)


def openai_async(url: str, messages: Any, leave: bool) -> Heard:
    async def scene() -> Heard:
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=1200
        ) as client:
            stream = await client.chat.completions.create(
                model="x", messages=messages, stream=True, max_tokens=4,
                stream_options={"include_usage": True},
            )  # fmt: skip
            chunks = []
            async for chunk in stream:
                chunks.append(chunk)
                if leave:
                    await stream.close()
                    return Heard("")
            return _of_chunks(chunks)

    return asyncio.run(scene())


def _of_chunks(chunks: list[Any]) -> Heard:
    *pieces, last = chunks
    text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
    return Heard(text, last.usage.prompt_tokens, last.usage.prompt_tokens_details.cached_tokens)


def openai_responses(url: str, messages: Any, leave: bool) -> Heard:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=1200) as client:
        stream = client.responses.create(
            model="x", input=messages, stream=True, max_output_tokens=4
        )
        events: list[Any] = []
        for event in stream:
            events.append(event)
            if leave:
                stream.close()
                return Heard("")
    response = events[-1].response
    cached = response.usage.input_tokens_details.cached_tokens
    return Heard(response.output_text, response.usage.input_tokens, cached)


def anthropic_sync(url: str, messages: Any, leave: bool) -> Heard:
    with (
        anthropic.Anthropic(base_url=url, api_key="x", max_retries=0, timeout=1200) as client,
        client.messages.stream(model="x", max_tokens=4, messages=messages) as stream,
    ):
        for _ in stream:
            if leave:
                return Heard("")
        return _of_message(stream.get_final_message())


def anthropic_async(url: str, messages: Any, leave: bool) -> Heard:
    async def scene() -> Heard:
        async with (
            anthropic.AsyncAnthropic(
                base_url=url, api_key="x", max_retries=0, timeout=1200
            ) as client,
            client.messages.stream(model="x", max_tokens=4, messages=messages) as stream,
        ):
            async for _ in stream:
                if leave:
                    return Heard("")
            return _of_message(await stream.get_final_message())

    return asyncio.run(scene())


def _of_message(message: Any) -> Heard:
    text = "".join(block.text for block in message.content if block.type == "text")
    cached = message.usage.cache_read_input_tokens or 0
    return Heard(text, message.usage.input_tokens + cached, cached)


CLIENTS: dict[str, Ask] = {
    ask.__name__: ask
    for ask in (openai_sync, openai_async, openai_responses, anthropic_sync, anthropic_async)
}


@pytest.fixture(scope="module")
def reader(
    tmp_path_factory: pytest.TempPathFactory, arch_file: Callable[..., Path]
) -> Iterator[Served]:
    """A small model that reads long prompts and does not stop by itself."""
    path, home = arch_file("qwen3moe", template=CHATML), tmp_path_factory.mktemp("home")
    with serving(home, path, "--ctx", str(CONTEXT), "--batch", "64", "--temp", "0") as served:
        yield served


def left(served: Served) -> int:
    """Requests that their clients have left."""
    return sum(" 499 " in line for line in served.lines)


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client(reader: Served, name: str) -> None:
    """A client cannot read an answer, an error or a long prompt; or what was read is read again."""
    ask, before = CLIENTS[name], left(reader)
    question: Messages = [{"role": "user", "content": f"{name} " * 20}]
    assert ask(reader.url, question, False).text
    too_long = [{"role": "user", "content": "word " * (CONTEXT + 1000)}]
    with pytest.raises((openai.BadRequestError, anthropic.BadRequestError), match=str(CONTEXT)):
        ask(reader.url, too_long, False)
    long = [{"role": "user", "content": f"{name}: " + "word " * LONG}]
    ask(reader.url, long, True)
    wait_until(lambda: left(reader) == before + 1)
    first = ask(reader.url, long, False)
    assert first.prompt_tokens > LONG
    assert 0 < first.cached < first.prompt_tokens  # read before it left
    turns = [*long, {"role": "assistant", "content": first.text}, {"role": "user", "content": "?"}]
    second = ask(reader.url, turns, False)
    assert second.cached > LONG


def test_llm(reader: Served, tmp_path: Path) -> None:
    """The lines for `llm` in docs/serve.md do not work; or its second turn reads all again."""
    program = Path(os.environ.get("LOCALMOE_AGENTS", ""), "llm")
    if not (os.environ.get("LOCALMOE_AGENTS") and program.exists()):
        missing("LOCALMOE_AGENTS names no folder with llm", expected=False)
    (tmp_path / "extra-openai-models.yaml").write_text(
        f'- {{model_id: localmoe, model_name: any, api_base: "{reader.url}/v1"}}\n'
    )
    variables = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def begin(*words: str, said: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [program, "-m", "localmoe", "-o", "max_tokens", "4", *words],
            env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(said)
        process.stdin.close()
        process.stdin = None
        return process

    def run(*words: str, said: str) -> tuple[int, str, str]:
        with begin(*words, said=said) as process:
            out, err = process.communicate(timeout=1200)
            return process.returncode, out, err

    code, out, err = run(said="llm " * 20)
    assert (code, bool(out.strip())) == (0, True), err
    code, _, err = run(said="word " * (CONTEXT + 1000))
    assert code != 0 and str(CONTEXT) in err
    before = left(reader)
    long = "llm: " + "word " * LONG
    with begin(said=long) as leaving:
        wait_until(lambda: reader.ask("GET", "/metrics")[2].count("requests_processing 1") == 1)
        leaving.send_signal(signal.SIGINT)
        leaving.wait(PATIENCE)
    wait_until(lambda: left(reader) == before + 1)
    assert run(said=long)[0] == 0
    assert run("-c", said="?")[0] == 0
    last = [line for line in reader.lines if " 200 " in line][-1]
    prompt, _, cached = last.partition(" (")
    assert int(cached.partition(" ")[0].replace(",", "")) > LONG, json.dumps([prompt, cached])
