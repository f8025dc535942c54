"""What need not be typed: precedence, aliases, the default model, and the command for them."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe import config
from localmoe.app import default_model
from localmoe.cli.arguments import Options, parse
from localmoe.cli.config import defaults as configured
from localmoe.errors import UsageError
from tests.cli.command import Localmoe, assert_clear_error


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    return tmp_path


def written(home: Path, text: str) -> None:
    (home / "config").mkdir(exist_ok=True)
    (home / "config/config.toml").write_text(text)


def options(*argv: str) -> Options:
    return configured.configured(parse(argv))


FILE = """
temp = 0.1
top-k = 1
min-p = 0.1
kv-type = "q8_0"
[models.qwen3-30b-a3b]
top-k = 2
[models."qwen3-30b-a3b:Q8_0"]
top-k = 3
stop = ["END"]
"""


def test_precedence(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line, environment, the model's own table, the general settings, built-in values."""
    written(home, FILE)
    monkeypatch.setenv("LOCALMOE_MIN_P", "0.2")
    plain = options("run", "hello there")
    assert (plain.temperature, plain.top_k, plain.min_p, plain.top_p) == (0.1, 1, 0.2, None)
    assert (plain.type_k, plain.type_v, plain.stop) == ("q8_0", "q8_0", ())
    family = options("run", "qwen3-30b-a3b", "hello", "--min-p", "0.3")
    assert (family.top_k, family.min_p) == (2, 0.3)
    file = options("fit", "qwen3-30b-a3b:Q8_0", "-ctk", "f16")
    assert (file.top_k, file.stop, file.type_k, file.type_v) == (3, ("END",), "f16", "q8_0")
    assert options("run", "-m", "qwen3-30b-a3b", "--top-k", "9", "x").top_k == 9


def test_another_model_brings_its_own_settings(home: Path) -> None:
    """As a chat changes models: what was typed stays, the first model's settings do not."""
    written(home, FILE)
    first = options("chat", "qwen3-30b-a3b:Q8_0", "--temp", "0.9")
    second = configured.for_model(first, "nano")
    assert (second.temperature, second.top_k, second.stop) == (0.9, 1, ())
    assert configured.for_model(second, "qwen3-30b-a3b:Q8_0").stop == ("END",)


def test_a_setting_for_other_commands_is_no_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling that is configured does not matter to a plan; the same words typed are refused."""
    written(home, FILE)
    monkeypatch.setenv("LOCALMOE_SEED", "7")
    for command in ("plan", "fit", "show", "rm", "pull", "bench"):
        assert options(command, "nano").words == ("nano",)
        with pytest.raises(UsageError, match=f"{command} takes no --seed"):
            options(command, "nano", "--seed", "7")


def test_a_path_answers_to_its_name(home: Path) -> None:
    written(home, "[models.mine-Q4_0]\ntemp = 0.4\n")
    assert options("run", "-m", "/somewhere/mine-Q4_0.gguf", "hi").temperature == 0.4


def test_aliases_are_models_everywhere(home: Path) -> None:
    """Even as the first word of ``run``; the prompt is left as it is."""
    written(home, '[aliases]\nmine = "nano"\n[models.mine]\ntemp = 0.3\n')
    ran = options("run", "mine", "mine", "says")
    assert (ran.model, ran.words, ran.temperature) == ("nano", ("mine", "says"), 0.3)
    assert options("run", "-m", "mine", "hi").model == "nano"
    assert options("show", "mine").words == ("nano",)
    after = options("run", "mine", "--", "--temp")
    assert (after.model, after.words, after.after_dashes) == ("nano", (), ("--temp",))
    assert options("run", "yours").model is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tmep = 1", "no setting 'tmep'. Did you mean temp?"),
        ('temp = "hot"', '"hot"'),
        ("plain = 1", "plain is true or false"),
        ("temp = true", "temp is"),
        ('machine = "x.json"', "no setting 'machine'"),
        ("[models.nano]\nctx = -1", "--ctx"),
    ],
)
def test_a_wrong_setting_names_the_file(home: Path, text: str, message: str) -> None:
    written(home, text)
    with pytest.raises(UsageError) as caught:
        options("run", "nano", "hi")
    assert message in caught.value.message and "config.toml" in caught.value.message


def test_a_wrong_variable_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALMOE_PLAIN", "perhaps")
    with pytest.raises(UsageError, match="LOCALMOE_PLAIN"):
        options("run", "hi")
    monkeypatch.setenv("LOCALMOE_PLAIN", "0")
    written(home, "plain = true")
    assert options("run", "hi").plain is False


def test_the_default_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configured, else the last one used as long as it is there, else the bundled one."""
    assert default_model.default_model()[0] == "nano"
    model = home / "a.gguf"
    model.write_bytes(b"")
    monkeypatch.chdir(home)
    default_model.remember("./a.gguf")
    assert default_model.default_model() == (str(model), "the last one used")
    written(home, 'model = "mine"\n[aliases]\nmine = "x/y"\n')
    assert default_model.default_model()[0] == "x/y"
    monkeypatch.setenv("LOCALMOE_MODEL", "nano")
    assert default_model.default_model()[0] == "nano"
    written(home, "")
    monkeypatch.delenv("LOCALMOE_MODEL")
    model.unlink()
    assert default_model.default_model()[0] == "nano"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"model": 1}', '{"model": "\\u0000"}'])
def test_a_damaged_note_of_the_last_model_is_nobodys(home: Path, damage: str) -> None:
    (home / "state").mkdir()
    (home / "state/last-model.json").write_text(damage)
    assert default_model.default_model()[0] == "nano"


def test_every_setting_is_explained(localmoe: Localmoe) -> None:
    """``explain`` lists all with their variables; each of them is accepted from the environment."""
    document = localmoe.document("config", "explain")
    names = {entry["name"] for entry in document["settings"]}
    assert {"ctx", "temp", "think", "no-history", "kv-type", "quiet"} <= names
    assert not {"machine", "json", "model", "schema", "session", "file"} & names
    screen = localmoe("config", "explain", "temp").stdout
    assert "LOCALMOE_TEMP" in screen and "command line beats" in screen
    assert_clear_error(localmoe("config", "explain", "tmp"), 2, "did you mean temp?")


def test_set_show_unset(localmoe: Localmoe) -> None:
    """What is set is shown with its source, is private on the disk, and can be taken back."""
    for words in (("set", "ctx", "16k"), ("set", "stop", "a b", "c"), ("alias", "mine", "nano"),
                  ("set", "model", "mine"), ("set", "temp", "0.6", "-m", "mine")):  # fmt: skip
        done = localmoe("config", *words)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    file = Path(localmoe("config", "path").stdout.strip())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = config.parse(file.read_bytes(), file)
    assert (found.model, found.settings) == ("mine", {"ctx": "16k", "stop": ["a b", "c"]})
    assert (found.aliases, found.models) == ({"mine": "nano"}, {"mine": {"temp": 0.6}})
    document = localmoe.document("config", LOCALMOE_CTX="8k")
    assert document["model"] == {"name": "nano", "why": "the configured one", "configured": "mine"}
    assert localmoe.document("config", "show", LOCALMOE_CTX="8k") == document
    assert localmoe("config", "show").stdout == localmoe("config").stdout
    said = [(s["name"], s["source"], s["model"]) for s in document["settings"]]
    assert said == [("ctx", "environment", None), ("stop", "file", None), ("temp", "file", "mine")]
    assert "mine" in localmoe("config").stdout
    for line in ("unset ctx", "unset mine", "unset temp -m mine"):
        assert localmoe("config", *line.split()).returncode == 0
    assert localmoe.document("config")["aliases"] == {}
    assert_clear_error(localmoe("config", "unset", "ctx"), 2, "ctx is not set")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("set", "temp", "hot"), "--temp"),
        (("set", "tmep", "1"), "did you mean temp?"),
        (("set", "temp", "1", "2"), "one value for temp"),
        (("set", "model", "qwen3-30b-a3"), "did you mean"),
        (("alias", "a/b", "nano"), "cannot be an alias"),
        (("frobnicate",), "does not understand"),
        (("set", "temp"), "does not understand"),
    ],
)
def test_what_cannot_be_set(localmoe: Localmoe, words: tuple[str, ...], message: str) -> None:
    """Nothing is written."""
    assert_clear_error(localmoe("config", *words), 2, message)
    assert localmoe.document("config")["settings"] == []


def test_a_broken_file_is_told_and_left_alone(localmoe: Localmoe) -> None:
    """By every command that would use it, and by ``config set``; help still works."""
    folder = localmoe.home / ".config/localmoe"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("ctx = = 3\n")
    for words in (("run", "hi"), ("config",), ("config", "set", "ctx", "8k")):
        assert_clear_error(localmoe(*words), 2, "config.toml is not TOML")
    assert localmoe("--help").returncode == 0
    assert (folder / "config.toml").read_text() == "ctx = = 3\n"


def test_a_run_uses_all_of_it(localmoe: Localmoe, arch_file: Callable[..., Path]) -> None:
    """Default model and settings of a run without any; and the last one used, noted by a run."""
    model = arch_file("qwen3moe")
    localmoe("config", "set", "max-tokens", "3")
    localmoe("config", "set", "temp", "0")
    localmoe("config", "alias", "mine", str(model))
    document = localmoe.document("run", "mine", "hello")
    assert (document["model"], document["usage"]["completion_tokens"]) == (model.stem, 3)
    again = localmoe("run", "hello there")
    assert f"using {model}, the last one used" in again.stderr
    assert "3 tokens written" in again.stderr
    note = json.loads((localmoe.home / ".local/state/localmoe/last-model.json").read_text())
    assert note == {"model": str(model)}


def test_no_history_notes_no_model(localmoe: Localmoe, arch_file: Callable[..., Path]) -> None:
    localmoe("run", "--no-history", "-n", "1", "-m", arch_file("qwen3moe"), "hello there")
    assert not (localmoe.home / ".local/state/localmoe/last-model.json").exists()


def test_a_schema_in_another_encoding_is_not_enforced_damaged(localmoe: Localmoe) -> None:
    """A value of the schema would come out with a replacement character in it."""
    (localmoe.home / "s.json").write_bytes('{"enum": ["café"]}'.encode("latin-1"))
    done = localmoe("run", "--schema", "s.json", "hi")
    assert_clear_error(done, 2, "s.json is not UTF-8")
