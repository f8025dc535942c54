"""The data nano learns from, and that the held-out questions are none of it."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

from scripts.nano import carriers, intents, judge
from scripts.nano.compose import Composer, Topics, normal, pattern

HELD_OUT = Path(__file__).parent / "held_out.txt"
KNOWN = intents.load()
ITEMS = judge.read(HELD_OUT)


def test_the_list_is_long_and_broad() -> None:
    """At least 150 distinct questions, and at least 20 in each of five domains."""
    domains = Counter(item.domain for item in ITEMS)
    assert len({normal(item.question) for item in ITEMS}) == len(ITEMS) >= 150
    assert set(domains) == {"moe", "localmoe", "arithmetic", "smalltalk", "offtopic"}
    assert min(domains.values()) >= 20


def test_every_expected_intent_exists() -> None:
    """A misspelt intent could never be answered."""
    for item in ITEMS:
        for name in item.expected:
            assert name in KNOWN, item


def test_no_held_out_question_is_a_training_question() -> None:
    """Neither among all unroughened ones nor among the first 60,000 of the training stream."""
    held_out = {normal(item.question) for item in ITEMS}
    assert held_out.isdisjoint(map(normal, judge.clean_questions(KNOWN)))
    assert held_out.isdisjoint(map(normal, judge.stream_questions(KNOWN, seed=7, count=60_000)))


def test_held_out_sentences_have_patterns_of_their_own() -> None:
    """With the topics masked, no held-out sentence equals a training sentence."""
    topics = Topics.of(KNOWN)
    trained = {pattern(question, topics) for question in judge.clean_questions(KNOWN)}
    composer = Composer(KNOWN, random.Random(7))
    trained |= {pattern(composer.turn("arithmetic").question, topics) for _ in range(20_000)}
    assert trained.isdisjoint(pattern(item.question, topics) for item in ITEMS)


def test_no_held_out_question_fits_a_training_pattern() -> None:
    """Stricter than masking: whatever words fill the gap of a pattern, none fits."""
    patterns = (
        *carriers.THING,
        *carriers.DEED,
        *carriers.DOING,
        *carriers.ASK,
        *carriers.ASK_COMMAND,
    )
    for written in patterns:
        words = normal(written.replace("{}", "GAP"))
        if words == "gap":
            continue  # the topic alone fits anything
        fits = re.compile(".+".join(map(re.escape, words.split("gap"))))
        for item in ITEMS:
            assert not fits.fullmatch(normal(item.question)), (written, item.question)


def test_the_stream_is_seeded() -> None:
    """The same seed gives the same training questions; another seed others."""
    first = list(judge.stream_questions(KNOWN, seed=3, count=200))
    assert first == list(judge.stream_questions(KNOWN, seed=3, count=200))
    assert first != list(judge.stream_questions(KNOWN, seed=4, count=200))


def test_answers_are_short_and_state_what_they_should() -> None:
    """Every answer has one to three sentences; the off-topic line names model and command."""
    for intent in KNOWN.values():
        assert len(re.findall(r"[.!?](?=\s+[A-Z`])", intent.answer)) <= 2, intent.name
        assert len(intent.answer) < 260, intent.name
    line = KNOWN["offtopic"].answer
    assert "small demonstration model" in line
    assert "`localmoe pull qwen3-30b-a3b`" in line


def test_it_claims_no_sum() -> None:
    """The answer to a sum says that nano does none, and no other answer says otherwise."""
    composer = Composer(KNOWN, random.Random(1))
    answers = {composer.turn("arithmetic").answer for _ in range(100)}
    assert len(answers) == 1 and answers.pop().startswith("I do not calculate")
    claims = re.compile(r"\d [-+×÷] \d|small sums|subtract|multiply")
    assert not any(claims.search(intent.answer) for intent in KNOWN.values())


def test_the_rule_for_words() -> None:
    """The whole answer of an expected intent counts; half of it, or another's, does not."""
    item = judge.HeldOut("moe", ("router",), "")
    answer = KNOWN["router"].answer
    assert judge.is_right(item, answer + "\n", KNOWN)
    assert not judge.is_right(item, answer[:-10], KNOWN)
    assert not judge.is_right(item, KNOWN["expert"].answer, KNOWN)
