"""Small sums: operands to 20 for + and -, the tables to 12, exact division, and where it ends."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .carriers import ASK, ASK_COMMAND
from .intents import TEXT

ONES = tuple((TEXT / "numbers.txt").read_text("utf-8").split()[:20])
TENS = tuple((TEXT / "numbers.txt").read_text("utf-8").split()[20:])

LARGEST = 20  # of the numbers that are added and subtracted
TABLES = 12  # of those that are multiplied, and of a divisor and its quotient

TOO_LARGE = (
    "That is too much for me: I add and subtract two numbers up to 20 and know the tables up to "
    "12. A large model can do more: `localmoe pull qwen3-30b-a3b`."
)
REMAINDER = "I divide only where nothing is left over, and this does not divide evenly."

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


@dataclass(frozen=True, slots=True)
class Sum:
    """One exercise and its answer."""

    question: str
    answer: str


def in_words(number: int) -> str:
    """Write a number from 0 to 99 in English."""
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[ones]}" if ones else "")


def result(a: int, operator: str, b: int) -> int:
    """Return a operator b; division is exact. Raises ValueError when it is not."""
    if operator == "÷":
        quotient, rest = divmod(a, b)
        if rest:
            raise ValueError(f"{a} is no multiple of {b}")
        return quotient
    return {"+": a + b, "-": a - b, "×": a * b}[operator]


def pairs(operator: str) -> list[tuple[int, int]]:
    """Return every pair of numbers that nano claims to know for an operator."""
    if operator == "×":
        return [(a, b) for a in range(TABLES + 1) for b in range(TABLES + 1)]
    if operator == "÷":
        return [(a * b, b) for a in range(TABLES + 1) for b in range(1, TABLES + 1)]
    return [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]


PAIRS = {operator: pairs(operator) for operator in EXPRESSIONS}


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


def outside(rng: random.Random, least: int) -> int:
    """Draw a number from `least` on, mostly one of two digits."""
    return rng.randint(least, 99) if rng.random() < 0.65 else rng.randint(100, 9999)


def beyond(rng: random.Random) -> Sum:
    """Draw an exercise that nano must decline."""
    kind = rng.random()
    if kind < 0.22:
        b = rng.randint(2, TABLES)
        a = b * rng.randint(1, TABLES) + rng.randint(1, b - 1)
        return Sum(phrase(rng, a, "÷", b), REMAINDER)
    if kind < 0.36:
        return Sum(rng.choice(ASK).format(odd_form(rng)), TOO_LARGE)
    operator = rng.choice("++--××÷")
    if operator == "÷":
        b = rng.randint(2, 99)
        a = b * rng.randint(1, 99)
        if a <= b * TABLES and b <= TABLES:
            a += b * TABLES
        return Sum(phrase(rng, a, operator, b), TOO_LARGE)
    most = TABLES if operator == "×" else LARGEST
    a = outside(rng, most + 1)
    b = outside(rng, most + 1) if rng.random() < 0.5 else rng.randint(1, most)
    if rng.random() < 0.5 and (operator != "-" or rng.random() < 0.3):
        a, b = b, a
    return Sum(phrase(rng, a, operator, b), TOO_LARGE)


def odd_form(rng: random.Random) -> str:
    """Write a sum of a form that nano does not know, or of one number out of its range."""
    a, b, c = (rng.randint(1, 20) for _ in range(3))
    forms = (
        f"{a} + {b} + {c}",
        f"{a}+{b}+{c}",
        f"{a} plus {b} plus {c}",
        f"{a} - {b} + {c}",
        f"{a} * {b} + {c}",
        f"{a}.{rng.randint(1, 9)} + {b}",
        f"{a} - {b}.{rng.randint(1, 9)}",
        f"{a}.5 times {b}",
        f"{a} to the power of {rng.randint(3, 9)}",
        f"{a}^{rng.randint(2, 9)}",
        f"{a} cubed",
        f"{rng.randint(13, 99)} squared",
        f"double {rng.randint(13, 99)}",
        f"twice {rng.randint(13, 99)}",
        f"half of {2 * rng.randint(13, 99)}",
    )
    return rng.choice(forms)


def one_number(rng: random.Random) -> Sum:
    """Draw a sum that is asked for with one number: a square, a double, a half."""
    a = rng.randint(1, TABLES)
    kind = rng.random()
    if kind < 0.5:
        text = rng.choice(("{} squared", "the square of {}", "{} to the power of 2")).format(a)
        return Sum(rng.choice(ASK).format(text), f"{a} × {a} = {a * a}.")
    if kind < 0.75:
        text = rng.choice(("double {}", "twice {}", "the double of {}")).format(a)
        return Sum(rng.choice(ASK).format(text), f"2 × {a} = {2 * a}.")
    text = rng.choice(("half of {}", "the half of {}", "one half of {}")).format(2 * a)
    return Sum(rng.choice(ASK).format(text), f"{2 * a} ÷ 2 = {a}.")


def draw(rng: random.Random) -> Sum:
    """Draw one exercise: mostly two operands, sometimes a special form, sometimes out of range."""
    kind = rng.random()
    if kind < 0.24:
        return beyond(rng)
    if kind < 0.30:
        return one_number(rng)
    operator = rng.choice("+++---××÷")
    a, b = rng.choice(PAIRS[operator])
    return Sum(phrase(rng, a, operator, b), f"{a} {operator} {b} = {result(a, operator, b)}.")
