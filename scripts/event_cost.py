"""What a token's number in its event costs, beside the time that nano takes for a token.

    python -m scripts.event_cost

An event is written by the worker and read by its client. Both ways are timed with the fields that
events have, and with the two that they need to be shown (text, count), alternating; processor time,
the least of many rounds. nano's speed is the best of some answers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import localmoe
from localmoe.engine import protocol
from localmoe.engine.events import Token

EVENTS, ROUNDS, ANSWERS = 2000, 60, 5


def whole() -> None:
    """As it is."""
    event = Token(1234, " experts", 17)
    line = protocol.encode(protocol.event_to_message(event))
    protocol.message_to_event(protocol.decode(line))


def bare() -> None:
    """Text and count alone, made and read in the same way."""
    line = protocol.encode({"event": "token", "text": " experts", "tokens": 17})
    message = protocol.decode(line)
    Token(0, message["text"], message["tokens"])


def seconds(act: Callable[[], None]) -> float:
    """Processor seconds for one call."""
    began = time.process_time()
    for _ in range(EVENTS):
        act()
    return (time.process_time() - began) / EVENTS


def main() -> None:
    rounds = [(seconds(whole), seconds(bare)) for _ in range(ROUNDS)]
    full, least = (min(column) for column in zip(*rounds, strict=True))
    more = statistics.median(a - b for a, b in rounds)
    with localmoe.load("nano", wishes=localmoe.Wishes(threads=1), remember=False) as model:
        answers = [model.chat("What is a mixture of experts?").result() for _ in range(ANSWERS)]
    speed = max(answer.timings.decode_tps or 0 for answer in answers)
    print(f"event {1e6 * full:.1f} µs, bare {1e6 * least:.1f} µs, difference {1e6 * more:.1f} µs")
    print(f"nano {speed:.0f} tok/s, {1e6 / speed:.0f} µs per token: {more * speed:.2%} of it")


if __name__ == "__main__":
    main()
