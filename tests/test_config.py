"""The configuration file: read within bounds, and changed without touching what else it says."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe import config
from localmoe.errors import UsageError

FILE = Path("config.toml")
WRITTEN = """\
# mine
model = "nano"  # the small one
ctx = "16k"

[aliases]
big = "someone/Big-GGUF:Q4_K_M"  # two words

[models."qwen3-30b-a3b"]
temp = 0.6
stop = [
  "END",
]

[models.other]
# nothing yet
"""


def test_what_is_read() -> None:
    found = config.parse(WRITTEN.encode(), FILE)
    assert (found.model, found.settings) == ("nano", {"ctx": "16k"})
    assert found.aliases == {"big": "someone/Big-GGUF:Q4_K_M"}
    assert found.for_model(["other", "qwen3-30b-a3b"]) == {
        "ctx": "16k",
        "temp": 0.6,
        "stop": ["END"],
    }
    assert found.for_model([]) == {"ctx": "16k"}


def test_aliases_take_another_quantization() -> None:
    """``big`` is what it stands for, ``big:Q8_0`` the same repository's Q8_0."""
    found = config.parse(WRITTEN.encode(), FILE)
    assert found.target("big") == "someone/Big-GGUF:Q4_K_M"
    assert found.target("big:Q8_0") == "someone/Big-GGUF:Q8_0"
    assert found.target("bigger") == "bigger"
    assert found.target("BIG:Q8_0") == "someone/Big-GGUF:Q8_0"
    urls = config.parse(b'[aliases]\na = "hf://u/R:Q4_0"\nb = "https://hf.co/u/R"', Path())
    assert urls.target("a:Q8_0") == "hf://u/R:Q8_0"
    assert urls.target("b:Q8_0") == "https://hf.co/u/R:Q8_0"


@pytest.mark.parametrize(
    "text",
    ["= 1", "ctx = 1\nctx = 2", "model = 3", "aliases = 1", "[aliases]\na = 1", "models = []",
     "[models]\nx = 1", "ctx = 2020-01-01", "stop = [1]", "a = { b = 1 }", "\xff"],
)  # fmt: skip
def test_what_is_wrong_is_told_with_the_file(text: str) -> None:
    with pytest.raises(UsageError, match=r"config\.toml"):
        config.parse(text.encode("latin-1"), FILE)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_told_with_its_line(encoding: str) -> None:
    """Not as a mistake of TOML, and not as the error of a decoder."""
    with pytest.raises(UsageError, match=r"config\.toml is not UTF-8, in line (2|1)$") as caught:
        config.parse('model = "a"\nsystem = "café"\n'.encode(encoding), FILE)
    assert caught.value.message.endswith("2" if encoding == "latin-1" else "1")


def test_no_file_is_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    assert config.read().settings == {}
    assert config.text().startswith("#")


def test_changes_leave_the_rest_alone() -> None:
    """A value is replaced where it stands, comments stay; a new one goes to the end of its part."""
    text = config.changed(WRITTEN, (), "model", "big")
    assert text == WRITTEN.replace('model = "nano"', 'model = "big"')
    text = config.changed(WRITTEN, (), "temp", 0.5)
    assert text == WRITTEN.replace('"16k"\n', '"16k"\ntemp = 0.5\n')
    text = config.changed(WRITTEN, ("models", "qwen3-30b-a3b"), "temp", 1)
    assert text == WRITTEN.replace("0.6", "1")
    text = config.changed(WRITTEN, ("aliases",), "big", None)
    assert text == WRITTEN.replace('big = "someone/Big-GGUF:Q4_K_M"  # two words\n', "")
    text = config.changed(WRITTEN, ("models", "new:Q4"), "plain", True)
    assert text == WRITTEN + '\n[models."new:Q4"]\nplain = true\n'


def test_what_one_line_cannot_change_is_refused() -> None:
    """A value over several lines, an inline table: the file stays for its owner to edit."""
    with pytest.raises(UsageError, match="left alone"):
        config.changed(WRITTEN, ("models", "qwen3-30b-a3b"), "stop", ["x"])
    with pytest.raises(UsageError, match="left alone"):
        config.changed("aliases = { a = 'b' }\n", ("aliases",), "c", "d")


NAMES = st.text(st.sampled_from("ab-. \"'#[]=\n\x7fé"), min_size=1, max_size=6)
VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    NAMES,
    st.lists(NAMES, max_size=3),
)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([(), ("aliases",), ("models", "x"), ("models", "a.b\n]")]),
                  NAMES, st.none() | VALUES),
        max_size=6,
    )
)  # fmt: skip
def test_any_changes_are_what_toml_reads(
    steps: list[tuple[tuple[str, ...], str, config.Value | None]],
) -> None:
    """After every change the file parses to the old values with that one changed."""
    text, wanted = WRITTEN, tomllib.loads(WRITTEN)
    for section, name, value in steps:
        if not section and name in ("aliases", "models"):
            continue
        text = config.changed(text, section, name, value)
        table = wanted
        for part in section:
            table = table.setdefault(part, {}) if value is not None else table.get(part, {})
        if value is None:
            table.pop(name, None)
        else:
            table[name] = value
        assert tomllib.loads(text) == wanted


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_files_of_other_systems_keep_their_form(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mark: str, end: str
) -> None:
    """A byte order mark is read, and it and the line ends are kept when one line is changed."""
    monkeypatch.setattr(config, "path", lambda: tmp_path / "config.toml")
    lines = ["# mine", "temp = 0.5", "", "[aliases]", 'a = "b"', ""]
    (tmp_path / "config.toml").write_bytes((mark + end.join(lines)).encode())
    assert config.read().settings == {"temp": 0.5}
    config.assign((), "temp", 0.7)
    config.assign((), "ctx", "8k")
    lines[1:2] = ["temp = 0.7", 'ctx = "8k"']
    assert (tmp_path / "config.toml").read_bytes() == (mark + end.join(lines)).encode()
