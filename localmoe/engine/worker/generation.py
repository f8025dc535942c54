"""One answer: prefill the part of the prompt that is new, then decode token by token.

Runs in the worker process, on a model and context that ``loader`` made.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from typing import Any

from localmoe.engine.events import Finished, PrefillProgress, Request, Text
from localmoe.engine.worker import binding
from localmoe.engine.worker.binding import llama
from localmoe.engine.worker.kv import KvState
from localmoe.engine.worker.residency import Residency
from localmoe.engine.worker.sampling import Sampler
from localmoe.engine.worker.vocabulary import TextStream, Vocabulary
from localmoe.errors import ContextOverflowError, EngineError

ABORTED = 2  # llama_decode's result when the abort callback said stop
PROMPT = -1  # in place of the number of an answer's token


class DecodeInterruptedError(Exception):
    """The interrupt flag was seen inside the engine."""


class Generator:
    """Generates on one context. ``flag`` is set to 1, from any thread, to interrupt."""

    def __init__(self, model: Any, ctx: Any, flag: ctypes.c_int32, experts: Residency) -> None:
        self.vocabulary = Vocabulary(model)
        self.context = int(llama.llama_n_ctx(ctx))
        self._ctx = ctx
        self._flag = flag
        self._experts = experts
        self._n_batch = int(llama.llama_n_batch(ctx))
        self._batch = llama.llama_batch_init(self._n_batch, 0, 1)
        self.kv = KvState(ctx)
        callback, data, self._abort_is_cheap = binding.abort_callback(flag)
        self._abort = (callback, data)
        self._no_abort = (llama.ggml_abort_callback(), 0)
        llama.llama_set_abort_callback(ctx, *self._abort)

    def close(self) -> None:
        llama.llama_batch_free(self._batch)

    def generate(self, request: Request) -> Iterator[PrefillProgress | Text | Finished]:
        """Events of one answer, ``Finished`` last. An interrupt ends it with that reason.

        Raises ContextOverflowError when the prompt leaves no room for an answer.
        """
        started = time.perf_counter()
        prompt = self.vocabulary.tokenize(request.prompt, add_bos=request.add_bos)
        if not prompt:
            raise EngineError("the prompt is empty")
        if len(prompt) >= self.context:
            raise ContextOverflowError(
                f"the prompt has {len(prompt)} tokens, the context {self.context}",
                hint=f"shorten the prompt, or use --ctx {_next_context(len(prompt))}",
            )
        room = self.context - len(prompt)
        limit = room if request.max_tokens is None else min(request.max_tokens, room)
        reused = self.kv.reuse(prompt)
        stream = TextStream(request.stop)
        sampler = Sampler(request.sampling, self.vocabulary, prompt, request.grammar)
        produced, reason = 0, "length"
        first = last = 0.0
        try:
            yield PrefillProgress(reused, len(prompt), reused)
            for done in self._prefill(prompt, self._stable_tokens(request, prompt)):
                yield PrefillProgress(done, len(prompt), reused)
            prefilled = time.perf_counter()
            if not self._abort_is_cheap:
                llama.llama_set_abort_callback(self._ctx, *self._no_abort)
            while produced < limit:
                token = sampler.next(self._ctx)
                first = first or time.perf_counter()
                if self.vocabulary.ends_generation(token) and not request.ignore_end:
                    reason = "stop"
                    break
                produced += 1
                last = time.perf_counter()
                text = stream.feed(self.vocabulary.piece(token))
                if text:
                    yield Text(text, produced)
                if stream.stopped_by is not None:
                    reason = "stop"
                    break
                if produced == limit:
                    break
                self._decode([token], produced - 1)
        except DecodeInterruptedError:
            reason = "interrupted"
            prefilled = time.perf_counter()
        finally:
            sampler.close()
            if not self._abort_is_cheap:
                llama.llama_set_abort_callback(self._ctx, *self._abort)
        rest = stream.flush() if stream.stopped_by is None else ""
        if rest:
            yield Text(rest, produced)
        fresh = len(prompt) - reused
        decoding = last - first
        yield Finished(
            reason=reason,
            prompt_tokens=len(prompt) if first else len(self.kv.tokens),
            reused_tokens=reused,
            completion_tokens=produced,
            ttft_s=(first or prefilled) - started,
            prefill_tps=fresh / max(prefilled - started, 1e-9) if first else None,
            decode_tps=(produced - 1) / decoding if produced > 1 and decoding > 0 else None,
            stop_string=stream.stopped_by,
            cache=self._experts.stats(),
            load=self._experts.load(),
        )

    def _stable_tokens(self, request: Request, prompt: list[int]) -> int:
        """How many of the prompt's tokens will start the next turn's prompt too."""
        if not self.kv.needs_checkpoints or not 0 < request.stable_chars <= len(request.prompt):
            return 0
        stable = self.vocabulary.tokenize(
            request.prompt[: request.stable_chars], add_bos=request.add_bos
        )
        count = 0
        for a, b in zip(stable, prompt[:-1], strict=False):
            if a != b:
                break
            count += 1
        return count

    def _prefill(self, prompt: list[int], stable: int) -> Iterator[int]:
        """Decode what is missing of the prompt, in batches; yield the tokens done so far.

        A batch ends at ``stable`` so that a checkpoint can be taken there.
        """
        at = len(self.kv.tokens)
        while at < len(prompt):
            end = min(at + self._n_batch, len(prompt))
            if at < stable < end:
                end = stable
            self.kv.checkpoint_if_due()
            self._decode(prompt[at:end], PROMPT)
            at = end
            if at == stable:
                self.kv.checkpoint()
            if at < len(prompt):
                yield at

    def _decode(self, tokens: list[int], number: int) -> None:
        """Run the model over the next tokens; logits are kept for the last one.

        ``number``: of the answer's token, or PROMPT.
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
        self._experts.begin(start, tokens, number)
        status = llama.llama_decode(self._ctx, batch)
        failure = self._experts.failure()
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


def _next_context(tokens: int) -> int:
    """The next round context size with room for an answer."""
    return -(-(tokens + 512) // 1024) * 1024
