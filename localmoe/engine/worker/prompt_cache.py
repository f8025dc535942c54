"""What was read in several conversations, kept in RAM: a short one does not cost a long one.

The context holds one sequence of tokens. A prompt that does not go on from it (a title, a
sub-agent's task, another conversation) would overwrite it; so its whole state is put away first,
and brought back when a prompt goes on from there. A state is llama.cpp's own bytes, from this
process to this process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from localmoe.engine.worker.kv import KvState, State
from localmoe.facts.hardware import free_memory

MIN_TOKENS = 64  # fewer are read again sooner than a state is moved
CAREFUL = 0.97  # of a state's bytes, where its first tokens are to fit
WORTH = 16  # a state is put away when more than one in so many of its tokens would be lost


@dataclass
class PromptCache:
    """States of ``capacity`` bytes together at most; those used longest ago go first.

    ``free``: the bytes of memory that can still be taken.
    """

    capacity: int
    free: Callable[[], int] = lambda: free_memory()[0]

    def __post_init__(self) -> None:
        self._states: list[State] = []  # the one used last is at the end

    @property
    def unfilled(self) -> int:
        """Bytes that it may still take."""
        return self.capacity - sum(state.nbytes for state in self._states)

    def turn_to(self, kv: KvState, prompt: list[int]) -> int:
        """Let ``kv`` hold as much of ``prompt`` as is known anywhere; return those tokens.

        As ``KvState.reuse``: what is dropped of the present state is put away, if it is worth it.
        """
        if not self.capacity:
            return kv.reuse(prompt)
        wanted = prompt[:-1]
        here = kv.reach(kv.now(), wanted)
        best = max(self._states, key=lambda state: kv.reach(state, wanted), default=None)
        if best is None or kv.reach(best, wanted) < here + MIN_TOKENS:
            self._put_away(kv, left=here)
            return kv.reuse(prompt)
        self._put_away(kv, left=kv.reach(best, kv.tokens), instead_of=best)
        self._states.remove(best)
        kv.take(best)
        return kv.reuse(prompt)

    def _put_away(self, kv: KvState, left: int, instead_of: State | None = None) -> None:
        """Keep the present state, of which ``left`` tokens will still be at hand.

        ``instead_of``: a state that is needed at once, and counts until then.
        """
        tokens = len(kv.tokens)
        if tokens - left < max(MIN_TOKENS, tokens // WORTH):
            return
        room = self.capacity - (instead_of.nbytes if instead_of else 0)
        if kv.nbytes > room:  # its beginning is better than nothing
            fits = int(tokens * room * CAREFUL / kv.nbytes)
            if kv.rewind(max(fits, left)) - left < MIN_TOKENS or kv.nbytes > room:
                return
        size, now = kv.nbytes, kv.now()
        for state in list(self._states):  # what this one holds as well
            covered = kv.reach(now, state.tokens) > len(state.tokens) - MIN_TOKENS
            if covered and state is not instead_of:
                self._states.remove(state)
        for state in list(self._states):
            if size <= self.unfilled:
                break
            if state is not instead_of:
                self._states.remove(state)
        copied = kv.copy() if size <= self.free() else None
        if copied is not None:
            self._states.append(copied)
