"""Which model answers to which name, and the one that is loaded. For use on one thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack

from localmoe import config, storage
from localmoe.app.find import model_to_load
from localmoe.app.listener import Listener
from localmoe.app.loading import opened, require_fit_after
from localmoe.app.model import LoadedModel
from localmoe.app.requests import LoadRequest
from localmoe.engine.events import Loaded, LoadProgress
from localmoe.errors import EngineError, UnknownModelError
from localmoe.facts import catalog
from localmoe.server.requests import ServeRequest


class Models:
    """At most one model is in memory; another one takes its place when it is asked for.

    The methods are called on the engine's thread; the properties from any.
    """

    def __init__(self, request: ServeRequest, listener: Listener) -> None:
        self._request = request
        self._listener = listener
        self._aliases = {name.lower(): model for name, model in request.aliases.items()}
        self._stack = ExitStack()
        self._name: str | None = None  # what the loaded one was asked for by
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

    def bring_in(self, asked: str | None) -> Iterator[LoadProgress]:
        """Have the model that answers to ``asked`` loaded; ``current`` is it at the end.

        Raises what ``app.loading.opened`` raises: then the model before is still there.
        """
        name = self.target(asked)
        if self.current is None or name != self._name:
            self._replace(name)
        model = self.current
        assert model is not None
        if model.loaded is not None and model.engine.alive:
            return
        try:
            for event in model.bring_in():
                if isinstance(event, LoadProgress):
                    yield event
                elif isinstance(event, Loaded) and event.note:
                    self._listener.warn(event.note)
        except BaseException:
            self.unload()
            raise
        if model.loaded is None:
            raise EngineError("the engine ended loading without a word")

    def unload(self) -> None:
        """Give the memory back; the next request loads again."""
        self.current, self._name = None, None
        self._stack.close()
        self._stack = ExitStack()

    def _replace(self, name: str | None) -> None:
        """Plan the model of that name; the one before is unloaded once that is known to fit."""
        request = self._load_request(name)
        if self.current is not None:
            facts = model_to_load(request, self._listener)
            require_fit_after(self.current.plan, facts, request.plan)
            self.unload()
        self.current = self._stack.enter_context(opened(request, self._listener))
        self._name = name

    def _load_request(self, name: str | None) -> LoadRequest:
        request = self._request
        named_at_start = name is not None and name == request.load.name
        return dataclasses.replace(
            request.load,
            name=name,
            may_download=request.may_pull or named_at_start,
            consent=request.may_pull or request.load.consent,
        )
