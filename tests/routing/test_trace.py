"""Recording and reading traces."""

from __future__ import annotations

import gzip
import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localmoe.errors import StorageError, TraceFileError
from localmoe.facts.model import read_model
from localmoe.routing import reader, recorder, rewrite
from localmoe.routing import trace as trace_module
from localmoe.routing.records import TraceHeader, TraceLayer
from localmoe.routing.token_texts import token_texts
from localmoe.routing.trace import DECODE, PREFILL, Trace, TraceWriter, read_trace
from tests.archs.plain import plain_greedy
from tests.routing import traces

UNEVEN = TraceHeader(
    "uneven",
    "test",
    (TraceLayer(1, 300, 4, 1000), TraceLayer(3, 16, 2, 500)),
    gating="softmax",
    dense_bytes=77,
    logits=True,
)


def write_uneven(path: Path, steps: int = 3) -> None:
    rng = np.random.default_rng(1)
    with TraceWriter(path, UNEVEN) as writer:
        writer.prompt("prose")
        writer.token_texts({5: " the"})
        writer.append(
            PREFILL,
            [traces.random_ids(rng, 7, 300, 4), traces.random_ids(rng, 1, 16, 2)],
            [np.full((7, 4), 0.25), np.full((1, 2), 0.5)],
            [rng.normal(size=(7, 300)), rng.normal(size=(1, 16))],
            tokens=range(7),
        )
        writer.prompt("code")
        for step in range(steps):
            ids = [np.array([[step, 299, 7, -1]]), np.array([[15, step % 15]])]
            writer.append(DECODE, ids, tokens=[100 + step])


def test_what_was_recorded_is_read(tmp_path: Path) -> None:
    """Layers of different sizes, missing rows and weights, prompts and texts survive the file."""
    write_uneven(tmp_path / "t.trace")
    trace = read_trace(tmp_path / "t.trace")
    assert trace.header == UNEVEN
    assert trace.layers == (1, 3) and not trace.cut
    assert trace.phase.tolist() == [PREFILL] * 7 + [DECODE] * 3
    assert trace.batch.tolist() == [0] * 7 + [1, 2, 3]
    assert trace.tokens.tolist() == [*range(7), 100, 101, 102]
    assert [trace.labels[s] for s in trace.segment] == ["prose"] * 7 + ["code"] * 3
    assert trace.token_texts == {5: " the"}
    assert trace.ids(1)[7:].tolist() == [[0, 299, 7, -1], [1, 299, 7, -1], [2, 299, 7, -1]]
    assert (trace.ids(3)[:6] == -1).all() and (trace.ids(3)[6] >= 0).all()
    weights, logits = trace.weights(1), trace.logits(3)
    assert weights is not None and logits is not None
    assert (weights[:7] == 0.25).all() and np.isnan(weights[7:]).all()
    assert np.isnan(logits[:6]).all() and np.isfinite(logits[6]).all()


def test_a_selection_keeps_rows_together(tmp_path: Path) -> None:
    """``select`` cuts every per-token array the same way."""
    write_uneven(tmp_path / "t.trace")
    trace = read_trace(tmp_path / "t.trace")
    part = trace.select(trace.decode)
    assert len(part) == 3 and part.tokens.tolist() == [100, 101, 102]
    assert part.ids(3).tolist() == trace.ids(3)[7:].tolist()
    assert (part.phase == DECODE).all()


def test_every_cut_is_readable_up_to_the_last_whole_step(tmp_path: Path) -> None:
    """A recording that ends at any byte after its header gives the steps that are whole."""
    write_uneven(tmp_path / "t.trace")
    data = (tmp_path / "t.trace").read_bytes()
    start = data.index(b"\n", len(recorder.MAGIC)) + 1
    counts = []
    for end in range(start, len(data) + 1, 11):
        trace = reader.read_binary(data[:end], "t")
        counts.append(len(trace))
        whole = reader.read_binary(data, "t")
        assert (trace.ids(1) == whole.ids(1)[: len(trace)]).all()
    assert counts == sorted(counts)
    assert {0, 7, 8, 9} <= set(counts)


def test_a_killed_recording_has_every_step(tmp_path: Path) -> None:
    """Nothing waits in a buffer: the file is whole after each ``append``, without ``close``."""
    path = tmp_path / "t.trace"
    writer = TraceWriter(path, traces.header())
    for step in range(5):
        writer.append(DECODE, [np.array([[0, 1]])] * 2)
        assert len(read_trace(path)) == step + 1
    writer.close()


def test_a_trace_is_compact_and_private(tmp_path: Path) -> None:
    """The real trace takes less than 1 KB per token with its weights; only the owner may read."""
    trace = read_trace(traces.QWEN3_TRACE)
    path = tmp_path / "t.trace"
    with TraceWriter(path, trace.header) as writer:
        for at in range(28, len(trace)):
            ids = [trace.ids(layer)[at : at + 1] for layer in trace.layers]
            weights = [trace.layer_weights[i][at : at + 1] for i in range(48)]  # type: ignore[index]
            writer.append(DECODE, ids, weights)
    assert path.stat().st_size / 128 < 1000
    assert path.stat().st_mode & 0o777 == 0o600
    again = read_trace(path)
    for layer in trace.layers:
        assert (again.ids(layer) == trace.ids(layer)[28:]).all()
        expected, got = trace.weights(layer), again.weights(layer)
        assert expected is not None and got is not None
        assert np.allclose(got, expected[28:], rtol=1e-3)


@pytest.mark.parametrize(
    "ids",
    [
        [np.array([[0, 1]])],  # a layer too few
        [np.array([[0, 1]]), np.array([[0, 8]])],  # expert 8 of 8
        [np.array([[0, 1]]), np.array([[0, -2]])],
        [np.array([[0, 1]]), np.array([[0, 1, 2]])],  # three slots
        [np.zeros((0, 2), int), np.zeros((0, 2), int)],  # no token
    ],
)
def test_a_wrong_step_is_refused(tmp_path: Path, ids: list[np.ndarray]) -> None:
    """A mistake of the caller never reaches the file."""
    with TraceWriter(tmp_path / "t.trace", traces.header()) as writer:
        with pytest.raises(ValueError):
            writer.append(DECODE, ids)
        writer.append(DECODE, [np.array([[0, 1]])] * 2)
    assert len(read_trace(tmp_path / "t.trace")) == 1


def test_a_trace_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    """No folder, or a full disk: one line with the reason."""
    with pytest.raises(StorageError, match="cannot write the trace"):
        TraceWriter(tmp_path / "none" / "t.trace", traces.header())
    if Path("/dev/full").exists():
        with pytest.raises(StorageError, match="no space"):
            TraceWriter("/dev/full", traces.header())


def test_damaged_traces_end_in_a_typed_error_or_a_valid_read(tmp_path: Path) -> None:
    """2,000 random changes of bytes: never another exception, never an expert out of range."""
    write_uneven(tmp_path / "t.trace", steps=20)
    data = (tmp_path / "t.trace").read_bytes()
    rng = random.Random(3)
    read = 0
    for _ in range(2000):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            trace = reader.read_binary(bytes(changed), "t")
        except TraceFileError:
            continue
        read += 1
        for layer in trace.layers:
            assert trace.ids(layer).max(initial=0) < trace.info(layer).experts
    assert read > 100


def test_a_small_file_cannot_claim_large_arrays() -> None:
    """A step of four billion tokens, or with rows in one layer of many only, costs no memory."""
    layers = [{"index": i, "experts": 255, "used": 250} for i in range(500)]
    layers[0]["used"] = 1
    head = recorder.MAGIC + (
        b'{"weights": false, "layers": ' + str(layers).replace("'", '"').encode() + b"}\n"
    )
    n = 100_000
    rows = struct.pack("<500I", n, *[0] * 499)
    sparse = struct.pack("<IBBH", n, 0, 2, 0) + rows + bytes(n)
    huge = struct.pack("<IBBH", 2**32 - 1, 0, 0, 0)
    tracemalloc.start()
    for step in (sparse, huge):
        with pytest.raises(TraceFileError):
            reader.read_binary(head + struct.pack("<B3xI", ord("S"), len(step)) + step, "t")
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


BIG_MOE_ON_EDGE = """# route_trace v1
# model=/a/b/Some-Model.gguf arch=qwen3moe n_layer=2 n_expert=8 n_expert_used=2
# layer=0 expert_bytes=100 dense_bytes=10
# layer=1 expert_bytes=200 dense_bytes=10
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes,dropped
0,0,0,0,0,3,0.6,0,100,0
0,0,0,0,1,4,0.4,0,100,0
0,0,1,0,0,5,0.7,0,100,0
0,0,1,0,1,6,0.3,0,100,0
0,0,1,1,0,7,nan,0,200,0
0,0,1,1,1,0,nan,0,200,0
0,1,2,0,0,3,0.9,1,0,0
0,1,2,0,1,5,0.1,1,0,0
0,1,2,1,0,1,0.8,0,200,0
0,1,2,1,1,0,0.2,1,0,0
"""


def test_a_trace_of_big_moe_on_edge(tmp_path: Path) -> None:
    """Its preamble, missing rows of the last layer, unknown weights and unknown columns."""
    (tmp_path / "t.csv").write_text(BIG_MOE_ON_EDGE)
    trace = read_trace(tmp_path / "t.csv")
    assert (trace.header.model, trace.header.architecture) == ("Some-Model.gguf", "qwen3moe")
    assert [(e.experts, e.used, e.expert_bytes) for e in trace.header.layers] == [
        (8, 2, 100),
        (8, 2, 200),
    ]
    assert trace.header.dense_bytes == 20
    assert trace.phase.tolist() == [PREFILL, PREFILL, DECODE]
    assert trace.batch.tolist() == [0, 0, 1]
    assert trace.ids(1).tolist() == [[-1, -1], [7, 0], [1, 0]]
    weights = trace.weights(1)
    assert weights is not None
    assert np.isnan(weights[:2]).all() and np.allclose(weights[2], [0.8, 0.2])


def test_the_shared_trace() -> None:
    """Facts of the real trace: 28 prefill and 128 decode tokens, 48 layers, the last one sparse."""
    trace = read_trace(traces.QWEN3_TRACE)
    assert len(trace) == 156 and int(trace.decode.sum()) == 128
    assert trace.layers == tuple(range(48))
    assert {trace.info(layer).experts for layer in trace.layers} == {128}
    assert (trace.ids(47)[:27] == -1).all()
    assert sum((trace.ids(layer) < 0).any() for layer in trace.layers) == 1
    assert {trace.info(layer).expert_bytes for layer in trace.layers} == {3059712, 2654208}


def test_plain_csv(tmp_path: Path) -> None:
    """Layer, expert and a token number are enough; rank is the order of the rows."""
    (tmp_path / "t.csv").write_text(
        "token,layer,expert\n0,4,1\n0,4,9\n1,4,2\n1,4,1\n0,7,3\n1,7,0\n"
    )
    trace = read_trace(tmp_path / "t.csv")
    assert trace.layers == (4, 7)
    assert trace.ids(4).tolist() == [[1, 9], [2, 1]] and trace.ids(7).tolist() == [[3], [0]]
    assert trace.decode.all() and trace.weights(4) is None
    assert trace.info(4).experts == 10


def test_a_csv_step_of_several_tokens(tmp_path: Path) -> None:
    """Slots that start again begin the next token; a layer with fewer computed the last ones."""
    rows = ["phase,step,layer,slot,expert,label"]
    rows += [f"prefill,0,0,{slot},{token * 2 + slot},law" for token in range(3) for slot in (0, 1)]
    rows += ["prefill,0,1,0,5,law", "prefill,0,1,1,4,law", "decode,1,0,0,7,chat"]
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write("\n".join(rows))
    trace = read_trace(tmp_path / "t.csv.gz")
    assert trace.ids(0).tolist() == [[0, 1], [2, 3], [4, 5], [7, -1]]
    assert trace.ids(1).tolist() == [[-1, -1], [-1, -1], [5, 4], [-1, -1]]
    assert trace.labels == ("law", "chat") and trace.segment.tolist() == [0, 0, 0, 1]


def in_order(path: Path, steps: list[list[list[list[int]]]], preamble: str = "") -> Trace:
    """A trace of ``layer,expert`` rows: ``steps[s][layer][token]`` are a token's experts."""
    rows = [
        f"{layer},{expert}"
        for step in steps
        for layer, tokens in enumerate(step)
        for token in tokens
        for expert in token
    ]
    path.write_text("\n".join([*filter(None, [preamble]), "layer,expert", *rows]))
    return read_trace(path)


def test_rows_without_a_step(tmp_path: Path) -> None:
    """``layer,expert`` in the engine's order: a prompt of three tokens, two decoded ones.

    The last layer computes the prompt's last token only, as llama.cpp does.
    """
    steps = [
        [[[0, 3], [1, 2], [3, 0]], [[5, 4]]],
        [[[6, 1]], [[2, 7]]],
        [[[1, 6]], [[7, 2]]],
    ]
    trace = in_order(tmp_path / "t.csv", steps)
    assert trace.ids(0).tolist() == [[0, 3], [1, 2], [3, 0], [6, 1], [1, 6]]
    assert trace.ids(1).tolist() == [[-1, -1], [-1, -1], [5, 4], [2, 7], [7, 2]]
    assert trace.decode.tolist() == [False, False, False, True, True]
    assert len(set(trace.batch.tolist())) == 3
    assert [(layer.used, layer.experts) for layer in trace.header.layers] == [(2, 8)] * 2


@pytest.mark.parametrize("used", [1, 2, 3, 4])
@pytest.mark.parametrize("layers", [1, 3])
def test_experts_per_token_by_order(tmp_path: Path, used: int, layers: int) -> None:
    """Told by what cannot be in one token twice, or by the preamble; for a single layer too."""
    random = np.random.default_rng(used)
    steps = [
        [
            [random.permutation(8)[:used].tolist() for _ in range(5 if number == 0 else 1)]
            for _ in range(layers)
        ]
        for number in range(8)
    ]
    told = in_order(tmp_path / "t.csv", steps, f"# n_expert=8 n_expert_used={used}")
    assert told.header.layers[0].used == used
    if layers > 1:
        found = in_order(tmp_path / "u.csv", steps)
        for layer in range(layers):
            expected = [token for step in steps for token in step[layer]]
            assert told.ids(layer).tolist() == found.ids(layer).tolist() == expected


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffstep,layer,expert\n0,0,1\n0,0,3\n1,0,2\n1,0,0\n",
        '\ufeff# n_expert_used=2\r\n"step";"layer";"expert"\r\n'
        "0;0;1\r\n0;0;3\r\n1;0;2\r\n1;0;0\r\n",
        "step\tlayer\texpert\n0\t0\t1\n0\t0\t3\n1\t0\t2\n1\t0\t0\n",
    ],
)
def test_how_spreadsheets_write_csv(tmp_path: Path, content: str) -> None:
    """With a byte order mark, quotes, semicolons, tabs: the same trace."""
    (tmp_path / "t.csv").write_text(content, encoding="utf-8", newline="")
    trace = read_trace(tmp_path / "t.csv")
    assert trace.ids(0).tolist() == [[1, 3], [2, 0]]
    assert trace.decode.all()


def test_too_many_rows_are_counted_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused without a look at a single row, in a plain file and in a compressed one."""
    monkeypatch.setattr(trace_module, "MAX_ROWS", 1000)
    monkeypatch.setattr(trace_module, "MAX_PREAMBLE", 10)
    monkeypatch.setattr(trace_module, "read_csv", None)
    content = "layer,expert\n" + "0,1\n" * 2000
    (tmp_path / "t.csv").write_text(content)
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write(content)
    for name in ("t.csv", "t.csv.gz"):
        with pytest.raises(TraceFileError, match="more than 1,000 rows"):
            read_trace(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"GGUF\x03\0\0\0\0\0", "not a routing trace"),
        (b"a,b,c\n1,2,3\n", "no columns named layer and expert"),
        (b"layer,expert\n", "no rows"),
        (b"layer,expert\n0,x\n", "line 2"),
        (b"layer,expert\n0\n", "line 2"),
        (b"layer,expert\n0,-1\n", "cannot be"),
        (b"layer,expert\n0,99999\n", "cannot be"),
        (b"layer,expert\n9999999,1\n", "cannot be"),
        (b"layer,expert,slot\n0,1,2000000000\n", "cannot be"),
        (b"layer,expert,slot\n0,1,30000\n1,1,20000\n", "missing"),
        (b"layer,expert,phase\n0,1,7\n", "line 2"),
        (b"layer,expert,weight\n0,1," + b"9" * 9000 + b"\n", "too long"),
        (b"# n_expert=4\nlayer,expert\n0,9\n", "it names expert 9"),
        (b"\x1f\x8b\x08\0garbage", "damaged"),
        (gzip.compress(b"layer,expert\n0,1\n", mtime=0)[:-9], "damaged"),
        (recorder.MAGIC + b"{}", "not a trace"),
        (recorder.MAGIC + b"{}\n", "header"),
        (recorder.MAGIC + b"[" * 100_000 + b"\n", "JSON"),
        (recorder.MAGIC + b'{"layers": []}\n', "0 layers"),
        (recorder.MAGIC + b'{"layers": [{"index": 0, "experts": 2, "used": 3}]}\n', "3 of 2"),
    ],
)
def test_what_is_no_trace_is_a_typed_error(tmp_path: Path, content: bytes, reason: str) -> None:
    """Whatever the file holds, the reason is named in one line."""
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(TraceFileError, match=reason) as caught:
        read_trace(path)
    assert "\n" not in caught.value.message


def test_a_missing_trace_and_a_folder(tmp_path: Path) -> None:
    """The hint names the command that writes a trace."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(TraceFileError, match="cannot read the trace") as caught:
            read_trace(path)
        assert caught.value.hint is not None and "record" in caught.value.hint


def test_a_compressed_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks to more than the limit is not unpacked."""
    from localmoe.routing import trace as module

    monkeypatch.setattr(module, "MAX_UNPACKED", 10_000)
    (tmp_path / "t.gz").write_bytes(gzip.compress(b"\n" * 20_000))
    with pytest.raises(TraceFileError, match="unpacks to more"):
        read_trace(tmp_path / "t.gz")


def test_a_step_in_which_only_the_last_token_was_routed(tmp_path: Path) -> None:
    """A model whose one MoE layer is the last computes no other token of a prompt there."""
    with TraceWriter(tmp_path / "t.trace", traces.header(1)) as writer:
        writer.append(PREFILL, [np.array([[3, 4]])], tokens=[7, 8, 9])
    trace = read_trace(tmp_path / "t.trace")
    assert trace.ids(0).tolist() == [[-1, -1], [-1, -1], [3, 4]]
    assert trace.tokens.tolist() == [7, 8, 9]


def test_prompts_are_named_afterwards(tmp_path: Path) -> None:
    """Each prompt begins with its prefill; what it says and what was written stay as they were."""
    write_uneven(tmp_path / "t.trace")
    trace = read_trace(tmp_path / "t.trace")
    with TraceWriter(tmp_path / "two.trace", trace.header) as writer:
        for phase, n in ((PREFILL, 3), (PREFILL, 2), (DECODE, 1), (DECODE, 1), (PREFILL, 4)):
            ids = [np.full((n, 4), n), np.full((n, 2), n)]
            writer.append(phase, ids, tokens=range(n))
    two = read_trace(tmp_path / "two.trace")
    named = rewrite.name_prompts(two, [rewrite.Prompt("law", 5), rewrite.Prompt("code", 4)])
    assert [named.labels[s] for s in named.segment] == ["law"] * 7 + ["code"] * 4
    rewrite.write_trace(tmp_path / "again.trace", replace(named, token_texts={1: "x"}))
    again = read_trace(tmp_path / "again.trace")
    assert [again.labels[s] for s in again.segment] == ["law"] * 7 + ["code"] * 4
    assert again.token_texts == {1: "x"} and again.batch.tolist() == two.batch.tolist()
    assert again.ids(1).tolist() == two.ids(1).tolist()


def test_rewriting_changes_nothing(tmp_path: Path) -> None:
    """The real trace, missing rows and all, is the same in localmoe's format."""
    trace = read_trace(traces.QWEN3_TRACE)
    rewrite.write_trace(tmp_path / "t.trace", trace)
    again = read_trace(tmp_path / "t.trace")
    assert all((again.ids(layer) == trace.ids(layer)).all() for layer in trace.layers)
    assert again.header == trace.header and again.labels == trace.labels
    assert (again.phase == trace.phase).all() and (again.batch == trace.batch).all()


@pytest.mark.process
def test_texts_of_tokens(arch_file: Callable[..., Path]) -> None:
    """What the engine's tokenizer cut a prompt into reads as the prompt again.

    A character cut in two is shown as two unknown ones: each token is told by itself.
    """
    model = read_model(arch_file("qwen3moe"))
    text = "Hello, world\nö"
    ids = plain_greedy(arch_file("qwen3moe"), text, 1).prompt_tokens
    texts = token_texts(model, ids)
    assert len(texts) == len(set(ids))
    assert "".join(texts[i] for i in ids).endswith("Hello, world\n\ufffd\ufffd")


def test_a_dense_model_has_no_header(arch_file: Callable[..., Path]) -> None:
    """Recording a model without experts is refused; an MTP layer is left out of the header."""
    with pytest.raises(TraceFileError, match="no experts"):
        TraceHeader.of_model(read_model(arch_file("llama-dense")))
    header = TraceHeader.of_model(read_model(arch_file("glm4moe")))
    assert [layer.index for layer in header.layers] == [1, 2]
    assert all(layer.expert_bytes > 0 for layer in header.layers)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_csv_in_other_encodings_and_words(encoding: str, tmp_path: Path) -> None:
    """What spreadsheets call Unicode text, with the column names of other programs."""
    rows = [f"{step}|{layer}|{expert}" for step in (0, 1) for layer in (0, 1) for expert in (3, 5)]
    text = "\n".join(["token_idx|layer_id|Expert_Index", *rows])
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path = tmp_path / "t.csv"
    path.write_bytes((mark + text).encode(encoding))
    trace = read_trace(path)
    assert len(trace) == 2 and len(trace.header.layers) == 2
