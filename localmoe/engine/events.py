"""What the engine says while it works: one frozen record per event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from localmoe.planning.memory import MemoryReport


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. ``temperature`` 0 is greedy and repeatable."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0  # 1: none
    repeat_last_n: int = 64  # tokens that the three penalties look back on
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None  # None: a fresh one each time
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit)


Span = tuple[int, int]
"""(start, end) of a part of a text, in characters."""


Written = tuple[int, int, tuple[int, ...]]
"""(start, end, tokens) of a part of a prompt that the model wrote: in characters, and as what."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to generate.

    ``prompt`` is text after the chat template. Its first ``stable_chars`` characters will be part
    of the next turn's prompt too; models that cannot roll back keep a checkpoint there. ``data``
    are the parts that came with the messages: text, whatever special tokens they spell. ``written``
    are those that the model wrote earlier: read as the tokens that it sampled then, which need not
    be those that the text would have. ``thinking`` are the texts that begin and end thinking, the
    first "" where the prompt has begun it: it has at most half of the answer's tokens then, and
    is ended by its mark.
    """

    prompt: str
    stable_chars: int = 0
    max_tokens: int | None = None  # None: until the model stops or the context is full
    sampling: Sampling = Sampling()
    grammar: str | None = None  # GBNF that the answer must follow
    data: tuple[Span, ...] = ()
    written: tuple[Written, ...] = ()
    add_bos: bool = True  # False: no more tokens than the prompt's, for measurements
    ignore_end: bool = False  # go on after the model ended: for measurements
    top_logprobs: int | None = None  # how many of the likeliest tokens to tell; None: no figures
    thinking: tuple[str, str] | None = None  # None: it may go on to the end


@dataclass(frozen=True, slots=True)
class LoadProgress:
    fraction: float  # 0…1


@dataclass(frozen=True, slots=True)
class Loaded:
    context: int  # tokens, as the engine rounded it
    batch: int  # tokens per call that its context was made for
    ubatch: int  # tokens that it computes at once
    memory: MemoryReport  # of the real load
    load_s: float
    bos: str  # text of the beginning-of-sequence token, "" if there is none
    eos: str
    cache: str = "off"  # the regime that serves the experts: "off" | "page" | "private"
    note: str = ""  # why it is not loaded, or served, as it was planned
    vocabulary: int = 0  # tokens that it knows; 0: not told


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    done: int  # tokens of the prompt that are in the KV cache, reused ones counted
    total: int
    reused: int
    tps: float | None = None  # tokens per second so far; None before the first batch


@dataclass(frozen=True, slots=True)
class Likely:
    """One of the likeliest tokens in a place of the answer."""

    token: int
    text: str  # U+FFFD for bytes that are no character by themselves
    logprob: float


class Token(NamedTuple):
    """One token of the answer. A tuple, which is made in a third of a dataclass's time.

    ``special``: the vocabulary sets it apart from text; its spelling is then all of ``text``.
    ``control``: it steers the model and is not meant to be read. Text that spells such a token is
    neither.
    """

    token: int  # its number in the vocabulary
    text: str  # the characters that it completes; none for the first bytes of a longer one
    tokens: int  # completion tokens so far
    special: bool = False
    control: bool = False
    logprob: float | None = None  # natural, before sampling; None where nobody asked
    top: tuple[Likely, ...] = ()  # the likeliest first


@dataclass(frozen=True, slots=True)
class Part:
    """Part of a text that was cut at the special tokens which it spells."""

    text: str
    token: int | None = None  # its number; None: text between such tokens
    control: bool = False


@dataclass(frozen=True, slots=True)
class LayerStats:
    layer: int
    hits: int
    misses: int


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Experts in host memory during one answer; lookups are those of decoded tokens."""

    regime: str  # "page" | "private"
    hits: int  # routed experts that were in memory, or on their way there
    misses: int  # those that were read from the disk first
    bytes_read: int  # prefill counted
    stall_s: float  # computing waited for reading
    resident_bytes: int  # of experts, now
    budget: int  # bytes that they may take
    preferred: int = 0  # choices that a resident expert took over (lossy, --prefer-cached)
    layers: tuple[LayerStats, ...] = ()

    @property
    def hit_rate(self) -> float | None:
        """None before the first decoded token."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else None


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """How one layer's experts were used since the model was loaded, prompts counted."""

    layer: int
    experts: int
    used: int  # experts that were used at all
    entropy: float  # of the load ÷ log(experts): 1 even, 0 one expert
    busiest: float  # largest load ÷ mean


@dataclass(frozen=True, slots=True)
class Finished:
    reason: str  # "stop" | "length" | "interrupted" | "paused"
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    ttft_s: float
    prefill_tps: float | None  # None when nothing was left to prefill
    decode_tps: float | None  # None below two tokens
    cache: CacheStats | None = None  # None when all experts are resident
    load: tuple[LayerLoad, ...] = ()  # of layers in host memory, where they are counted
    note: str = ""  # what the user should know of the engine, and came out during this answer


AnswerEvent = PrefillProgress | Token | Finished
Event = LoadProgress | Loaded | AnswerEvent
