"""Usage and timings of an answer, as each dialect counts them. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from localmoe.chat.events import TurnDone
from localmoe.engine.events import Token
from localmoe.server.asks import Accepted
from localmoe.server.problems import Document


def openai_usage(dones: Sequence[TurnDone]) -> Document:
    """``usage`` of chat completions and completions: the prompt counts once."""
    first, usages = dones[0].usage, [done.usage for done in dones]
    written = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": first.prompt_tokens + written,
        "prompt_tokens_details": {"cached_tokens": first.reused_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": sum(usage.reasoning_tokens for usage in usages)
        },
    }


def forecast(accepted: Accepted) -> Document:
    """``forecast``: how long the first word will take, where that is known."""
    if accepted.first_token_s is None:
        return {}
    return {"forecast": {"first_token_s": round(accepted.first_token_s, 1)}}


def timings(done: TurnDone) -> Document:
    """``timings`` with llama-server's names, and what only localmoe has: the expert cache."""
    usage, times = done.usage, done.timings
    read = usage.prompt_tokens - usage.reused_tokens
    document: dict[str, object] = {
        "cache_n": usage.reused_tokens,
        "prompt_n": read,
        "prompt_ms": round(1000 * read / times.prefill_tps, 3) if times.prefill_tps else 0.0,
        "prompt_per_second": times.prefill_tps,
        "predicted_n": usage.completion_tokens,
        "predicted_ms": (
            round(1000 * (usage.completion_tokens - 1) / times.decode_tps, 3)
            if times.decode_tps
            else 0.0
        ),
        "predicted_per_second": times.decode_tps,
        "ttft_ms": round(1000 * times.ttft_s, 3),
    }
    cache = done.finished.cache if done.finished is not None else None
    if cache is not None:
        document["experts"] = {
            "regime": cache.regime,
            "hits": cache.hits,
            "misses": cache.misses,
            "hit_rate": cache.hit_rate,
            "bytes_read": cache.bytes_read,
        }
    return document


def chat_logprobs(tokens: Sequence[Token]) -> Document | None:
    """``logprobs`` of a chat completion's choice; None without figures."""
    if not tokens:
        return None
    content = [
        {
            **_likely(token.text, token.logprob),
            "top_logprobs": [_likely(likely.text, likely.logprob) for likely in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[Token], offset: int) -> Document | None:
    """``logprobs`` of a completion's choice, whose text begins ``offset`` characters in."""
    if not tokens:
        return None
    lengths = itertools.accumulate((len(token.text) for token in tokens), initial=offset)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{likely.text: likely.logprob for likely in token.top} for token in tokens],
        "text_offset": list(lengths)[:-1],
    }


def _likely(text: str, logprob: float | None) -> Document:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
