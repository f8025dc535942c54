"""Untrusted text made safe for a terminal, and numbers made readable for people.

Model output, model names, file names and metadata all come from strangers. A terminal obeys escape
sequences (colours, titles, the clipboard through OSC 52), and bidirectional controls reorder what a
reader sees, so neither may pass.
"""

from __future__ import annotations

import re

# CSI and other ESC sequences; strings (OSC, DCS, SOS, PM, APC) up to their terminator.
_STRING_START = "\x1b]|\x1bP|\x1bX|\x1b\\^|\x1b_|[\x90\x98\x9d\x9e\x9f]"
_SEQUENCE = re.compile(
    rf"(?:{_STRING_START})[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|(?=\x1b)|\Z)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|\x1b[ -/]*[0-~]?"
)
# C0 without \t and \n, DEL, C1, bidi controls, zero-width and other invisible formats, lone
# surrogates, tag characters.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_UNFINISHED = re.compile(
    rf"(?:(?:{_STRING_START})[^\x07\x1b\x9c]*\x1b?|(?:\x1b\[|\x9b)[0-?]*[ -/]*|\x1b[ -/]*)\Z"
)
MAX_HELD = 4096  # characters; a sequence that never ends is dropped, not collected


class Sanitizer:
    """Cleans a stream, whatever its chunking. Newline and tab pass; CR LF becomes a newline."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """The part of the stream that is known to be safe now."""
        text = self._held + text
        found = _UNFINISHED.search(text)
        cut = found.start() if found else len(text)
        if text[:cut].endswith("\r") and cut == len(text):
            cut -= 1
        text, self._held = text[:cut], text[cut:]
        if len(self._held) > MAX_HELD:
            self._held = self._held[:2]
        return _strip(text)

    def flush(self) -> str:
        """What was held back, once nothing more comes."""
        text, self._held = self._held, ""
        return _strip(text)


def _strip(text: str) -> str:
    text = text.replace("\r\n", "\n")
    return _FORBIDDEN.sub("", _SEQUENCE.sub("", text))


def clean(text: str) -> str:
    """``text`` without anything a terminal would obey; lines are kept."""
    return _strip(text)


def clean_line(text: str) -> str:
    """``clean`` on one line: for names and messages."""
    return " ".join(_strip(text).split())


def format_bytes(count: int) -> str:
    """``9.2 GiB``: memory, in binary units, three significant digits."""
    value = float(abs(count))
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    digits = 0 if unit == "B" or value >= 100 else 1
    sign = "-" if count < 0 else ""
    return f"{sign}{value:.{digits}f} {unit}"


def format_count(count: int) -> str:
    """``30.5B``: parameters and tokens, in thousands."""
    value = float(count)
    for unit in ("", "K", "M", "B", "T"):
        if value < 1000 or unit == "T":
            break
        value /= 1000
    digits = 0 if not unit or value >= 100 else 1
    return f"{value:.{digits}f}{unit}"


def format_duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``3 min 5 s``, ``1 h 25 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
