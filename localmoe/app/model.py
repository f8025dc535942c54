"""A loaded model, and its answers as typed events."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TypedDict, Unpack

from localmoe.app import checks
from localmoe.app.requests import SampleRequest
from localmoe.app.stream import Stream
from localmoe.chat import answering
from localmoe.chat.answering import TextEngine
from localmoe.chat.attachments import Attachment, attached
from localmoe.chat.conversation import Conversation
from localmoe.chat.history import read_messages
from localmoe.chat.renderer import Renderer
from localmoe.chat.sampling import default_sampling
from localmoe.chat.session import Message, Session
from localmoe.chat.settings import Settings
from localmoe.chat.template import ChatTemplate, Rendered
from localmoe.chat.thinking import ThinkLevel
from localmoe.chat.tools import ToolUse, read_tools
from localmoe.engine.events import AnswerEvent, Loaded, LoadProgress, Request
from localmoe.errors import EngineError, UsageError
from localmoe.facts.model import Model, Value

if TYPE_CHECKING:  # imported late: an attached program need not wait for what they import
    from localmoe.facts.hardware import Machine
    from localmoe.planning.plan import Plan
    from localmoe.planning.speed import Forecast


class LoadableEngine(TextEngine, Protocol):
    """The part of ``localmoe.engine.client.Engine`` that a loaded model needs."""

    def generate(self, request: Request) -> Generator[AnswerEvent, None, None]: ...

    def tokenize(self, text: str, *, special: bool = False, whole: bool = False) -> list[int]: ...

    def spell(self, tokens: Sequence[int]) -> list[bytes]: ...

    def pause(self) -> None: ...

    @property
    def alive(self) -> bool: ...

    @property
    def silent_s(self) -> float: ...

    def at_work(self) -> bool: ...

    def load(self) -> Iterator[LoadProgress | Loaded]: ...

    def keep(self, slot: str) -> int: ...

    def resume(self, slot: str) -> int: ...

    def close(self) -> None: ...


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen; a field left out comes from the model's file, else from defaults."""

    temperature: float  # 0: greedy, repeatable
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    logit_bias: Mapping[int, float]  # -100 to 100, by the numbers of tokens


@dataclass(slots=True, repr=False)
class LoadedModel:
    """A planned model and its engine; ``loaded`` is None until ``bring_in``."""

    facts: Model  # what its file's header says
    machine: Machine
    plan: Plan
    engine: LoadableEngine
    renderer: Renderer
    forecast: Forecast | None = None  # the speed to expect; None: unknown
    loaded: Loaded | None = field(default=None, init=False)
    owned: ExitStack = field(default_factory=ExitStack, init=False)  # for ``close``
    closed: bool = field(default=False, init=False)
    _template: ChatTemplate | None = field(default=None, init=False)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "loaded" if self.loaded else "not loaded"
        return f"<{type(self).__name__} {self.facts.name!r}, {state}>"

    def chat(
        self,
        prompt: str | Sequence[Mapping[str, object]],
        *,
        system: str = "",
        files: Sequence[Attachment] = (),
        schema: object = None,
        think: str = "auto",
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int | None = None,
        tools: Sequence[Mapping[str, object]] | ToolUse = (),
        tool_choice: str | Mapping[str, object] = "auto",
        parallel_tool_calls: bool = True,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """One answer, through the model's chat template.

        ``prompt`` is a question, or the messages so far: of system, developer, user, assistant
        (with ``tool_calls``) and tool (with ``tool_call_id``), as OpenAI's chat completions have
        them. ``schema`` is a parsed JSON schema that the answer then follows. ``tools`` are
        functions as these have them, ``tool_choice`` is auto, none, required or a tool's name. With
        ``top_logprobs`` (0 to 20) each ``AnswerDelta`` has the tokens it came of: how likely they
        were, and so many of the likeliest in their place. Raises UsageError, which names the
        message or the tool, TemplateError,
        ContextOverflowError, EngineError.
        """
        messages = _messages(prompt, system, files)
        use = (
            tools
            if isinstance(tools, ToolUse)
            else read_tools(tools, tool_choice, parallel=parallel_tool_calls)
        )
        settings = self.settings(
            schema=schema,
            think=think,
            max_tokens=max_tokens,
            stop=stop,
            top_logprobs=top_logprobs,
            tools=use,
            **sampling,
        )
        return self._answer(messages, settings)

    def generate(
        self,
        prompt: str,
        *,
        schema: object = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Text that goes on from ``prompt``, without a chat template. Raises as ``chat`` does."""
        settings = self.settings(
            schema=schema,
            plain=True,
            max_tokens=max_tokens,
            stop=stop,
            top_logprobs=top_logprobs,
            **sampling,
        )
        return self._answer((Message("user", checks.text("prompt", prompt)),), settings)

    def begin(
        self,
        *,
        system: str = "",
        schema: object = None,
        think: str = "auto",
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Conversation:
        """A conversation that remembers its turns: each ``ask`` gives the events of one turn."""
        settings = self.settings(
            schema=schema,
            think=think,
            max_tokens=max_tokens,
            stop=stop,
            top_logprobs=top_logprobs,
            **sampling,
        )
        return self.conversation_of(Session(checks.text("system", system)), settings)

    def settings(
        self,
        *,
        schema: object = None,
        think: str = "auto",
        plain: bool = False,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        top_logprobs: int | None = None,
        tools: ToolUse | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Settings:
        """Settings of a conversation.

        Raises UsageError for a schema that cannot be enforced, and a bias of no token.
        """
        grammar = None
        if schema is not None:
            from localmoe.engine.grammar import schema_to_gbnf  # late: see chat/answering.py

            grammar = schema_to_gbnf(checks.schema(schema))
        tools = tools if tools and tools.tools else None
        if tools and grammar:
            raise UsageError("a schema says what the answer is, so that no tool can be called")
        request = SampleRequest(
            sampling,
            think,
            plain,
            max_tokens,
            checks.texts("stop", stop),
            grammar,
            checks.top_logprobs(top_logprobs),
            tools,
        )
        made = settings_for(self.facts.metadata, request)
        if self.loaded is not None and self.loaded.vocabulary:
            checks.known_tokens(made.sampling.logit_bias, self.loaded.vocabulary)
        return made

    def conversation_of(self, session: Session, settings: Settings) -> Conversation:
        """A conversation that continues ``session``. Raises EngineError if nothing is loaded."""
        self._check_loaded()
        return Conversation(self.engine, self.template, session, settings)

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template, and what was found out about it; its model is loaded."""
        if self._template is None:
            assert self.loaded is not None
            self._template = ChatTemplate.from_model(
                self.facts.chat_template, self.loaded.bos, self.loaded.eos, renderer=self.renderer
            )
        return self._template

    def count_prompt(
        self,
        prompt: str | Sequence[Mapping[str, object]],
        *,
        system: str = "",
        think: str = "auto",
        tools: Sequence[Mapping[str, object]] | ToolUse = (),
    ) -> int:
        """Number of tokens that ``chat`` would read for these messages; from any thread.

        Raises UsageError, TemplateError, EngineError.
        """
        rendered = self._rendered(_messages(prompt, system, ()), think, tools)
        return self.engine.count_prompt(rendered.prompt, rendered.data)

    def render_prompt(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        think: str = "auto",
        tools: Sequence[Mapping[str, object]] | ToolUse = (),
    ) -> str:
        """The text that ``chat`` would read for these messages. Raises as ``count_prompt``."""
        return self._rendered(read_messages(messages), think, tools).prompt

    def count_tokens(self, text: str) -> int:
        """Number of tokens in ``text``, without a beginning token.

        From any thread, at once, while an answer is being written too. Raises UsageError,
        EngineError.
        """
        self._check_loaded()
        return self.engine.count_tokens(checks.text("text", text))

    def tokenize(self, text: str, *, special: bool = False, whole: bool = False) -> list[int]:
        """The numbers of its tokens, as ``count_tokens`` counts them, and as freely.

        ``special``: special tokens that the text spells become such. ``whole``: as a prompt, with
        its beginning-of-sequence token where the model wants one.
        """
        self._check_loaded()
        return self.engine.tokenize(checks.text("text", text), special=special, whole=whole)

    def spell(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token; none for a number that is no token."""
        self._check_loaded()
        return self.engine.spell(checks.tokens(tokens))

    def bring_in(self) -> Iterator[LoadProgress | Loaded]:
        """Load the weights, or load them again after a crash; the last event is ``Loaded``.

        Raises ModelFileError, EngineError.
        """
        if self.closed:
            raise EngineError("the model is closed", hint="localmoe.load brings it back")
        for event in self.engine.load():
            if isinstance(event, Loaded):
                self.loaded = event
            yield event

    def close(self) -> None:
        """End the engine, which frees the model's memory."""
        self.closed = True
        self.owned.close()

    def _rendered(
        self,
        messages: Sequence[Message],
        think: str,
        tools: Sequence[Mapping[str, object]] | ToolUse,
    ) -> Rendered:
        self._check_loaded()
        use = tools if isinstance(tools, ToolUse) else read_tools(tools)
        return self.template.render(
            messages, tools=use.tools, think=self.settings(think=think).think
        )

    def _check_loaded(self) -> None:
        if self.closed:
            raise EngineError("the model is closed", hint="localmoe.load brings it back")
        if self.loaded is None:
            raise EngineError("the model is not loaded")

    def _answer(self, messages: Sequence[Message], settings: Settings) -> Stream:
        self._check_loaded()
        events = answering.events(self.engine, self.template, messages, settings)
        return Stream(events, self.engine.cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def settings_for(metadata: Mapping[str, Value], request: SampleRequest) -> Settings:
    """Settings from a request; sampling values it leaves out come from the model's metadata. Pure.

    Raises UsageError for an unknown level of thinking, and values out of their range.
    """
    try:
        level = ThinkLevel(request.think)
    except ValueError:
        levels = ", ".join(ThinkLevel)
        raise UsageError(f"think is one of {levels}, not {request.think!r}") from None
    return Settings(
        sampling=dataclasses.replace(
            default_sampling(metadata), **checks.sampling_values(request.sampling)
        ),
        max_tokens=checks.checked("max_tokens", request.max_tokens),
        think=level,
        plain=request.plain,
        stop=request.stop,
        grammar=request.grammar,
        top_logprobs=request.top_logprobs,
        tools=request.tools,
    )


def _messages(
    prompt: str | Sequence[Mapping[str, object]], system: str, files: Sequence[Attachment]
) -> tuple[Message, ...]:
    """What is said to the model: the messages of a conversation, or one question.

    Files go with the last message of the user's. Raises UsageError.
    """
    system = checks.text("system", system)
    messages: tuple[Message, ...] = (
        (Message("user", prompt),) if isinstance(prompt, str) else read_messages(prompt)
    )
    if system:
        if messages[0].role == "system":
            system, messages = f"{system}\n\n{messages[0].content}", messages[1:]
        messages = (Message("system", system), *messages)
    if not files:
        return messages
    last = max(i for i, message in enumerate(messages) if message.role == "user")
    asked = dataclasses.replace(messages[last], files=attached(files))
    return (*messages[:last], asked.for_prompt(), *messages[last + 1 :])
