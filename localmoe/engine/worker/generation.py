"""One answer: prefill the part of the prompt that is new, then decode token by token.

Runs in the worker process, on a model and context that ``loader`` made.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from localmoe.engine.events import AnswerEvent, Finished, Likely, PrefillProgress, Request, Token
from localmoe.engine.worker import binding
from localmoe.engine.worker.binding import llama
from localmoe.engine.worker.kv import KvState
from localmoe.engine.worker.logprobs import Logprobs
from localmoe.engine.worker.prompt_cache import PromptCache
from localmoe.engine.worker.residency import Residency
from localmoe.engine.worker.sampling import Sampler
from localmoe.engine.worker.thinking import ThinkingEnd
from localmoe.engine.worker.vocabulary import Utf8, Vocabulary
from localmoe.errors import EngineError
from localmoe.planning.context import too_long
from localmoe.planning.prefill import batch_at

ABORTED = 2  # llama_decode's result when the abort callback said stop
PROMPT = -1  # in place of the number of an answer's token


class DecodeInterruptedError(Exception):
    """The interrupt flag was seen inside the engine."""


@dataclass
class Clock:
    """When the parts of one answer were done, in seconds of ``time.perf_counter``."""

    started: float = field(default_factory=time.perf_counter)
    prompt_read: float | None = None  # None: interrupted before its end
    first_token: float | None = None
    last_token: float | None = None

    def token_chosen(self) -> None:
        self.last_token = time.perf_counter()
        self.first_token = self.first_token or self.last_token

    def first_token_s(self) -> float:
        """Seconds until the first token, or until it was clear that none would come."""
        end = self.first_token or self.prompt_read or time.perf_counter()
        return end - self.started

    def tps_so_far(self, tokens: int) -> float | None:
        """Tokens per second while the first ``tokens`` were read; None for none."""
        return tokens / max(time.perf_counter() - self.started, 1e-9) if tokens > 0 else None

    def prefill_tps(self, tokens: int) -> float | None:
        """Tokens per second while ``tokens`` of the prompt were read; None: not to their end."""
        if self.prompt_read is None:
            return None
        return tokens / max(self.prompt_read - self.started, 1e-9)

    def decode_tps(self, tokens: int) -> float | None:
        """Tokens per second after the first of ``tokens``; None when there was no second."""
        if self.first_token is None or self.last_token is None:
            return None
        seconds = self.last_token - self.first_token
        return (tokens - 1) / seconds if tokens > 1 and seconds > 0 else None


class TokenStream:
    """Token ids → events with whole characters, also where one is split over several tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = Utf8()
        self._last = (0, 0)  # id and number of the token before

    def feed(
        self, token: int, number: int, logprob: float | None, top: tuple[Likely, ...]
    ) -> Iterator[Token]:
        """The event of a token; before a special one, a second of what was left unfinished."""
        entry = self._vocabulary.entry(token)
        if entry.special:
            yield from self.finish()
        text = self._utf8.feed(entry.data)
        yield Token(token, text, number, entry.special, entry.control, logprob, top)
        self._last = (token, number)

    def finish(self) -> Iterator[Token]:
        """The token before once more, with U+FFFD for a character that never ended."""
        if rest := self._utf8.flush():
            token, number = self._last
            yield Token(token, rest, number)


class Generator:
    """Generates on one context. ``flag`` is set to 1, from any thread, to interrupt.

    ``attention``: what a layer's attention takes, as for ``batch_at``.
    """

    def __init__(
        self,
        model: Any,
        ctx: Any,
        flag: ctypes.c_int32,
        experts: Residency,
        prompts: PromptCache | None = None,
        attention: int = 0,
    ) -> None:
        self.vocabulary = Vocabulary(model)
        self.context = int(llama.llama_n_ctx(ctx))
        self._trained = int(llama.llama_model_n_ctx_train(model))
        self._ctx = ctx
        self._flag = flag
        self._experts = experts
        self.batch = int(llama.llama_n_batch(ctx))
        self.ubatch = int(llama.llama_n_ubatch(ctx))
        self._threads = int(llama.llama_n_threads_batch(ctx))
        self._attention = attention
        self._batch = llama.llama_batch_init(self.batch, 0, 1)
        self.kv = KvState(ctx)
        self._prompts = prompts or PromptCache(0)
        callback, data, self._abort_is_cheap = binding.abort_callback(flag)
        self._abort = (callback, data)
        self._no_abort = (llama.ggml_abort_callback(), 0)
        llama.llama_set_abort_callback(ctx, *self._abort)

    def close(self) -> None:
        llama.llama_batch_free(self._batch)

    def generate(
        self, request: Request, pausing: Callable[[], bool] = lambda: False
    ) -> Iterator[AnswerEvent]:
        """Events of one answer, ``Finished`` last. An interrupt ends it with that reason.

        ``pausing``: asked before each batch of the prompt; True ends it there, as ``paused``.

        Raises ContextOverflowError when the prompt leaves no room for an answer.
        """
        clock, note = Clock(), self._experts.note
        prompt = self._prompt_tokens(request)
        limit = self._most_tokens(request, prompt)
        reused = self._prompts.turn_to(self.kv, prompt)
        stream, produced, reason = TokenStream(self.vocabulary), 0, "interrupted"
        logprobs = Logprobs(self._ctx, self.vocabulary, request.top_logprobs)
        sampler = Sampler(request.sampling, self.vocabulary, prompt, request.grammar)
        with contextlib.closing(sampler), contextlib.suppress(DecodeInterruptedError):
            for done in self._prefill(prompt, self._stable_tokens(request, prompt)):
                yield PrefillProgress(done, len(prompt), reused, clock.tps_so_far(done - reused))
                if pausing():
                    reason = "paused"
                    raise DecodeInterruptedError
            clock.prompt_read = time.perf_counter()
            with self._abort_callback_of_decoding():
                thinking = ThinkingEnd(self.vocabulary, request.thinking, limit)
                ignore_end = request.ignore_end
                for token in self._tokens(sampler, thinking, limit, ignore_end=ignore_end):
                    clock.token_chosen()
                    produced += 1
                    yield from stream.feed(token, produced, *logprobs.of(token))
            reason = "length" if produced == limit else "stop"
        yield from stream.finish()
        whole_prompt = clock.prompt_read is not None
        cache = self._experts.stats()
        yield Finished(
            reason=reason,
            prompt_tokens=len(prompt) if whole_prompt else len(self.kv.tokens),
            reused_tokens=reused,
            completion_tokens=produced,
            ttft_s=clock.first_token_s(),
            prefill_tps=clock.prefill_tps(len(prompt) - reused),
            decode_tps=clock.decode_tps(produced),
            cache=cache,
            load=self._experts.load(),
            note=self._experts.note if self._experts.note != note else "",
        )

    def _prompt_tokens(self, request: Request) -> list[int]:
        """Raises EngineError for an empty prompt, ContextOverflowError for one that is too long."""
        prompt = self.vocabulary.prompt(
            request.prompt, request.data, request.written, add_bos=request.add_bos
        )
        if not prompt:
            raise EngineError("the prompt is empty")
        if len(prompt) >= self.context:
            raise too_long(len(prompt), self.context, self._trained)
        return prompt

    def _most_tokens(self, request: Request, prompt: list[int]) -> int:
        """Tokens that the answer may have: what was asked for, and what the context holds."""
        room = self.context - len(prompt)
        return room if request.max_tokens is None else min(request.max_tokens, room)

    def _tokens(
        self, sampler: Sampler, thinking: ThinkingEnd, limit: int, *, ignore_end: bool
    ) -> Iterator[int]:
        """The answer's tokens, at most ``limit``, up to the one by which the model ends it.

        A token is decoded when the next one is asked for: the last of an answer never is.
        """
        for number in range(limit):
            token = thinking.write(sampler)
            if token is None:
                token = sampler.next(self._ctx)
            if self.vocabulary.ends_generation(token) and not ignore_end:
                return
            thinking.note(token)
            yield token
            if number + 1 < limit:
                self._decode([token], number)

    @contextlib.contextmanager
    def _abort_callback_of_decoding(self) -> Iterator[None]:
        """None, where each of its calls enters Python: an interrupt then waits for a token's end.

        Such calls, some 1,500 for a token, would slow it down; a prompt's batch takes seconds, so
        there they are worth it.
        """
        if self._abort_is_cheap:
            yield
            return
        llama.llama_set_abort_callback(self._ctx, *self._no_abort)
        try:
            yield
        finally:
            llama.llama_set_abort_callback(self._ctx, *self._abort)

    def _stable_tokens(self, request: Request, prompt: list[int]) -> int:
        """How many of the prompt's tokens will start the next turn's prompt too."""
        if not self.kv.needs_checkpoints or not 0 < request.stable_chars <= len(request.prompt):
            return 0
        chars = request.stable_chars
        data = [(start, min(end, chars)) for start, end in request.data if start < chars]
        written = [part for part in request.written if part[1] <= chars]
        text = request.prompt[:chars]
        stable = self.vocabulary.prompt(text, data, written, add_bos=request.add_bos)
        count = 0
        for a, b in zip(stable, prompt[:-1], strict=False):
            if a != b:
                break
            count += 1
        return count

    def _prefill(self, prompt: list[int], stable: int) -> Iterator[int]:
        """Decode what is missing of the prompt, in batches; yield the tokens done before each.

        A batch ends at ``stable`` so that a checkpoint can be taken there.
        """
        at = len(self.kv.tokens)
        while at < len(prompt):
            yield at
            end = self._batch_end(at, stable, len(prompt))
            following = self._batch_end(end, stable, len(prompt)) - end
            self.kv.checkpoint_if_due()
            self._decode(prompt[at:end], PROMPT, following)
            at = end
            if at == stable:
                self.kv.checkpoint()

    def _batch_end(self, at: int, stable: int, length: int) -> int:
        """Where the batch ends that begins at token ``at`` of a prompt."""
        size = batch_at(at, self.batch, self._attention, self._threads)
        end = min(at + size, length)
        return stable if at < stable < end else end

    def _decode(self, tokens: list[int], number: int, following: int = 0) -> None:
        """Run the model over the next tokens; logits are kept for the last one.

        ``number``: of the answer's token, or PROMPT; ``following``: tokens of the prompt's next
        batch.
        """
        if self._flag.value:
            raise DecodeInterruptedError
        batch, start = self._batch, len(self.kv.tokens)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = 0
        batch.logits[len(tokens) - 1] = 1
        self._experts.begin(start, tokens, number, following)
        status = llama.llama_decode(self._ctx, batch)
        failure = self._experts.failure()
        if status == 0 and self._experts.cut_short():
            status = ABORTED
        if status == 0 and failure is None:
            self._experts.done()
            self.kv.tokens.extend(tokens)
            return
        self.kv.rewind(start, dirty=True)
        if failure is not None:
            raise failure
        if status == ABORTED:
            raise DecodeInterruptedError
        raise EngineError(
            f"the engine could not decode {len(tokens)} tokens at position {start} "
            f"(llama_decode returned {status})"
        )
