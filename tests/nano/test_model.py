"""The bundled file: small, well described, and right about most of what it never saw."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from localmoe.app.model import LoadedModel
from localmoe.chat.conversation import Conversation
from localmoe.chat.events import TurnDone
from localmoe.cli import arguments, loaded
from localmoe.cli.output import Output
from scripts.nano import intents, judge

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
FILE = ROOT / "models" / "nano.gguf"
KNOWN = intents.load()


def field(reader: gguf.GGUFReader, name: str) -> object:
    found = reader.get_field(name)
    assert found is not None, name
    return found.contents()


def test_small_enough_to_ship() -> None:
    """At most 16 MB, as promised."""
    assert FILE.stat().st_size <= 16_000_000


def test_metadata_says_what_it_is() -> None:
    """An MoE that stock llama.cpp runs, with its tokenizer, template, license and sampling."""
    reader = gguf.GGUFReader(FILE)
    assert field(reader, "general.architecture") == "qwen3moe"
    assert field(reader, "general.name") == "nano"
    assert field(reader, "general.license") == "MIT"
    assert "demonstration" in str(field(reader, "general.description"))
    assert field(reader, "general.sampling.temp") == 0.0
    assert int(str(field(reader, "qwen3moe.block_count"))) >= 6
    assert int(str(field(reader, "qwen3moe.expert_count"))) >= 16
    assert int(str(field(reader, "qwen3moe.expert_used_count"))) >= 2
    assert "<|im_start|>" in str(field(reader, "tokenizer.chat_template"))


def test_no_expert_is_alike_or_empty() -> None:
    """Every expert has weights of its own: none is zero, no two of a layer are equal."""
    reader = gguf.GGUFReader(FILE)
    experts = [t for t in reader.tensors if "_exps" in t.name]
    assert len(experts) == 3 * int(str(field(reader, "qwen3moe.block_count")))
    for tensor in experts:
        parts = [part.tobytes() for part in tensor.data]
        assert len(set(parts)) == len(parts) >= 16
        assert all(any(part) for part in parts)


@pytest.fixture(scope="module")
def model() -> Iterator[LoadedModel]:
    """The bundled model in the engine, loaded once; greedy."""
    with loaded.open_model(str(FILE), OPTIONS, OUTPUT) as opened:
        loaded.load(opened, OUTPUT)
        yield opened


OUTPUT = Output(quiet=True)
OPTIONS = arguments.parse(["run", "-m", str(FILE), "--temp", "0", "-n", "160", "--quiet", "-"])


def say(conversation: Conversation, text: str) -> str:
    done = list(conversation.ask(text))[-1]
    assert isinstance(done, TurnDone)
    assert done.finish_reason == "stop"
    return done.answer.strip()


def test_the_headline_question(model: LoadedModel) -> None:
    """`localmoe run "What is a mixture of experts?"` gives the written answer."""
    answer = say(loaded.conversation(model, OPTIONS, OUTPUT), "What is a mixture of experts?")
    assert answer == KNOWN["moe"].answer


def test_held_out_questions(model: LoadedModel) -> None:
    """At least 80 % of a sample of 75 from all domains is right, by the rule in the file."""
    items = judge.read(ROOT / "tests" / "nano" / "held_out.txt")
    sample = items[::3]
    assert {item.domain for item in sample} == {item.domain for item in items}
    right = [
        judge.is_right(item, say(loaded.conversation(model, OPTIONS, OUTPUT), item.question), KNOWN)
        for item in sample
    ]
    assert sum(right) >= 0.8 * len(sample)


def test_later_turns_are_answered_too(model: LoadedModel) -> None:
    """A second and a third question in one conversation get their own answers."""
    conversation = loaded.conversation(model, OPTIONS, OUTPUT)
    assert say(conversation, "What is a router?") == KNOWN["router"].answer
    assert say(conversation, "How do I download a model?") == KNOWN["pull"].answer
    assert say(conversation, "Thank you!") == KNOWN["thanks"].answer


def test_a_system_message_does_no_harm(model: LoadedModel) -> None:
    """The same answer with a system message in front."""
    with_system = arguments.parse(
        ["run", "-m", str(FILE), "--system", "You are a helpful assistant.", "--temp", "0", "-"]
    )
    answer = say(loaded.conversation(model, with_system, OUTPUT), "What is load balancing?")
    assert answer == KNOWN["load_balancing"].answer


def test_the_tokenizer_is_the_one_it_was_trained_with(model: LoadedModel) -> None:
    """The engine counts the tokens of each recorded text as the training tokenizer did."""
    recorded = json.loads((ROOT / "tests" / "nano" / "token_counts.json").read_text("utf-8"))
    assert len(recorded) >= 100
    engine = model.engine
    assert hasattr(engine, "count_tokens")
    for text, count in recorded.items():
        assert engine.count_tokens(text) == count, text


def test_the_data_needs_no_training_library() -> None:
    """Reading the data and scoring answers imports neither PyTorch nor a tokenizer library."""
    code = (
        "import sys; from scripts.nano import judge; "
        "print(*({'torch', 'tokenizers'} & {*sys.modules}))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == []
