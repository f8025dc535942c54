"""Untrusted text for a terminal, and readable numbers."""

from __future__ import annotations

import itertools
import socket
import unicodedata

import pyte
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from localmoe.text import (
    FORBIDDEN,
    Sanitizer,
    clean,
    clean_line,
    counted,
    decoded,
    did_you_mean,
    format_bytes,
    format_count,
    format_duration,
    format_line,
    format_size,
    reason_of,
    replaced_note,
    token_count,
)

# Pieces that make sequences likely when they are put together in any order.
PIECES = st.one_of(
    st.sampled_from("\x1b\x07\x9b\x9d\x9c\x90[]P\\m;? \n\t\r\b\u202e\u200bAé"),
    st.sampled_from(["\x1b[", "\x1b]", "\x1bP", "\x1b\\", "]52;c;", "31"]),
    st.text(max_size=5),
)
TEXTS = st.lists(PIECES, max_size=30).map("".join)


def in_chunks(text: str, cuts: list[int]) -> str:
    """What a sanitizer returns for ``text`` cut at these places."""
    sanitizer = Sanitizer()
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    parts = [sanitizer.feed(text[a:b]) for a, b in itertools.pairwise(places)]
    return "".join(parts) + sanitizer.flush()


@given(text=TEXTS, cuts=st.lists(st.integers(0, 200), max_size=10))
@example(text="\x1b]0;title\x1b\\x", cuts=[3, 11])
@example(text="\x9d" + "a\x9b" * 3000 + "\x07", cuts=[4096, 4097, 5000])
@settings(max_examples=500, deadline=None)
def test_chunks_make_no_difference(text: str, cuts: list[int]) -> None:
    """However a stream is cut, also one character at a time, the result is that of the whole."""
    whole = clean(text)
    assert in_chunks(text, cuts) == whole
    assert in_chunks(text, list(range(len(text)))) == whole


@given(text=TEXTS)
@settings(max_examples=500, deadline=None)
def test_nothing_forbidden_remains(text: str) -> None:
    """No control character but newline and tab, no mark of direction; cleaning again is no change.

    Judged by Unicode's own categories, not by the expression that does the cleaning.
    """
    cleaned = clean(text)
    for character in cleaned:
        assert character in "\n\t" or unicodedata.category(character) not in (
            "Cc",
            "Cs",
            "Zl",
            "Zp",
        )
        assert unicodedata.bidirectional(character) not in (
            "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
        )  # fmt: skip
    assert clean(cleaned) == cleaned
    assert not FORBIDDEN.search(cleaned)


@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_a_terminal_prints_cleaned_text_as_it_is(text: str) -> None:
    """On an emulated terminal each cleaned character moves the cursor on, no more."""
    cleaned = "".join(c for c in clean(text) if c.isascii() and c not in "\n\t")
    screen = pyte.Screen(500, 2)
    pyte.Stream(screen).feed(cleaned)
    assert screen.display[0].rstrip() == cleaned[:500].rstrip()
    assert screen.title == ""


@given(text=st.text(alphabet=st.characters(categories=("L", "N", "P", "S", "Zs"))))
def test_ordinary_text_is_untouched(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]52;c;aGVsbG8=\x07copied", "copied"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jgone", "gone"),
        ("\x9d0;title\x9cx", "x"),
        ("\x1bP1$r\x1b\\x", "x"),
        ("\x1b(0x\x1bcreset", "xreset"),
        ("one\r\ntwo\rthree\n", "one\ntwothree\n"),
        ("a\x00b\x08c\x7fd", "abcd"),
        ("a\u202eb\u2066c\u200bd\ufeffe", "abcde"),
        ("unfinished \x1b[31", "unfinished [31"),
        ("lone \x1b", "lone "),
        ("OSC without an end \x1b]0;keeps\nits text", "OSC without an end ]0;keeps\nits text"),
        ("family: 👨\u200d👩\u200d👧, می\u200cخواهم", "family: 👨\u200d👩\u200d👧, می\u200cخواهم"),
        ("\ud800lone surrogate", "lone surrogate"),
    ],
)  # fmt: skip
def test_known_attacks(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_plain_text_is_not_held_back() -> None:
    """Only what may be the start of a sequence waits for more."""
    sanitizer = Sanitizer()
    assert sanitizer.feed("hello ") == "hello "
    assert sanitizer.feed("world\x1b") == "world"
    assert sanitizer.feed("[1") == ""
    assert sanitizer.feed("mbold") == "bold"
    assert sanitizer.flush() == ""


def test_an_endless_sequence_is_let_go() -> None:
    """A title that never ends does not swallow an answer, nor memory."""
    sanitizer = Sanitizer()
    shown = sanitizer.feed("\x1b]0;")
    for _ in range(1000):
        shown += sanitizer.feed("0123456789")
    shown += sanitizer.flush()
    assert shown == "]0;" + "0123456789" * 1000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\nlines\tand\r\nmore", "two lines and more"),
        ("  \x1b[1mbold\x1b[0m  name ", "bold name"),
        ("a\x85b\u2028c", "a b c"),
        ("\x1b]0;split\ntitle\x07", "]0;split title"),
        ("", ""),
    ],
)
def test_clean_line(text: str, expected: str) -> None:
    assert clean_line(text) == expected


@given(text=TEXTS)
def test_clean_line_is_one_line(text: str) -> None:
    line = clean_line(text)
    assert len(line.splitlines()) <= 1
    assert not FORBIDDEN.search(line)
    assert line == line.strip()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (9_878_424_780, "9.2 GiB"),
        (1024**2 - 1, "1.0 MiB"), (int(99.9 * 1024**3), "99.9 GiB"), (100 * 1024**3, "100 GiB"),
        (1023 * 1024**3, "1023 GiB"), (1024**4, "1.0 TiB"), (5000 * 1024**5, "5000 PiB"),
        (-1536, "-1.5 KiB"),
    ],
)  # fmt: skip
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (63_400_000_000, "63.4 GB"),
        (999_960, "1.0 MB"), (671_026_419_200, "671 GB"), (4e12, "4.0 TB"), (-1536, "-1.5 kB"),
    ],
)  # fmt: skip
def test_format_size(count: int, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0, "0.0 Mbit/s"), (1e5, "0.8 Mbit/s"), (12.5e6, "100 Mbit/s"), (2e8, "1,600 Mbit/s")],
)
def test_format_line(rate: float, text: str) -> None:
    """Bytes per second; one unit for all networks, so that they can be compared."""
    assert format_line(rate) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"), (999, "999"), (1000, "1.0K"), (30_532_122_624, "30.5B"), (671_026_419_200,"671B"),
        (1_040_000_000_000, "1.0T"), (999_950_000, "1.0B"), (3_345_000_000, "3.3B"),
        (-1500, "-1.5K"),
    ],
)  # fmt: skip
def test_format_count(count: int, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "1 ms"), (0.0042, "4 ms"), (0.00996, "0.01 s"), (0, "0.00 s"),
        (0.354, "0.35 s"), (9.994, "9.99 s"), (9.996, "10.0 s"), (42.04, "42.0 s"),
        (59.96, "1 min"), (75, "1 min 15 s"), (3599.6, "1 h"), (5100, "1 h 25 min"),
        (86_400, "1 d"), (100_000, "1 d 4 h"), (-3, "-3.00 s"),
    ],
)  # fmt: skip
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@given(text=st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"])))
def test_texts_of_other_systems_are_read_by_their_mark(encoding: str, text: str) -> None:
    """A byte order mark tells UTF-8, UTF-16 and UTF-32; line ends become line feeds."""
    assume(encoding != "utf-8" or not text.startswith("\ufeff"))
    data = text.replace("\n", "\r\n").encode(encoding)
    assert decoded(data) == (text, 0)


def test_what_is_no_text_is_counted_or_refused() -> None:
    """Latin-1 has no mark: each byte that is no UTF-8 is counted. NUL bytes are no text."""
    assert decoded("café, naïve \ufffd".encode()) == ("café, naïve \ufffd", 0)
    assert decoded("café, naïve".encode("latin-1")) == ("caf\ufffd, na\ufffdve", 2)
    assert replaced_note("a.txt", 2).startswith("a.txt is not UTF-8 throughout: 2 characters")
    with pytest.raises(ValueError, match="NUL"):
        decoded("text".encode("utf-16-le"))


@pytest.mark.parametrize(
    ("names", "lead", "text"),
    [
        ([], "", ""),
        (["nano"], "", " Did you mean nano?"),
        (["b", "a"], "", " Did you mean b or a?"),
        (["x", "x"], "", " Did you mean x?"),
        (["x\x1b[31m", "x"], "", " Did you mean x?"),
        (["stats"], "/", " Did you mean /stats?"),
    ],
)
def test_did_you_mean(names: list[str], lead: str, text: str) -> None:
    """Each name once, best first; nothing where nothing is like what was typed."""
    assert did_you_mean(names, lead) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 models"), (1, "1 model"), (2, "2 models"), (12000, "12,000 models")]
)
def test_counted(number: int, text: str) -> None:
    """One of a thing is not many of it."""
    assert counted(number, "model") == text


def test_the_reason_of_an_error() -> None:
    """The system's words without its number, also below errors of libraries; else their own."""
    refused = OSError(111, "Connection refused", "/some/file")
    wrapped = ValueError("[Errno 111] Connection refused")
    wrapped.__cause__ = ValueError("between")
    wrapped.__cause__.__cause__ = refused
    assert reason_of(refused) == reason_of(wrapped) == "connection refused"
    assert reason_of(socket.gaierror(-2, "Name or service not known")).startswith("name or")
    assert reason_of(ValueError("it is odd")) == "it is odd"
    assert reason_of(ValueError()) == "ValueError"


@pytest.mark.parametrize(("text", "tokens"), [("8192", 8192), ("16k", 16384), ("1K", 1024)])
def test_token_count(text: str, tokens: int) -> None:
    assert token_count(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "0", "-4k", "1.5k", "16m", "99999999999"])
def test_what_is_no_token_count(text: str) -> None:
    with pytest.raises(ValueError, match=r"tokens|invalid literal"):
        token_count(text)
