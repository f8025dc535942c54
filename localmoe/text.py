"""Untrusted text made safe for a terminal, and numbers made readable.

One unit for each kind of figure, on every screen: memory in GiB (``format_bytes``); files,
downloads and disks in GB (``format_size``); bandwidth of memory and disks in GB/s; networks in
Mbit/s (``format_line``).

Model output, model names and file names may hold escape sequences that move the cursor, set the
clipboard or hide text. ``Sanitizer`` removes them from a stream, whatever its chunks; ``clean``
from one string. References: ECMA-48 (control sequences), Unicode TR 36 and CVE-2021-42574 (bidi).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable

MAX_CONTEXT = 10 * 1024 * 1024  # tokens; planning/placement.py asks about no more
_UNFINISHED_LIMIT = 4096  # characters; what is longer is no control sequence, and its text is kept

# Characters that a terminal acts on, or that make text look like other text:
# C0 except tab and newline, DEL and C1; marks and overrides of direction; the invisible
# zero-width space, word joiner, soft hyphen, BOM and separators; lone surrogates; tag characters.
# Joiners (U+200C, U+200D) are allowed: Persian and emoji need them.
_FORBIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f"
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_SINGLES = re.compile(f"[{_FORBIDDEN}]")
FORBIDDEN = _SINGLES
"""Matches each of the characters that ``clean`` removes."""

_CSI = r"(?:\x1b\[|\x9b)[\x30-\x3f]*[\x20-\x2f]*[\x40-\x7e]"
# OSC, DCS, SOS, PM and APC: text until BEL or ST. None contains a newline, so a newline ends one
# that is not terminated: else it would swallow the rest of an answer.
_STRING = r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"
_ESCAPE = r"\x1b[\x20-\x2f]*[\x30-\x4f\x51-\x57\x59\x5a\x5c\x60-\x7e]"
_SEQUENCE = re.compile(f"{_CSI}|{_STRING}|{_ESCAPE}")

# A sequence that may go on in the next chunk, up to the end of the text.
_UNFINISHED = re.compile(
    r"(?:(?:\x1b\[|\x9b)[\x30-\x3f]*[\x20-\x2f]*"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*\x1b?"
    r"|\x1b[\x20-\x2f]*)\Z"
)
_INTRODUCER = re.compile("[\x1b\x90\x98\x9b\x9d-\x9f]")


class Sanitizer:
    """Removes control sequences and forbidden characters from a stream of text.

    The result does not depend on where the stream was cut: an unfinished sequence is held back
    until its end has come. One that never ends loses only its first character, so that no visible
    text is lost; ``flush`` returns it at the end of the stream.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """The safe text so far, less what was returned before."""
        text = self._held + text
        self._held = ""
        return self._run(text, last=False)

    def flush(self) -> str:
        """What is held back, made safe; then the sanitizer can be used for another stream."""
        text, self._held = self._held, ""
        return self._run(text, last=True)

    def _run(self, text: str, *, last: bool) -> str:
        kept: list[str] = []
        position = 0
        while found := _INTRODUCER.search(text, position):
            start = found.start()
            kept.append(text[position:start])
            if sequence := _SEQUENCE.match(text, start):
                length = len(sequence.group())
                # The same limit as for unfinished ones, so that a cut makes no difference.
                position = start + (length if length <= _UNFINISHED_LIMIT else 1)
            elif (
                not last
                and len(text) - start < _UNFINISHED_LIMIT
                and _UNFINISHED.match(text, start)
            ):
                self._held = text[start:]
                position = len(text)
            else:
                position = start + 1
        kept.append(text[position:])
        return _SINGLES.sub("", "".join(kept))


# The longer marks first: UTF-32's begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decoded(data: bytes) -> tuple[str, int]:
    """The text of a file or a pipe, and how many characters of it stand for bytes that are none.

    A byte order mark tells the encoding, else it is UTF-8; what does not fit becomes U+FFFD. Lines
    end with a line feed. Raises ValueError for NUL bytes without such a mark: that is no text.
    """
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if encoding is None and b"\0" in data:
        raise ValueError("it has NUL bytes")
    text = data.decode(encoding or "utf-8", errors="replace").replace("\r\n", "\n")
    meant = data.count("\ufffd".encode()) if encoding in (None, "utf-8-sig") else 0
    return text, max(0, text.count("\ufffd") - meant)


def replaced_note(name: str, count: int) -> str:
    """What to say of a text in which ``decoded`` replaced something."""
    characters = "1 character" if count == 1 else f"{count:,} characters"
    return f"{name} is not UTF-8 throughout: {characters} replaced by \ufffd"


def clean(text: str) -> str:
    """``text`` without control sequences and forbidden characters; newlines and tabs stay."""
    if not _SINGLES.search(text):
        return text
    sanitizer = Sanitizer()
    return sanitizer.feed(text) + sanitizer.flush()


def clean_line(text: str) -> str:
    """``clean`` for names: one line, with single spaces for runs of white space."""
    return " ".join(clean(re.sub(r"[\r\v\f\x85\u2028\u2029]", "\n", text)).split())


def shortened(text: str, length: int) -> str:
    """``text``, cut to ``length`` characters; "…" is the last one of a text that was cut."""
    return text if len(text) <= length else text[: length - 1] + "…"


def reason_of(error: BaseException) -> str:
    """What the system says is wrong: ``connection refused``, without ``[Errno 111]``.

    A library's error is looked through for that of the system that caused it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return clean_line(cause.strerror).lower()
        cause = cause.__cause__ or cause.__context__
    return clean_line(str(error)) or type(error).__name__


def token_count(text: str) -> int:
    """``8192`` and ``8k`` as a number of tokens. Raises ValueError, also beyond MAX_CONTEXT."""
    kilo = text[-1:] in ("k", "K")
    value = int(text[:-1]) * 1024 if kilo else int(text)
    if not 1 <= value <= MAX_CONTEXT:
        raise ValueError(f"{value} tokens")
    return value


def did_you_mean(names: Iterable[str], lead: str = "") -> str:
    """``" Did you mean a or b?"``, to follow a sentence; "" without names.

    A name that occurs twice is given once. ``lead`` is put before each: "/" of a chat's commands.
    """
    near = dict.fromkeys(f"{lead}{clean_line(name)}" for name in names)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def counted(number: int, one: str, many: str = "") -> str:
    """``1 model``, ``2 models``, ``12,000 models``; ``many``: the plural that is not in -s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def format_bytes(count: int | float) -> str:
    """Memory: ``9878424780`` → ``"9.2 GiB"``; three significant digits, powers of 1024."""
    if count < 0:
        return f"-{format_bytes(-count)}"
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), " ")


def format_size(count: int | float) -> str:
    """A file, a download, a disk: ``9878424780`` → ``"9.9 GB"``; powers of 1000."""
    if count < 0:
        return f"-{format_size(-count)}"
    return _scaled(count, 1000, ("B", "kB", "MB", "GB", "TB", "PB"), " ")


def format_line(rate: float) -> str:
    """Bytes per second of a network: ``12.5e6`` → ``"100 Mbit/s"``."""
    megabits = rate * 8 / 1e6
    return f"{megabits:,.0f} Mbit/s" if megabits >= 9.95 else f"{megabits:.1f} Mbit/s"


def format_count(count: int | float) -> str:
    """``30532122624`` → ``"30.5B"``; thousands, millions, billions, trillions."""
    if count < 0:
        return f"-{format_count(-count)}"
    return _scaled(count, 1000, ("", "K", "M", "B", "T"), "")


def format_duration(seconds: float) -> str:
    """``0.004`` → ``"4 ms"``, ``0.35`` → ``"0.35 s"``, ``75`` → ``"1 min 15 s"``, ``5100`` →
    ``"1 h 25 min"``.
    """
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if 0 < seconds < 0.00995:
        return f"{max(1, round(1000 * seconds))} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return _joined(whole // 60, "min", whole % 60, "s")
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return _joined(minutes // 60, "h", minutes % 60, "min")
    hours = round(seconds / 3600)
    return _joined(hours // 24, "d", hours % 24, "h")


def _joined(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large} {large_unit}" + (f" {small} {small_unit}" if small else "")


def _scaled(count: int | float, step: int, units: tuple[str, ...], space: str) -> str:
    value = float(count)
    for unit in units:
        last = unit == units[-1]
        if unit == units[0]:
            if round(value) < step:
                return f"{round(value)}{space}{unit}"
        elif value < 99.95:
            return f"{value:.1f}{space}{unit}"
        elif round(value) < step or last:
            return f"{round(value)}{space}{unit}"
        value /= step
    raise AssertionError("the last unit takes any value")
