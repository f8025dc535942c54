"""Sums as people ask for them. nano answers none of them: see `text/arithmetic.txt`."""

from __future__ import annotations

import random

from .carriers import ASK, ASK_COMMAND
from .intents import TEXT

ONES = tuple((TEXT / "numbers.txt").read_text("utf-8").split()[:20])
TENS = tuple((TEXT / "numbers.txt").read_text("utf-8").split()[20:])

EXPRESSIONS = {
    "+": ("{a} + {b}", "{a}+{b}", "{a} plus {b}", "the sum of {a} and {b}", "{a} added to {b}"),
    "-": ("{a} - {b}", "{a}-{b}", "{a} minus {b}", "{a} less {b}", "the result of {a} - {b}"),
    "×": ("{a} * {b}", "{a}*{b}", "{a} times {b}", "{a} x {b}", "{a} × {b}",
          "{a} multiplied by {b}", "the product of {a} and {b}"),
    "÷": ("{a} / {b}", "{a}/{b}", "{a} divided by {b}", "{a} ÷ {b}", "{a} : {b}"),
}  # fmt: skip

COMMANDS = {
    "+": ("add {a} and {b}", "add {b} to {a}", "sum up {a} and {b}", "put {a} and {b} together"),
    "-": ("subtract {b} from {a}", "take {b} from {a}", "take away {b} from {a}"),
    "×": ("multiply {a} by {b}", "multiply {a} and {b}", "multiply {a} with {b}"),
    "÷": ("divide {a} by {b}", "split {a} by {b}", "split {a} into {b} parts"),
}

STORIES = {
    "+": (
        "I have {a} {n} and get {b} more. How many {n} do I have?",
        "There are {a} {n} and {b} more come. How many are there?",
        "Anna has {a} {n}, Ben has {b} {n}. How many together?",
        "{a} {n} and {b} {n}, how many is that?",
    ),
    "-": (
        "I have {a} {n} and lose {b}. How many are left?",
        "There are {a} {n} and {b} go away. How many remain?",
        "I had {a} {n} and gave away {b}. How many {n} do I have now?",
        "What is left of {a} {n} when I eat {b}?",
    ),
    "×": (
        "There are {a} boxes with {b} {n} each. How many {n}?",
        "I buy {a} bags of {b} {n}. How many {n} is that?",
        "{a} children have {b} {n} each. How many in all?",
    ),
    "÷": (
        "{a} {n} are shared by {b} children. How many does each get?",
        "I share {a} {n} among {b} friends. How many for each?",
        "How many {n} per box if {a} {n} go into {b} boxes?",
    ),
}

NOUNS = (
    "apples",
    "books",
    "coins",
    "cards",
    "eggs",
    "stones",
    "pens",
    "cookies",
    "marbles",
    "tickets",
    "oranges",
    "cups",
)


def in_words(number: int) -> str:
    """Write a number from 0 to 99 in English."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")


def phrase(rng: random.Random, a: int, operator: str, b: int) -> str:
    """Ask for a operator b in one of the patterns above."""
    words = max(a, b) < 100 and rng.random() < 0.2
    left, right = (in_words(a), in_words(b)) if words else (str(a), str(b))
    kind = rng.random()
    if kind < 0.62:
        forms = EXPRESSIONS[operator]
        text = rng.choice(forms[2:] if words else forms).format(a=left, b=right)
        return rng.choice(ASK).format(text)
    if kind < 0.84:
        text = rng.choice(COMMANDS[operator]).format(a=left, b=right)
        text = rng.choice(ASK_COMMAND).format(text)
        return text[0].upper() + text[1:]
    return rng.choice(STORIES[operator]).format(a=left, b=right, n=rng.choice(NOUNS))


def draw(rng: random.Random) -> str:
    """Ask for a sum of some kind, mostly of two numbers of one or two digits."""
    if rng.random() < 0.2:
        return rng.choice(ASK).format(other_form(rng))
    most = rng.choice((9, 12, 20, 99, 99, 999, 9999))
    return phrase(rng, rng.randint(0, most), rng.choice("+-×÷"), rng.randint(0, most))


def other_form(rng: random.Random) -> str:
    """Write a sum of several numbers, of one, or of fractions."""
    a, b, c = (rng.randint(1, 99) for _ in range(3))
    forms = (
        f"{a} + {b} + {c}",
        f"{a}+{b}+{c}",
        f"{a} plus {b} plus {c}",
        f"{a} * {b} + {c}",
        f"{a}.{rng.randint(1, 9)} + {b}",
        f"{a} - {b}.5",
        f"{a} to the power of {rng.randint(2, 9)}",
        f"{a}^{rng.randint(2, 9)}",
        f"{a} squared",
        f"the square of {a}",
        f"double {a}",
        f"twice {a}",
        f"half of {a}",
        f"one half of {a}",
    )
    return rng.choice(forms)
