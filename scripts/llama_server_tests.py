"""llama.cpp's own tests of its server, from the engine's source package, run against ours.

    python -m scripts.llama_server_tests > docs/llama-server-tests.md [-- PYTEST_OPTION …]

The tests start the program that ``LLAMA_SERVER_BIN_PATH`` names: here it is this script, which
starts ``localmoe serve`` with what the options of llama-server mean for it. Their model is not at
hand, so the bundled model answers; where a test brings a chat template, a small generated model has
it. Paths without ``/v1`` are asked for with it. Every test that does not pass has a reason in
``REASONS``; one without is an error, and so is a reason for a test that passes. What only
llama-server has, or a model from the network, is not started.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.engine_source import archive

ROOT = Path(__file__).resolve().parents[1]
SUITE, TEMPLATES = "/llama.cpp/tools/server/tests/", "/llama.cpp/models/templates/"
TEST_MODEL = "ggml-org/test-model-stories260K"
FILES = (
    "basic",
    "chat_completion",
    "compat_anthropic",
    "compat_oai_responses",
    "completion",
    "ctx_shift",
    "ignore_eos",
    "metrics",
    "security",
    "sleep",
    "template",
    "tokenize",
    "tool_call",
)
LEFT_OUT = {
    "embedding, rerank, vision_api": "models of other kinds",
    "infill, lora, speculative, slot_save, kv_keep_only_active": "what llama-server alone has",
    "mcp_servers, proxy, tools_builtin, stream, compat_gcp": "the same: its web page's tools",
    "router": "models by their names on a hub that is not at hand; tests/server/test_models.py",
}
OWN = "llama-server's own paths, fields and options: `/completion`, `/props`, `grammar` and others"
WORDS = "rests on the words, tokens or template of llama.cpp's test model"
ROLE = 'the first chunk has `"content": ""`, as OpenAI sends it, and not null'
OTHER_MODEL = "needs a model from the network"
STATUS = "wants a 500 for an image; it is a 400 here, since the request is to blame"
OPPOSITE = "wants every origin to be let in, which is what a hostile page would like"
GIVEN = (
    "llama.cpp gives templates `enable_thinking` or today's date unasked; here they get what was "
    "asked for, as from Hugging Face's library"
)
REASONS: Mapping[str, str] = {  # the first that matches
    "basic::load_split_model": OTHER_MODEL,
    "basic::server_start_simple": "",
    "basic::*": OWN,
    "chat_completion::apply_chat_template": OWN,
    "chat_completion::chat_completion_cached_tokens": WORDS,
    "chat_completion::chat_completion_with_openai_library": WORDS,
    "chat_completion::chat_completion_with_timings_per_token": ROLE,
    "chat_completion::chat_completion_stream*": ROLE,
    "chat_completion::chat_completion[[]*": WORDS,
    "chat_completion::chat_template*": OWN,
    "chat_completion::completion_with_grammar*": OWN,
    "chat_completion::completion_with_invalid_grammar": OWN,
    "chat_completion::context_size_exceeded*": (
        "wants an error type of its own; here it has OpenAI's code, `context_length_exceeded`"
    ),
    "chat_completion::logprobs_stream": ROLE,
    "chat_completion::return_progress*": WORDS,
    "chat_completion::verbose_debug": OWN,
    "compat_anthropic::anthropic_messages_basic": "wants no `timings`; they are part of it here",
    "compat_anthropic::anthropic_empty_messages": "wants an answer to nothing; here it is a 400",
    "compat_anthropic::anthropic_tool_result_with_image": STATUS,
    "compat_anthropic::anthropic_vision_format_accepted": STATUS,
    "compat_anthropic::anthropic_vision_base64*": OTHER_MODEL,
    "compat_oai_responses::responses_stream_with_llama_telemetry": OWN,
    "compat_oai_responses::responses_stream_with_openai_library": "",
    "compat_oai_responses::*": WORDS,
    "completion::completion_with_openai_library": WORDS,
    "completion::completion_stream_with_openai_library": WORDS,
    "completion::completion_stream_with_openai_library_stops": "",
    "completion::*": OWN,
    "ctx_shift::*": OWN,
    "ignore_eos::*": OWN,
    "metrics::*": OWN,
    "security::access_public_endpoint*": "",
    "security::incorrect_api_key*": "",
    "security::cors_options*": OPPOSITE,
    "security::local_media_file*": OTHER_MODEL,
    "security::openai_library_correct_api_key": "asks at an address without `/v1`",
    "security::*": OWN,
    "sleep::*": OWN,
    "template::add_generation_prompt*False*": OWN,
    "template::date_inside_prompt*": GIVEN,
    "template::reasoning[[]*-off-*": "",
    "template::reasoning[[]Qwen-Qwen3*": "",
    "template::reasoning[[]*": GIVEN,
    "tokenize::tokenize_with_bos": WORDS,
    "tool_call::*STREAMED*": ROLE,
}
PATIENCE = 600  # seconds for a start; a test has twice as many
ALIASES = ("/chat/completions", "/completions", "/responses", "/models")
NOT_STARTED = (OWN, OTHER_MODEL)
CONFTEST = """
import sys, types
sys.modules["wget"] = types.ModuleType("wget")
import os, pytest, utils
from scripts.llama_server_tests import NOT_STARTED, name_of, reason_of

def pytest_collection_modifyitems(items):
    for item in items:
        why = reason_of(name_of(item.module.__name__, item.name))
        if why in NOT_STARTED:
            item.add_marker(pytest.mark.skip(reason=why))

@pytest.fixture(autouse=True)
def servers_end():
    yield
    for server in set(utils.server_instances):
        server.stop()

plain_start = utils.ServerProcess.start
def start(self, timeout_seconds={patience}):
    self.server_port = 8180 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    plain_start(self, max(timeout_seconds, {patience}))  # a busy machine starts slowly
utils.ServerProcess.start = start

plain = utils.ServerProcess.make_url
def make_url(self, path, host=None):
    return plain(self, "/v1" + path if path.startswith({aliases}) else path, host)
utils.ServerProcess.make_url = make_url
"""


def serve_arguments(given: Sequence[str], model_with: Mapping[str, str] | None = None) -> list[str]:
    """What ``localmoe serve`` is told for llama-server's options. Raises SystemExit for others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("port", "host", "temp", "seed", "api-key", "ctx-size", "n-predict", "batch-size"):
        parser.add_argument(f"--{name}")
    for name in ("hf-repo", "alias", "chat-template-file", "reasoning", "sleep-idle-seconds"):
        parser.add_argument(f"--{name}")
    for name in ("ubatch-size", "parallel", "threads", "hf-file", "reasoning-format"):
        parser.add_argument(f"--{name}")  # of no consequence here
    for name in ("offline", "metrics", "slots", "no-slots", "jinja", "no-jinja", "verbose"):
        parser.add_argument(f"--{name}", action="store_true")
    asked, unknown = parser.parse_known_args(list(given))
    if unknown or asked.hf_repo != TEST_MODEL:
        raise SystemExit(f"not here: {' '.join(unknown) or asked.hf_repo}")
    model = (model_with or {}).get(asked.chat_template_file, "nano")
    options = {
        "--port": asked.port,
        "--host": asked.host,
        "--temp": asked.temp,
        "--seed": asked.seed,
        "--api-key": asked.api_key,
        "--ctx": asked.ctx_size,
        "--max-tokens": asked.n_predict,
        "--batch": asked.batch_size,
        "--idle": asked.sleep_idle_seconds and f"{asked.sleep_idle_seconds}s",
        "--think": "off" if asked.reasoning == "off" else None,
    }
    named = [f"--alias={name}={model}" for name in (asked.alias or "").split(",") if name]
    return [model, *(text for pair in options.items() if pair[1] for text in pair), *named]


def run_as_llama_server(given: Sequence[str]) -> None:
    """Become ``localmoe serve``."""
    template = given[given.index("--chat-template-file") + 1] if _has_template(given) else None
    models = {} if template is None else {template: str(_model_with(Path(template)))}
    arguments = [sys.executable, "-m", "localmoe", "serve", *serve_arguments(given, models)]
    os.execv(sys.executable, arguments)


def _has_template(given: Sequence[str]) -> bool:
    return "--chat-template-file" in given


def _model_with(template: Path) -> Path:
    """A small model that has this chat template."""
    from tests.archs import generate

    folder = Path(tempfile.mkdtemp(prefix="template-", dir=os.environ["SUITE_FOLDER"]))
    return generate("qwen3moe", folder, template=template.read_text(encoding="utf-8"))


def unpack(folder: Path) -> Path:
    """The suite and the templates, below ``folder``; returns the suite's folder."""
    with tarfile.open(archive()) as files:
        members = [m for m in files if SUITE in m.name or TEMPLATES in m.name]
        files.extractall(folder, members, filter="data")
    (suite,) = folder.glob(f"*/vendor{SUITE}")
    (suite / "conftest.py").write_text(
        CONFTEST.replace("{aliases}", repr(ALIASES)).replace("{patience}", str(PATIENCE))
    )
    return suite


def name_of(module: str, test: str) -> str:
    """``chat_completion::logprobs``, with its parameters."""
    return f"{module.rpartition('test_')[2]}::{test.removeprefix('test_')}"


def outcomes(report: Path) -> dict[str, str]:
    """Test → "passed", or the first line of why not; what skips itself is left out."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = name_of(case.get("classname", ""), case.get("name", ""))
        problems = [case.find(kind) for kind in ("error", "failure", "skipped")]
        said = [p.get("message") or "" for p in problems if p is not None]
        found[name] = said[0].partition("\n")[0][:160] if said else "passed"
        if case.find("skipped") is not None and not reason_of(name):
            del found[name]
    return found


def reason_of(name: str) -> str:
    """Why this test does not pass here; "": it should."""
    return next((why for test, why in REASONS.items() if fnmatch.fnmatch(name, test)), "")


def page(found: Mapping[str, str]) -> str:
    """The results as Markdown."""
    passed = [name for name, how in found.items() if how == "passed"]
    idle = sum(reason_of(name) in NOT_STARTED for name in found)
    lines = [
        "# llama.cpp's own server tests, against `localmoe serve`",
        "",
        "Written by `python -m scripts.llama_server_tests`, which says how they are run.",
        f"{len(passed)} of {len(found)} pass; {idle} need what only llama-server has, or a model",
        "from the network, and are not started.",
        "",
        "| file | pass | do not |",
        "|---|---|---|",
    ]
    for file in FILES:
        own = [name for name in found if name.startswith(f"{file}::")]
        good = sum(found[name] == "passed" for name in own)
        lines.append(f"| test_{file}.py | {good} | {len(own) - good} |")
    lines += ["", "## Which pass", ""]
    lines += [f"- {name.replace('::', ': ')}" for name in _shortened(passed)]
    lines += ["", "## Why the others do not", "", "| reason | tests |", "|---|---|"]
    failed = [name for name, how in found.items() if how != "passed"]
    for why in dict.fromkeys(map(reason_of, failed)):
        names = _shortened([name for name in failed if reason_of(name) == why])
        lines.append(f"| {why} | {', '.join(names)} |")
    lines += ["", "Not run at all:", ""]
    lines += [f"- {files}: {why}" for files, why in LEFT_OUT.items()]
    return "\n".join(lines) + "\n"


def _shortened(names: Sequence[str]) -> list[str]:
    """Tests without their parameters, and how many cases each has."""
    bare = [name.partition("[")[0] for name in names]
    counts = {name: bare.count(name) for name in bare}
    return [name if count == 1 else f"{name} ({count} cases)" for name, count in counts.items()]


def run(folder: Path, more: Sequence[str]) -> dict[str, str]:
    """Run the suite; test → outcome."""
    suite, report = unpack(folder), folder / "report.xml"
    program = folder / "llama-server"
    program.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m scripts.llama_server_tests --as-llama-server "$@"\n'
    )
    program.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    environment = {
        **os.environ,
        "HOME": str(home),
        "LLAMA_SERVER_BIN_PATH": str(program),
        "SUITE_FOLDER": str(folder),
        "PYTHONPATH": str(ROOT),
    }
    tests = [f"unit/test_{name}.py" for name in FILES]
    options = ["-m", "not slow", "-q", f"--timeout={2 * PATIENCE}", f"--junit-xml={report}", *more]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, *tests]
    subprocess.run(command, cwd=suite, env=environment, stdout=sys.stderr, check=False)
    return outcomes(report)


def main() -> int:
    if "--as-llama-server" in sys.argv:
        run_as_llama_server(sys.argv[sys.argv.index("--as-llama-server") + 1 :])
    more = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    with tempfile.TemporaryDirectory(prefix="localmoe-suite-") as folder:
        found = run(Path(folder), more)
    print(page(found))
    wrong = [f"{n}: {how}" for n, how in found.items() if (how == "passed") == bool(reason_of(n))]
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
