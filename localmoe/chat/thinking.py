"""How much a model is asked to think, in the words its chat template understands.

Templates agree on little: Qwen3 and GLM read ``enable_thinking``, DeepSeek and Kimi
``thinking``, gpt-oss ``reasoning_effort``, MiniMax ``thinking_mode``. Which of these names a
template looks up is known from its syntax tree, so nothing is guessed from the model's name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum


class ThinkLevel(StrEnum):
    AUTO = "auto"  # whatever the template does by itself
    OFF = "off"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


Arguments = Mapping[str, object]  # extra variables for a template

SWITCHES: Mapping[str, tuple[object, object]] = {  # name → (off, on)
    "enable_thinking": (False, True),
    "thinking": (False, True),
    "thinking_mode": ("disabled", "enabled"),
    "thinking_budget": (0, -1),
}
EFFORTS = ("reasoning_effort", "thinking_effort", "reasoning_strength")
EFFORTS_THAT_MEAN_OFF = ("no_think", "none", "minimal")


@dataclass(frozen=True, slots=True)
class ThinkControl:
    """What a template lets one choose.

    ``switches`` are the names that turn thinking on and off, ``effort`` is the name that takes a
    level, ``no_effort`` the value of it that means off.
    """

    switches: tuple[str, ...] = ()
    effort: str | None = None
    no_effort: str | None = None

    @classmethod
    def of(cls, variables: Iterable[str], source: str) -> ThinkControl:
        """The control of a template, from the variables that it looks up and its text."""
        names = set(variables)
        effort = next((name for name in EFFORTS if name in names), None)
        words = EFFORTS_THAT_MEAN_OFF if effort else ()
        return cls(
            switches=tuple(name for name in SWITCHES if name in names),
            effort=effort,
            no_effort=next((w for w in words if f'"{w}"' in source or f"'{w}'" in source), None),
        )

    @property
    def can_choose(self) -> bool:
        """Whether a level makes any difference."""
        return bool(self.switches or self.effort)

    def attempts(self, level: ThinkLevel) -> tuple[Arguments, ...]:
        """Template arguments for a level, the best first: some templates refuse ``medium``."""
        if level is ThinkLevel.AUTO:
            return ({},)
        if level is ThinkLevel.OFF:
            arguments = {name: SWITCHES[name][0] for name in self.switches}
            if self.effort and (self.no_effort or not self.switches):
                arguments[self.effort] = self.no_effort or ThinkLevel.LOW.value
            return (arguments,)
        switched = {name: SWITCHES[name][1] for name in self.switches}
        if self.effort is None:
            return (switched,)
        words = ("medium", "high") if level is ThinkLevel.MEDIUM else (level.value,)
        return tuple(switched | {self.effort: word} for word in words)

    def note(self, level: ThinkLevel) -> str | None:
        """One sentence when a level cannot be had exactly, else ``None``."""
        if level is ThinkLevel.AUTO:
            return None
        if not self.can_choose:
            return "this model's chat template has no control over thinking"
        if level is ThinkLevel.OFF:
            if self.switches or self.no_effort:
                return None
            return "this model cannot stop thinking; it is asked for little of it"
        if self.effort is None:
            return "this model knows thinking only as on or off; it is on"
        return None
