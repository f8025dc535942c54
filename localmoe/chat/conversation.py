"""The turn: what the user says → prompt → engine → reasoning and answer → session."""

from __future__ import annotations

import datetime
from collections.abc import Generator, Sequence
from dataclasses import replace

from localmoe.chat.answering import Said, TextEngine, answer, template_for
from localmoe.chat.attachments import Attachment, attached
from localmoe.chat.events import ChatEvent, TurnDone, Usage
from localmoe.chat.session import Message, Session, Turn
from localmoe.chat.settings import Settings
from localmoe.chat.template import ChatTemplate
from localmoe.chat.thinking import ThinkLevel
from localmoe.engine.events import Sampling
from localmoe.errors import UsageError

SUMMARY_REQUEST = (
    "Summarise our conversation so far for your own later use, in at most {words} words. Keep "
    "names, numbers, decisions, open questions and what I asked for. Write the summary only."
)


class Conversation:
    """A session that talks to an engine. ``engine`` may be replaced between turns."""

    def __init__(
        self,
        engine: TextEngine,
        template: ChatTemplate,
        session: Session,
        settings: Settings,
    ) -> None:
        self.engine = engine
        self.template = template
        self.session = session
        self.settings = settings

    def think_note(self) -> str | None:
        """One sentence when the level of thinking that is set cannot be had exactly.

        Raises ``TemplateError``.
        """
        return self._template.think_control.note(self.settings.think)

    def ask(self, text: str, files: Sequence[Attachment] = ()) -> Generator[ChatEvent, None, None]:
        """One turn. Ends with ``TurnDone``, an interrupted one too.

        What the model said is kept and marked as interrupted when the turn was cancelled, broke
        off with an error, or its events are no longer wanted. An error before the first word
        leaves the session as it was. Raises ``TemplateError``, ``ContextOverflowError``,
        ``EngineError``.
        """
        if not isinstance(text, str):
            raise UsageError(f"the question is a text, not {text!r:.60}")
        question = Message("user", text, files=attached(files))
        said = Said()
        try:
            done = yield from self._answer(self.session.prompt_messages(question), said)
        except GeneratorExit:
            self.session.add(self._turn(question, said, interrupted=True))
            raise
        except BaseException:
            if not said.is_empty:
                self.session.add(self._turn(question, said, interrupted=True))
            raise
        interrupted = done.finish_reason == "interrupted"
        self.session.add(self._turn(question, said, interrupted, done.usage))
        yield done

    def regenerate(self) -> Generator[ChatEvent, None, None]:
        """Ask the last question again; its answer is replaced once a new one has begun.

        Raises UsageError where there is no turn, and what ``ask`` does. Without a word of a new
        answer, after an error or an interrupt, the old one is still there.
        """
        last = self.session.undo()
        if last is None:
            raise UsageError("nothing was asked yet")
        before = len(self.session.turns)
        try:
            yield from self.ask(last.question.content, last.question.files)
        finally:
            self.session.put_back(last, before)

    def prompt_tokens(self, question: Message | None = None, *, skip: int = 0) -> int:
        """Tokens of the prompt for that question, as if ``skip`` turns were not sent any more.

        Raises ``TemplateError``, ``EngineError``.
        """
        messages = self.session.prompt_messages(question, skip=skip)
        return self._count(messages, self.settings.think) if messages else 0

    def summarise(self, turns: int, max_tokens: int) -> Generator[ChatEvent, None, None]:
        """Let the model sum up the oldest ``turns`` in ``max_tokens``, then not sent any more.

        Nothing changes when that is interrupted, or says nothing. Raises what ``ask`` does.
        """
        settings = replace(
            self.settings,
            max_tokens=max_tokens,
            think=ThinkLevel.OFF,
            sampling=Sampling(temperature=0.0),
            stop=(),
            grammar=None,
            tools=None,
        )
        said = Said()
        done = yield from self._answer(self._to_sum_up(turns, max_tokens), said, settings)
        summary = done.answer.strip()
        if summary and done.finish_reason != "interrupted":
            self.session.shorten(turns, summary)
        yield done

    def summary_tokens(self, turns: int, max_tokens: int) -> int:
        """Tokens of the prompt that ``summarise`` sends. Raises what ``prompt_tokens`` does."""
        return self._count(self._to_sum_up(turns, max_tokens), ThinkLevel.OFF)

    def _to_sum_up(self, turns: int, max_tokens: int) -> tuple[Message, ...]:
        older = Session(self.session.system, self.session.turns[:turns])
        older.shorten(self.session.skipped, self.session.summary)
        request = SUMMARY_REQUEST.format(words=max(30, max_tokens // 2))
        return older.prompt_messages(Message("user", request))

    def _count(self, messages: Sequence[Message], think: ThinkLevel) -> int:
        rendered = self._template.render(messages, think=think)
        return self.engine.count_prompt(rendered.prompt, rendered.data)

    @property
    def _template(self) -> ChatTemplate:
        return template_for(self.template, self.settings)

    def _answer(
        self, messages: Sequence[Message], said: Said, settings: Settings | None = None
    ) -> Generator[ChatEvent, None, TurnDone]:
        return answer(self.engine, self.template, messages, settings or self.settings, said)

    def _turn(
        self, question: Message, said: Said, interrupted: bool, usage: Usage | None = None
    ) -> Turn:
        usage = usage or Usage(0, 0)
        model = self.session.model
        return Turn(
            question,
            Message("assistant", said.answer, said.reasoning, interrupted),
            model=model.name if model else "",
            at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )
