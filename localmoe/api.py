"""The Python API: a model as an object that answers in typed events.

::

    import localmoe

    with localmoe.load("qwen3-30b-a3b:Q4_K_M") as model:
        for event in model.chat("What is a mixture of experts?"):
            if isinstance(event, localmoe.AnswerDelta):
                print(event.text, end="", flush=True)

        reply = model.chat("Three rivers of Europe?", schema=SCHEMA).result()
        json.loads(reply.answer)

        talk = model.begin(system="Be brief.")          # remembers what was said
        first = localmoe.result(talk.ask("Who wrote Faust?"))
        second = localmoe.result(talk.ask("When was he born?"))

        for event in model.generate("Once upon a time", max_tokens=100):   # no chat template
            ...

The command line stands on the same functions. What goes wrong is a ``LocalmoeError``
(``localmoe.errors``); nothing is downloaded here (``localmoe pull NAME`` does that).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypedDict, TypeVar, Unpack

from localmoe import config, ledger
from localmoe.chat.attachments import Attachment
from localmoe.chat.conversation import ChatEvent, Conversation, TextEngine, TurnDone
from localmoe.chat.sampling import default_sampling
from localmoe.chat.session import Message, Session, Turn
from localmoe.chat.settings import Settings
from localmoe.chat.template import ChatTemplate, Renderer
from localmoe.chat.thinking import ThinkLevel
from localmoe.engine.client import Engine
from localmoe.engine.devices import engine_info
from localmoe.engine.events import Loaded, LoadProgress
from localmoe.engine.grammar import schema_to_gbnf
from localmoe.engine.oracle import Oracle
from localmoe.errors import (
    DoesNotFitError,
    EngineError,
    EngineMemoryError,
    UsageError,
)
from localmoe.facts import catalog, hardware
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model, Value, read_model
from localmoe.planning.memory import EngineSettings
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Plan, Wishes


class LoadableEngine(TextEngine, Protocol):
    """The part of ``localmoe.engine.client.Engine`` that a loaded model needs."""

    @property
    def alive(self) -> bool: ...

    def load(self) -> Iterator[LoadProgress | Loaded]: ...

    def keep(self, slot: str) -> int: ...

    def resume(self, slot: str) -> int: ...

    def close(self) -> None: ...


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen; what is left out comes from the model's file, else plain values."""

    temperature: float  # 0: greedy, repeatable
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    presence_penalty: float
    frequency_penalty: float
    seed: int | None


class Stream:
    """The events of one answer as they happen; the last one is ``TurnDone``.

    An answer that is no longer iterated over is stopped by ``close``, or when it is forgotten.
    """

    def __init__(self, events: Iterator[ChatEvent]) -> None:
        self._events = events

    def __iter__(self) -> Iterator[ChatEvent]:
        return self._events

    def __next__(self) -> ChatEvent:
        return next(self._events)

    def result(self) -> TurnDone:
        """The answer as a whole."""
        return result(self._events)

    def close(self) -> None:
        """Stop here."""
        close = getattr(self._events, "close", None)
        if close is not None:
            close()


def result(events: Iterable[ChatEvent]) -> TurnDone:
    """Wait for the end of a turn."""
    done = None
    for event in events:
        if isinstance(event, TurnDone):
            done = event
    if done is None:
        raise EngineError("the engine ended a turn without saying why")
    return done


@dataclass(slots=True)
class LoadedModel:
    """A planned model and its engine; ``loaded`` is None until ``bring_in``."""

    model: Model
    machine: Machine
    plan: Plan
    engine: LoadableEngine
    renderer: Renderer
    loaded: Loaded | None = field(default=None, init=False)
    _owned: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    def chat(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        system: str = "",
        files: Sequence[Attachment] = (),
        schema: object = None,
        think: str = "auto",
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """One answer, through the model's chat template.

        ``prompt`` is a question, or the messages so far, each with ``role`` and ``content``, the
        last one the user's. ``schema`` is a parsed JSON schema that the answer then follows.
        Raises UsageError, TemplateError, ContextOverflowError, EngineError.
        """
        session, question = _session(prompt, system)
        settings = self.settings(
            schema=schema, think=think, max_tokens=max_tokens, stop=stop, **sampling
        )
        return Stream(self.conversation_of(session, settings).ask(question, tuple(files)))

    def generate(
        self,
        prompt: str,
        *,
        schema: object = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Text that goes on from ``prompt``, without a chat template. Raises as ``chat`` does."""
        settings = self.settings(
            schema=schema, plain=True, max_tokens=max_tokens, stop=stop, **sampling
        )
        return Stream(self.conversation_of(Session(), settings).ask(prompt))

    def begin(
        self,
        *,
        system: str = "",
        schema: object = None,
        think: str = "auto",
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Conversation:
        """A conversation that remembers: each ``ask`` gives the events of one turn."""
        settings = self.settings(
            schema=schema, think=think, max_tokens=max_tokens, stop=stop, **sampling
        )
        return self.conversation_of(Session(system), settings)

    def settings(
        self,
        *,
        schema: object = None,
        think: str = "auto",
        plain: bool = False,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Settings:
        """How to ask this model. Raises UsageError for a schema that cannot be enforced."""
        grammar = None if schema is None else schema_to_gbnf(schema)
        return settings_for(
            self.model.metadata,
            sampling,
            think=think,
            plain=plain,
            max_tokens=max_tokens,
            stop=tuple(stop),
            grammar=grammar,
        )

    def conversation_of(self, session: Session, settings: Settings) -> Conversation:
        """A conversation that goes on from ``session``. The model must be loaded."""
        if self.loaded is None:
            raise EngineError("the model is not loaded")
        template = ChatTemplate.from_model(
            self.model.chat_template, self.loaded.bos, self.loaded.eos, renderer=self.renderer
        )
        return Conversation(self.engine, template, session, settings)

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text``, without a beginning token."""
        return self.engine.count_tokens(text)

    def bring_in(self) -> Iterator[LoadProgress | Loaded]:
        """Load the weights, or load them again after a crash; the last event is ``Loaded``.

        Raises ModelFileError, EngineError.
        """
        for event in self.engine.load():
            if isinstance(event, Loaded):
                self.loaded = event
            yield event

    def close(self) -> None:
        """Give back its memory."""
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def load(
    name: str | None = None,
    *,
    context: int | None = None,
    wishes: Wishes | None = None,
    remember: bool = True,
    progress: Callable[[float], None] = lambda fraction: None,
) -> LoadedModel:
    """A model on this machine, planned for what is free and loaded; a context manager.

    ``name`` is what the command line takes: a path, a name of the catalog or of a Hub repository
    that has been pulled, an alias; None is the bundled nano. ``context`` is in tokens; ``wishes``
    has the rest of what the planner can be told. ``progress`` is called with 0…1. ``remember``:
    what speeds up the next start may be noted.
    Raises UnknownModelError, ModelFileError, DoesNotFitError, EngineError.
    """
    path = catalog.resolve(config.read().target(name) if name else catalog.BUNDLED)
    wanted = wishes or Wishes()
    if context is not None:
        wanted = dataclasses.replace(wanted, context=context)
    stack = ExitStack()
    try:
        renderer = stack.enter_context(Renderer())
        renderer.start()
        model = read_model(path)
        up = stack.enter_context(
            planned(
                model,
                lambda: hardware.detect(engine_info().gpus),
                wanted,
                renderer,
                make=LoadedModel,
                remember=remember,
            )
        )
        for event in up.bring_in():
            if isinstance(event, LoadProgress):
                progress(event.fraction)
    except BaseException:
        stack.close()
        raise
    up._owned = stack
    return up


Up = TypeVar("Up", bound=LoadedModel)


def plan_for(model: Model, machine: Machine, wishes: Wishes) -> Plan:
    """The plan for running a model here, beside what other localmoe processes will still take.

    Raises ModelFileError, EngineError.
    """
    promised = sum(promise.outstanding_ram for promise in ledger.promises())
    with Oracle(model) as measure:
        return make_plan(model, machine, wishes, measure, promised)


Settle = Callable[[EngineMemoryError, Plan, Plan], Plan]
"""Which plan to load when memory was taken since the first one; see ``settle``."""


def settle(error: EngineMemoryError, plan: Plan, other: Plan) -> Plan:
    """``other``, made with what is free now, after ``plan`` met with ``error``.

    Raises ``error`` where both are the same, and DoesNotFitError where nothing fits any more.
    """
    if not other.verdict.fits:
        hint = other.advice[0] if other.advice else None
        raise DoesNotFitError(f"memory was taken meanwhile: {other.reason}", hint=hint) from error
    if other.settings == plan.settings:
        raise error
    return other


@contextmanager
def planned(
    model: Model,
    find_machine: Callable[[], Machine],
    wishes: Wishes,
    renderer: Renderer,
    *,
    make: Callable[[Model, Machine, Plan, Engine, Renderer], Up],
    record: str = "",
    remember: bool = True,
    settle: Settle = settle,
) -> Iterator[Up]:
    """A model planned for this machine, with its engine, not loaded yet: what ``make`` makes of it.

    ``record``: a path for the trace of what the router chooses. Raises DoesNotFitError when the
    plan says no, ModelFileError, EngineError.
    """

    def settings(plan: Plan) -> EngineSettings:
        return dataclasses.replace(plan.settings, record=record)

    def replan(error: EngineMemoryError) -> tuple[EngineSettings, int]:
        up.machine = find_machine()
        up.plan = settle(error, up.plan, plan_for(model, up.machine, wishes))
        return settings(up.plan), up.plan.tiers.ram

    with ledger.planning():  # nobody else plans with the same memory before it is promised
        machine = find_machine()
        plan = plan_for(model, machine, wishes)
        if not plan.verdict.fits:
            raise DoesNotFitError(plan.reason, hint=plan.advice[0] if plan.advice else None)
        engine = Engine(model, settings(plan), plan.tiers.ram, remember=remember, replan=replan)
        engine.promise()
    with engine:
        up = make(model, machine, plan, engine, renderer)
        yield up


def settings_for(
    metadata: Mapping[str, Value],
    sampling: Mapping[str, Any] | SamplingOptions,
    *,
    think: str = "auto",
    plain: bool = False,
    max_tokens: int | None = None,
    stop: tuple[str, ...] = (),
    grammar: str | None = None,
) -> Settings:
    """The sampling values of a model's file, with the given ones over them. Pure.

    Raises UsageError for a level of thinking that there is not.
    """
    try:
        level = ThinkLevel(think)
    except ValueError:
        levels = ", ".join(ThinkLevel)
        raise UsageError(f"think is one of {levels}, not {think!r}") from None
    return Settings(
        sampling=dataclasses.replace(default_sampling(metadata), **sampling),
        max_tokens=max_tokens,
        think=level,
        plain=plain,
        stop=stop,
        grammar=grammar,
    )


def _session(prompt: str | Sequence[Mapping[str, str]], system: str) -> tuple[Session, str]:
    """What was said before, and the question."""
    if isinstance(prompt, str):
        return Session(system), prompt
    messages = [Message(m["role"], m["content"], m.get("reasoning", "")) for m in prompt]
    if messages and messages[0].role == "system":
        system = "\n\n".join(filter(None, (system, messages.pop(0).content)))
    roles = [message.role for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise UsageError("messages are user and assistant in turn, the last one is the user's")
    turns = (Turn(q, a) for q, a in zip(messages[0:-1:2], messages[1::2], strict=True))
    return Session(system, turns), messages[-1].content
