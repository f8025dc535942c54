"""OpenAI's and Anthropic's own libraries against the real server with the bundled model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.served import Served
from tests.waiting import wait_until

if TYPE_CHECKING:
    import anthropic
    import openai

QUESTION = "What is a mixture of experts?"
TEXT = "A mixture of experts is a neural network"
GREEDY = {"temperature": 0}  # the library leaves it out, the protocol has it
ASKED: list[Any] = [{"role": "user", "content": QUESTION}]


class TestOpenAI:
    def test_chat_completions(self, of_openai: openai.OpenAI) -> None:
        """The library cannot read an answer, its stream or its usage; or all is read again."""
        how: dict[str, Any] = {
            "model": "any",
            "messages": ASKED,
            "max_tokens": 12,
            "temperature": 0,
        }
        whole = of_openai.chat.completions.create(**how)
        text = whole.choices[0].message.content
        assert text is not None
        assert text.startswith(TEXT)
        options = {"include_usage": True}
        stream = of_openai.chat.completions.create(stream=True, stream_options=options, **how)
        *chunks, last = list(stream)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        assert chunks[-1].choices[0].finish_reason == "length"
        assert (last.choices, last.usage.completion_tokens) == ([], 12)
        again = [
            *ASKED,
            {"role": "assistant", "content": text},
            {"role": "user", "content": "And?"},
        ]
        second = of_openai.chat.completions.create(**how | {"messages": again})
        assert second.usage is not None
        assert second.usage.prompt_tokens_details is not None
        assert (second.usage.prompt_tokens_details.cached_tokens or 0) > 10

    def test_chat_completions_helper(self, of_openai: openai.OpenAI) -> None:
        """The library's own accumulator does not end with the whole message."""
        with of_openai.chat.completions.stream(
            model="any", messages=ASKED, temperature=0
        ) as stream:
            for _ in stream:
                pass
            message = stream.get_final_completion().choices[0].message
        assert (message.content or "").startswith(TEXT)

    def test_completions(self, of_openai: openai.OpenAI) -> None:
        """Text completions cannot be read, streamed or whole."""
        how: dict[str, Any] = {"model": "any", "prompt": "A mixture of", "max_tokens": 5}
        whole = of_openai.completions.create(temperature=0, echo=True, **how)
        assert whole.choices[0].text.startswith("A mixture of")
        stream = of_openai.completions.create(temperature=0, stream=True, **how)
        pieces = [chunk.choices[0].text for chunk in stream]
        assert "A mixture of" + "".join(pieces) == whole.choices[0].text

    def test_responses(self, of_openai: openai.OpenAI) -> None:
        """A response cannot be read; or its events do not add up to it."""
        how: dict[str, Any] = {"model": "any", "input": QUESTION, "temperature": 0}
        whole = of_openai.responses.create(**how)
        assert whole.output_text.startswith(TEXT)
        assert whole.status == "completed"
        with of_openai.responses.stream(**how) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert final.output_text == whole.output_text
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert final.usage is not None
        assert final.usage.input_tokens_details.cached_tokens > 0
        more = [*final.output, {"role": "user", "content": [{"type": "input_text", "text": "?"}]}]
        asked = [{"role": "user", "content": QUESTION}, *more]
        cut = of_openai.responses.create(
            model="any", input=asked, max_output_tokens=2, instructions="Be brief."
        )
        assert cut.incomplete_details is not None
        assert cut.incomplete_details.reason == "max_output_tokens"

    def test_errors(self, of_openai: openai.OpenAI) -> None:
        """An error is not the one that the library has for it."""
        import openai

        long: list[Any] = [{"role": "user", "content": "word " * 5000}]
        with pytest.raises(openai.BadRequestError) as caught:
            of_openai.chat.completions.create(model="any", messages=long, stream=True)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="embeddings"):
            of_openai.embeddings.create(model="any", input="x")
        with pytest.raises(openai.BadRequestError) as caught:
            of_openai.responses.create(model="any", input="x", previous_response_id="resp_1")
        assert caught.value.param == "previous_response_id"

    def test_models(self, of_openai: openai.OpenAI) -> None:
        """Models cannot be listed."""
        assert [model.id for model in of_openai.models.list()] == ["nano"]
        assert of_openai.models.retrieve("nano").id == "nano"

    def test_async(self, nano: Served) -> None:
        """The asynchronous client cannot read what the other can."""
        import openai

        async def scene() -> tuple[str, ...]:
            async with openai.AsyncOpenAI(base_url=f"{nano.url}/v1", api_key="x") as client:

                async def one() -> str:
                    stream = await client.chat.completions.create(
                        model="x", messages=ASKED, stream=True, max_tokens=12, temperature=0
                    )
                    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

                return await asyncio.gather(one(), one(), one())

        texts = asyncio.run(scene())
        assert all(text.startswith(TEXT) for text in texts)
        assert len(set(texts)) == 1


class TestAnthropic:
    def test_messages(self, of_anthropic: anthropic.Anthropic) -> None:
        """A message cannot be read; or its events do not add up to it."""
        how: dict[str, Any] = {
            "model": "any",
            "messages": ASKED,
            "max_tokens": 12,
            "extra_body": GREEDY,
        }
        how["system"] = [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=1a2b;"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ]
        whole = of_anthropic.messages.create(**how)
        assert whole.stop_reason == "max_tokens"
        assert whole.content[0].type == "text"
        how["system"][0]["text"] = "x-anthropic-billing-header: cc_version=1; cch=99ff;"
        with of_anthropic.messages.stream(**how) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == whole.content[0].text
        assert (final.usage.cache_read_input_tokens or 0) > 10
        assert final.usage.output_tokens == 12
        before = whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
        assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) == before
        how["stop_sequences"] = ["nothing", "neural"]
        stopped = of_anthropic.messages.create(**how)
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "neural")
        del how["max_tokens"], how["extra_body"], how["stop_sequences"]
        assert of_anthropic.messages.count_tokens(**how).input_tokens == before

    def test_errors(self, of_anthropic: anthropic.Anthropic) -> None:
        """An error is not the one that the library has for it, or not in agents' words."""
        import anthropic

        long: list[Any] = [{"role": "user", "content": "word " * 5000}]
        with pytest.raises(
            anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 2048"
        ):
            of_anthropic.messages.create(model="any", messages=long, max_tokens=5)
        image: list[Any] = [
            {
                "role": "user",
                "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}],
            }
        ]
        with pytest.raises(anthropic.BadRequestError, match="image"):
            of_anthropic.messages.create(model="any", messages=image, max_tokens=5)

    def test_async(self, nano: Served) -> None:
        """The asynchronous client cannot read what the other can."""
        import anthropic

        async def scene() -> str:
            async with (
                anthropic.AsyncAnthropic(base_url=nano.url, api_key="x") as client,
                client.messages.stream(
                    model="any", messages=ASKED, max_tokens=12, extra_body=GREEDY
                ) as stream,
            ):
                return "".join([text async for text in stream.text_stream])

        assert asyncio.run(scene()).startswith(TEXT)


def test_a_client_is_cancelled_while_its_prompt_is_read(
    arch_file: Callable[..., Path], serve: Callable[..., Served]
) -> None:
    """A cancel in the prompt waits for its end; or what was read of it is read again."""
    import openai

    served = serve(arch_file("qwen3moe"), "--ctx", "8k", "--batch", "32")
    messages: list[Any] = [{"role": "user", "content": "word " * 500}]
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x") as client:

        def ask() -> Any:
            return client.chat.completions.create(
                model="x", messages=messages, stream=True, max_tokens=1,
                extra_body={"return_progress": True}, stream_options={"include_usage": True},
            )  # fmt: skip

        stream = ask()
        for chunk in stream:
            progress = getattr(chunk, "prompt_progress", None)
            if progress and progress["processed"] > 100:
                break
        stream.close()
        wait_until(lambda: any(" 499 " in line for line in served.lines))
        *_, last = ask()
        assert last.usage.prompt_tokens_details.cached_tokens >= 64
        assert last.usage.prompt_tokens > 500
