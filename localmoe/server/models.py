"""Which model answers to which name, and the one that is loaded."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

from localmoe import config, storage
from localmoe.app.find import model_to_load
from localmoe.app.listener import Listener
from localmoe.app.loading import opened, require_fit_after
from localmoe.app.model import LoadedModel
from localmoe.app.model_socket import ModelSocket
from localmoe.app.planned_model import verdict_words
from localmoe.app.requests import LoadRequest
from localmoe.app.shared import SharedModel
from localmoe.engine.events import LoadProgress
from localmoe.errors import EngineError, UnknownModelError
from localmoe.facts import catalog
from localmoe.server.requests import ServeRequest
from localmoe.text import clean_line, format_bytes


class Models:
    """At most one model is in memory; another one takes its place when it is asked for.

    Who loads and unloads sees to it that nobody is being answered by another model.
    """

    def __init__(self, request: ServeRequest, listener: Listener, address: str = "") -> None:
        """``address``: where the server listens, for programs that use its model too."""
        self._request = request
        self._listener = listener
        self._address = address
        self._aliases = {name.lower(): model for name, model in request.aliases.items()}
        self._stack = ExitStack()
        self._name: str | None = None  # what the loaded one was asked for by
        self._shared: SharedModel | None = None
        self._bringing_in = threading.Lock()
        self.current: LoadedModel | None = None  # planned, and loaded unless it is on its way

    def target(self, asked: str | None) -> str | None:
        """The name of the model that answers to ``asked``; None: the default one.

        Raises UnknownModelError for a path.
        """
        if asked is not None and (model := self._aliases.get(asked.lower())) is not None:
            return model
        if self._request.load.name is not None:
            return self._request.load.name
        if asked is None:
            return None
        target = config.read().target(asked)
        if target == asked and catalog.is_path(asked):  # files are the owner's to name
            raise UnknownModelError(
                "a request names a model by its name, not by a path", hint="GET /v1/models"
            )
        return target

    @property
    def answers_to_any(self) -> bool:
        """Whether one model answers whatever name is asked for."""
        return self._request.load.name is not None

    def names(self) -> list[str]:
        """The names that can be asked for, without those of aliases in the configuration."""
        single = self._request.load.name
        if single is None:
            here = [model.name for model in catalog.installed_models()]
        elif catalog.is_path(single):
            here = [catalog.model_name(storage.user_path(single))]
        else:
            here = [single]
        return list(dict.fromkeys((*self._request.aliases, *here)))

    def is_current(self, name: str) -> bool:
        """Whether the model of that name is in memory, or on its way there."""
        return self.current is not None and self.target(name) == self._name

    def ready(self, asked: str | None) -> LoadedModel | None:
        """The model that answers to ``asked``, if it is loaded and its engine runs.

        From any thread. Raises UnknownModelError.
        """
        name, model = self.target(asked), self.current
        if model is None or name != self._name or model.loaded is None or not model.engine.alive:
            return None
        return model

    @property
    def in_use(self) -> bool:
        """Whether somebody is being answered, attached programs included."""
        return self._shared is not None and (self._shared.busy or self._shared.waiting > 0)

    def bring_in(self, asked: str | None) -> Iterator[LoadProgress]:
        """Have the model that answers to ``asked`` loaded, and its engine alive.

        From any thread, but by nobody who waits for another model. Raises what
        ``app.loading.opened`` raises: then the model before is still there.
        """
        with self._bringing_in:
            name = self.target(asked)
            if self.current is None or name != self._name:
                self._replace(name)
            if self._shared is not None:
                self._shared.revive()
                return
            model = self.current
            assert model is not None
            try:
                for event in model.bring_in():
                    if isinstance(event, LoadProgress):
                        yield event
                    elif event.note:
                        self._listener.warn(event.note)
                if model.loaded is None:
                    raise EngineError("the engine ended loading without a word")
            except BaseException:
                self.unload()
                raise
            self._shared = SharedModel(model)
            socket = ModelSocket(self._shared, self._request.load.plan, self._address)
            self._stack.callback(socket.close)

    def caller(self) -> LoadedModel:
        """The model as one request sees it, after ``bring_in``: it waits for its turn."""
        assert self._shared is not None
        return self._shared.caller()

    def unload(self) -> None:
        """Give the memory back; the next request loads again."""
        self.current, self._name, self._shared = None, None, None
        self._stack.close()
        self._stack = ExitStack()

    def _replace(self, name: str | None) -> None:
        """Plan the model of that name; the one before is unloaded once that is known to fit."""
        request = self._load_request(name)
        if self.current is not None:
            facts = model_to_load(request, self._listener)
            require_fit_after(self.current.plan, facts, request.plan)
            while self.in_use:  # by programs that are attached
                time.sleep(0.05)
            self.unload()
        self.current = self._stack.enter_context(opened(request, self._listener))
        self._name = name
        self._listener.note(about(self.current))

    def _load_request(self, name: str | None) -> LoadRequest:
        request = self._request
        named_at_start = name is not None and name == request.load.name
        return dataclasses.replace(
            request.load,
            name=name,
            may_download=request.may_pull or named_at_start,
            consent=request.may_pull or request.load.consent,
        )


def about(model: LoadedModel) -> str:
    """One line: which model, how much context, and where its experts are."""
    plan, settings = model.plan, model.plan.settings
    kv = settings.type_k if settings.type_k == settings.type_v else "mixed"
    parts = [
        clean_line(model.facts.name),
        f"context of {settings.context:,} tokens, KV cache in {kv}",
        verdict_words(plan.verdict, settings.devices),
    ]
    if settings.prompt_cache:
        parts.append(f"{format_bytes(settings.prompt_cache)} for other conversations")
    return " · ".join(parts)
