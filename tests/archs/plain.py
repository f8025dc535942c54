"""Greedy generation with nothing but the engine's low-level binding: the reference for identity.

``plain_greedy`` runs in a child process, since a failed assertion of the engine aborts. As a
program of ``tests.forked`` it reads the request from standard input as JSON and writes the answer
as JSON.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests import forked

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
LOAD_MODES = {"none": 0, "mmap": 1}


@dataclass(frozen=True, slots=True)
class Request:
    """What to run. ``splits``: prompt positions where a new prefill batch begins."""

    path: str
    prompt: str | list[int]
    n: int
    n_ctx: int = 512
    n_batch: int = 64
    n_ubatch: int = 0  # 0: n_batch
    threads: int = 1
    splits: list[int] | None = None
    type_k: int | None = None  # enum ggml_type; None: the engine's default
    type_v: int | None = None
    swa_full: bool = False
    flash_attn: str = "auto"
    load_mode: str = "mmap"
    repack: bool = False  # llama.cpp's own default is True
    n_gpu_layers: int = 0
    tensor_split: list[float] | None = None  # shares of the devices; None: by what is free
    rpc_library: str | None = None  # libggml-rpc.so
    rpc_endpoint: str | None = None  # "127.0.0.1:50052": its device is used with n_gpu_layers
    experts_on_cpu: str | None = None  # regex of tensors kept in host memory
    module: str | None = None  # a backend in a file; its devices are used with n_gpu_layers


@dataclass(frozen=True, slots=True)
class Answer:
    """``tokens``: the greedy continuation. ``digest``: SHA-256 over every step's logits."""

    tokens: list[int]
    text: str
    prompt_tokens: list[int]
    digest: str
    finite: bool
    devices: list[str]
    buffers: dict[str, float]  # buffer type → MiB of weights in it, as the engine reports


class PlainRunError(Exception):
    """The child failed; the message ends with what it wrote to standard error."""


def plain_greedy(
    path: Path | str,
    prompt: str | Sequence[int],
    n: int,
    *,
    timeout: float = 120.0,
    **options: Any,
) -> Answer:
    """``n`` greedy tokens (end-of-turn does not stop it) after ``prompt``, in a child process.

    ``options`` are the other fields of ``Request``.

    Raises:
        PlainRunError: the engine refused the file or died.
    """
    words = prompt if isinstance(prompt, str) else list(prompt)
    request = Request(str(path), words, n, **options)
    child = forked.answer("tests.archs.plain", json.dumps(asdict(request)), timeout)
    if child.returncode:
        raise PlainRunError(f"exit {child.returncode}: {child.stderr[-2000:]}")
    return Answer(**json.loads(child.stdout))


def low_level() -> Any:
    """``llama_cpp.llama_cpp`` without the package's ``__init__``, whose imports take 0.3 s."""
    if "llama_cpp" not in sys.modules:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("llama-cpp-python is not installed")
        sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("llama_cpp.llama_cpp")


def ggml_library(llama: Any, name: str = "ggml") -> ctypes.CDLL:
    """A sibling library; libllama is linked to the ``.so.0`` copies, others have own registries."""
    return ctypes.CDLL(str(Path(llama._lib._name).parent / f"lib{name}.so.0"))


def run(request: Request) -> Answer:
    """Runs ``request`` in this process; may abort it."""
    llama = low_level()
    log = _capture_log(llama)
    ggml = ggml_library(llama)
    if not ggml.ggml_backend_reg_count():  # an engine for any processor, which chooses its backend
        ggml.ggml_backend_load_all_from_path(str(Path(llama._lib._name).parent).encode())
    llama.llama_backend_init()
    if request.module:
        ggml.ggml_backend_load.restype = ctypes.c_void_p
        if not ggml.ggml_backend_load(request.module.encode()):
            raise ImportError(request.module)
    if request.rpc_library and request.rpc_endpoint:
        add_rpc_server(ggml, request.rpc_library, request.rpc_endpoint)
    model = _load(llama, request)
    context = _context(llama, model, request)
    vocab = llama.llama_model_get_vocab(model)
    size = llama.llama_vocab_n_tokens(vocab)
    prompt = request.prompt
    if isinstance(prompt, str):
        prompt = _tokenize(llama, vocab, prompt)
    digest = hashlib.sha256()
    tokens: list[int] = []
    finite = True
    for batch in _batches(prompt, request):
        _decode(llama, context, batch)
    while True:
        logits = llama.llama_get_logits_ith(context, -1)
        row = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * size)).contents
        digest.update(bytes(row))
        values = list(row)
        finite = finite and all(abs(v) < 1e30 for v in values)  # also false for NaN
        tokens.append(max(range(size), key=values.__getitem__))
        if len(tokens) == request.n:
            break
        _decode(llama, context, tokens[-1:])
    return Answer(
        tokens,
        _detokenize(llama, vocab, tokens),
        prompt,
        digest.hexdigest(),
        finite,
        device_names(ggml),
        {name: float(size) for name, size in _MODEL_BUFFER.findall("".join(log))},
    )


_MODEL_BUFFER = re.compile(r"(\S+) model buffer size = +([\d.]+) MiB")
_keep_alive: list[Any] = []


def _capture_log(llama: Any) -> list[str]:
    """The engine's log, still written to standard error as well."""
    lines: list[str] = []

    def write(_level: int, text: bytes, _user: object) -> None:
        lines.append(text.decode(errors="replace"))
        sys.stderr.write(lines[-1])

    callback = llama.llama_log_callback(write)
    _keep_alive.append(callback)
    llama.llama_log_set(callback, None)
    return lines


def add_rpc_server(ggml: ctypes.CDLL, library: str, endpoint: str) -> None:
    """Registers the devices of a running RPC server with the engine's device registry.

    Raises:
        ConnectionError: no server answers at ``endpoint``.
    """
    rpc = ctypes.CDLL(library)
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
    registry = rpc.ggml_backend_rpc_add_server(endpoint.encode())
    if not registry:
        raise ConnectionError(f"no RPC server at {endpoint}")
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    ggml.ggml_backend_register(registry)


def device_names(ggml: ctypes.CDLL) -> list[str]:
    """The engine's devices by name, in its order."""
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_name.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_name.argtypes = [ctypes.c_void_p]
    return [
        ggml.ggml_backend_dev_name(ggml.ggml_backend_dev_get(i)).decode()
        for i in range(ggml.ggml_backend_dev_count())
    ]


class _Override(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p)]


def _load(llama: Any, request: Request) -> Any:
    params = llama.llama_model_default_params()
    params.use_extra_bufts = request.repack
    params.load_mode = LOAD_MODES[request.load_mode]
    params.n_gpu_layers = request.n_gpu_layers
    if request.tensor_split:
        shares = [*request.tensor_split, *[0.0] * llama.llama_max_devices()]
        params.tensor_split = split = (ctypes.c_float * len(shares))(*shares)
        _keep_alive.append(split)
    if request.experts_on_cpu:
        base = ggml_library(llama, "ggml-base")
        base.ggml_backend_cpu_buffer_type.restype = ctypes.c_void_p
        overrides = (_Override * 2)(
            _Override(request.experts_on_cpu.encode(), base.ggml_backend_cpu_buffer_type())
        )
        params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    model = llama.llama_model_load_from_file(request.path.encode(), params)
    if not model:
        raise SystemExit("the engine refused the model")
    return model


def _context(llama: Any, model: Any, request: Request) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx = request.n_ctx
    params.n_batch = request.n_batch
    params.n_ubatch = request.n_ubatch or request.n_batch
    params.n_threads = params.n_threads_batch = request.threads
    params.swa_full = request.swa_full
    params.flash_attn_type = FLASH_ATTENTION[request.flash_attn]
    if request.type_k is not None:
        params.type_k = request.type_k
    if request.type_v is not None:
        params.type_v = request.type_v
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("the engine refused the context")
    return context


def _batches(prompt: list[int], request: Request) -> list[list[int]]:
    starts = request.splits
    if starts is None:
        starts = list(range(request.n_batch, len(prompt), request.n_batch))
    edges = [0, *starts, len(prompt)]
    return [prompt[a:b] for a, b in itertools.pairwise(edges)]


def _decode(llama: Any, context: Any, tokens: list[int]) -> None:
    array = (llama.llama_token * len(tokens))(*tokens)
    status = llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens)))
    if status:
        raise SystemExit(f"llama_decode returned {status}")


def _tokenize(llama: Any, vocab: Any, text: str) -> list[int]:
    raw = text.encode()
    array = (llama.llama_token * (len(raw) + 2))()
    count = llama.llama_tokenize(vocab, raw, len(raw), array, len(array), True, True)
    return list(array[:count])


def _detokenize(llama: Any, vocab: Any, tokens: list[int]) -> str:
    pieces = []
    for token in tokens:
        buffer = ctypes.create_string_buffer(256)
        count = llama.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, True)
        pieces.append(buffer.raw[:count])
    return b"".join(pieces).decode(errors="replace")


def ready() -> None:
    low_level()


def main() -> None:
    print(json.dumps(asdict(run(Request(**json.load(sys.stdin))))))
