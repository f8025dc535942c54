"""What a token's event costs, beside the time that nano takes for a token.

    python -m scripts.event_cost

The worker writes an event, its client reads it, and the chat tells answer from thinking. Each is
timed over many tokens, in processor time, the median and the range of some rounds. Writing and
reading are timed with the fields that events have and, by turns, with the two that they need to be
shown (text, count): the difference is what the token's number costs. nano's speed is the best of
some answers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import localmoe
from localmoe.chat import answering
from localmoe.chat.session import Message
from localmoe.engine import protocol
from localmoe.engine.events import Finished, Request, Token

EVENTS, ROUNDS, ANSWERS = 2000, 40, 5
FINISHED = Finished("stop", 1, 0, EVENTS, 0.1, None, None)
TEXT = " experts"


def write() -> bytes:
    return protocol.encode({"id": 3, **protocol.event_to_message(Token(1234, TEXT, 17))})


LINE = write()
BARE_LINE = protocol.encode({"id": 3, "event": "token", "text": TEXT, "tokens": 17})


def read() -> None:
    protocol.message_to_event(protocol.decode(LINE))


def write_bare() -> None:
    protocol.encode({"id": 3, "event": "token", "text": TEXT, "tokens": 17})


def read_bare() -> None:
    message = protocol.decode(BARE_LINE)
    Token(0, message["text"], message["tokens"])


def per_token(act: Callable[[], object], tokens: int = 1) -> float:
    """Processor microseconds for each of the ``tokens`` of one call."""
    began = time.process_time()
    for _ in range(EVENTS // tokens):
        act()
    return 1e6 * (time.process_time() - began) / EVENTS


class Replay:
    """A loaded model's engine, but for the answer: the same word, again and again."""

    def __init__(self, engine: answering.TextEngine) -> None:
        self.count_tokens = engine.count_tokens
        self.count_prompt = engine.count_prompt
        self.split_specials = engine.split_specials
        self.cancel = engine.cancel

    def generate(self, request: Request) -> Iterator[Token | Finished]:
        yield from (Token(1234, TEXT, number) for number in range(EVENTS))
        yield FINISHED


def shown(figures: list[float]) -> str:
    return f"{statistics.median(figures):5.2f} µs ({min(figures):.2f}–{max(figures):.2f})"


def main() -> None:
    written, read_, number, told = [], [], [], []
    with localmoe.load("nano", wishes=localmoe.Wishes(threads=1), remember=False) as model:
        answers = [model.chat("What is a mixture of experts?").result() for _ in range(ANSWERS)]
        engine, settings = Replay(model.engine), model.settings()

        def answer() -> None:
            for _ in answering.events(engine, model.template, [Message("user", "hi")], settings):
                pass

        for _ in range(ROUNDS):
            written.append(per_token(write))
            read_.append(per_token(read))
            number.append(written[-1] + read_[-1] - per_token(write_bare) - per_token(read_bare))
            told.append(per_token(answer, EVENTS))
    nano = 1e6 / max(answer.timings.decode_tps or 0 for answer in answers)
    print(f"written by the worker   {shown(written)}")
    print(f"read by its client      {shown(read_)}")
    print(f"told apart by the chat  {shown(told)}, making the event counted")
    print(f"of the first two, the token's number {shown(number)}")
    print(f"nano {nano:.0f} µs a token: the number is {statistics.median(number) / nano:.2%} of it")


if __name__ == "__main__":
    main()
