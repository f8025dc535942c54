"""The fields of a JSON object, read with their types checked: a wrong one is named. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from localmoe.server.problems import Problem
from localmoe.text import clean_line, shortened


class Fields:
    """One object of a request. ``null`` counts as left out, as clients mean it."""

    def __init__(self, values: Mapping[str, Any], where: str = "") -> None:
        self._values = values
        self.where = where
        """The object as errors name it; "" for the whole request."""
        self._read: set[str] = set()

    def path(self, name: str) -> str:
        """The field as errors name it: ``messages[2].content``."""
        return f"{self.where}.{name}" if self.where else name

    @property
    def unread(self) -> list[str]:
        """Names of the fields that nobody asked for."""
        return [name for name in self._values if name not in self._read]

    def raw(self, name: str) -> Any:
        """The value as it is; None if it was left out."""
        self._read.add(name)
        return self._values.get(name)

    def wrong(self, name: str, wanted: str) -> NoReturn:
        """Raises the Problem of a field that is not as it should be."""
        shown = clean_line(shortened(repr(self._values.get(name)), 60))
        path = self.path(name)
        raise Problem(400, f"{path} is {wanted}, not {shown}", param=path)

    def missing(self, name: str) -> NoReturn:
        """Raises the Problem of a field that was left out."""
        raise Problem(400, f"{self.path(name)} is missing", param=self.path(name))

    def text(self, name: str) -> str | None:
        value = self.raw(name)
        if value is not None and not isinstance(value, str):
            self.wrong(name, "a text")
        return value

    def required_text(self, name: str) -> str:
        value = self.text(name)
        return self.missing(name) if value is None else value

    def choice(self, name: str, choices: Sequence[str]) -> str | None:
        value = self.text(name)
        if value is not None and value not in choices:
            self.wrong(name, f"one of {', '.join(choices)}")
        return value

    def flag(self, name: str) -> bool | None:
        value = self.raw(name)
        if value is not None and not isinstance(value, bool):
            self.wrong(name, "true or false")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        """A finite number from ``low`` to ``high``."""
        value = self.raw(name)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
            or not math.isfinite(value)
        ):
            self.wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number from ``low`` to ``high``; ``3.0`` is one."""
        value = self.raw(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.wrong(name, f"a whole number from {low} to {high}")
        return value

    def inner(self, name: str) -> Fields | None:
        value = self.raw(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.wrong(name, "an object")
        return Fields(value, self.path(name))

    def items(self, name: str) -> Sequence[Any] | None:
        value = self.raw(name)
        if value is not None and not isinstance(value, list):
            self.wrong(name, "a list")
        return value

    def objects(self, name: str) -> list[Fields] | None:
        """A list of objects."""
        values = self.items(name)
        if values is None:
            return None
        found = []
        for number, value in enumerate(values):
            path = f"{self.path(name)}[{number}]"
            if not isinstance(value, dict):
                raise Problem(400, f"{path} is not an object", param=path)
            found.append(Fields(value, path))
        return found

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """A text, or a list of at most ``most`` texts of at most ``longest`` characters."""
        value = self.raw(name)
        values = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(text, str) for text in values):
            self.wrong(name, "a text or a list of texts")
        if len(values) > most or any(len(text) > longest for text in values):
            path = self.path(name)
            raise Problem(
                400, f"{path} has at most {most} texts of {longest:,} characters", param=path
            )
        return tuple(values)
