"""Each client through one transcript: answer, error, 20,000 tokens, a cancel, a second turn.

The libraries of OpenAI and Anthropic, both ways each; litellm and the `llm` program, which are
installed into a folder of their own: their needs are not ours.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.archs import qwen
from tests.archs.families import FAMILIES, Family
from tests.archs.recipe import Dims
from tests.archs.vocabulary import vocabulary
from tests.archs.writer import random_data, write
from tests.chat.templates import CHATML
from tests.needs import missing
from tests.server.served import Served, serving
from tests.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

CONTEXT = 24_576  # tokens
LONG = 20_000  # words, each a token at least
SETTINGS = ("--ctx", str(CONTEXT), "--batch", "256", "--threads", "1", "--temp", "0")
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
    import openai

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
    import openai

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
    import openai

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
    import anthropic

    with (
        anthropic.Anthropic(base_url=url, api_key="x", max_retries=0, timeout=1200) as client,
        client.messages.stream(model="x", max_tokens=4, messages=messages) as stream,
    ):
        for _ in stream:
            if leave:
                return Heard("")
        return _of_message(stream.get_final_message())


def anthropic_async(url: str, messages: Any, leave: bool) -> Heard:
    import anthropic

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


def installed(folder: Path, package: str) -> dict[str, str]:
    """The variables with which Python finds the package, newly installed."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), package]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"{package} cannot be installed: {done.stderr[-300:]}", expected=False)
    return {**os.environ, "PYTHONPATH": str(folder)}


THIN = Family(
    qwen.qwen3moe,
    Dims(layers=1, heads=1, kv_heads=1, experts=4, used=1, context=32_768),
    FAMILIES["qwen3moe"].storage,
)
"""Reads 20,000 tokens in seconds: what they cost grows with layers and heads."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that reads long prompts and does not stop by itself."""
    home = tmp_path_factory.mktemp("home")
    recipe, words = THIN.recipe(), vocabulary(THIN.dims.vocab)
    path, *_ = write(
        recipe, home / "thin.gguf", data=random_data(recipe, 0, words), vocabulary=words,
        file_type=THIN.storage.file_type, name="thin", split=None, template=CHATML,
    )  # fmt: skip
    with serving(home, path, *SETTINGS) as served:
        yield served


def left(served: Served) -> int:
    """Requests that their clients have left."""
    return sum(" 499 " in line for line in served.lines)


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client(reader: Served, name: str) -> None:
    """A client cannot read an answer, an error or a long prompt; or what was read is read again."""
    transcript(reader, name, CLIENTS[name])


def transcript(reader: Served, name: str, ask: Ask) -> None:
    import anthropic
    import openai

    before = left(reader)
    question: Messages = [{"role": "user", "content": f"{name} " * 20}]
    assert ask(reader.url, question, False).text
    too_long = [{"role": "user", "content": "word " * (CONTEXT + 1000)}]
    refused = (openai.BadRequestError, anthropic.BadRequestError, Refused)
    with pytest.raises(refused, match=str(CONTEXT)):
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


LITELLM = """
import json, sys
import litellm

url, leave = sys.argv[1], sys.argv[2] == "True"
try:
    stream = litellm.completion(
        model="openai/any", api_base=url + "/v1", api_key="x", messages=json.load(sys.stdin),
        stream=True, max_tokens=4, stream_options={"include_usage": True}, timeout=1200,
        num_retries=0,
    )
    text, usage = "", None
    for chunk in stream:
        if leave:
            sys.exit()
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = getattr(chunk, "usage", None) or usage
except litellm.ContextWindowExceededError as error:
    sys.exit(str(error))
print(json.dumps([text, usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens]))
"""


class Refused(Exception):  # noqa: N818
    """What a client that is a program of its own said of an error."""


def test_litellm(reader: Served, tmp_path: Path) -> None:
    """The same, for litellm; or it does not know what the error is."""
    variables = installed(tmp_path, "litellm") | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}

    def ask(url: str, messages: Messages, leave: bool) -> Heard:
        done = subprocess.run(
            [sys.executable, "-c", LITELLM, url, str(leave)],
            env=variables, input=json.dumps(messages), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Refused(done.stderr)
        return Heard("") if leave else Heard(*json.loads(done.stdout.splitlines()[-1]))

    transcript(reader, "litellm", ask)


def test_llm(reader: Served, tmp_path: Path) -> None:
    """The lines for `llm` in docs/serve.md do not work; or its second turn reads all again."""
    variables = installed(tmp_path / "packages", "llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f'- {{model_id: localmoe, model_name: any, api_base: "{reader.url}/v1"}}\n'
    )
    variables |= {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def begin(*words: str, said: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "llm", "-m", "localmoe", "-o", "max_tokens", "4", *words],
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
            out, err = process.communicate()
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
    cached = last.partition(" (")[2].partition(" ")[0]
    assert int(cached.replace(",", "")) > LONG, last
