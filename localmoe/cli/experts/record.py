"""``experts record``: run prompts and write down what the routers chose."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from localmoe import storage
from localmoe.app import trace_documents as documents
from localmoe.app.model import LoadedModel
from localmoe.app.outputs import TRACE, check_output
from localmoe.app.prompts import Question, questions_of
from localmoe.chat.events import TurnDone
from localmoe.cli import loaded
from localmoe.cli.arguments import Options
from localmoe.cli.output import Output
from localmoe.errors import INTERRUPTED
from localmoe.facts import catalog
from localmoe.facts.model import Model
from localmoe.routing.rewrite import Prompt, name_prompts, write_trace
from localmoe.routing.token_texts import token_texts
from localmoe.routing.trace import Trace, read_trace
from localmoe.terminal.live_line import LiveLine
from localmoe.text import clean_line, counted, format_size

WRITTEN = 32  # tokens per prompt, unless -n says otherwise


def record_command(words: Sequence[str], options: Options, output: Output) -> int:
    """Exit code 0, or 130 when it was interrupted: what was recorded until then is kept."""
    name, prompt = _model_and_prompt(words, options)
    questions = questions_of(prompt, options.files, options.domains)
    with tempfile.TemporaryDirectory(prefix="localmoe-") as folder:
        raw = Path(folder) / "raw.trace"
        asked = dataclasses.replace(
            options,
            model=name,
            trace=str(raw),
            logits=True,
            max_tokens=options.max_tokens if options.max_tokens is not None else WRITTEN,
        )
        with loaded.open_model(name, asked, output) as model:
            out = output_path(options, model.facts)
            loaded.load(model, output)
            done, interrupted = _ask(model, asked, questions, output)
        trace = name_prompts(read_trace(raw), done)
    texts = token_texts(model.facts, {int(token) for token in trace.tokens if token >= 0})
    write_trace(out, dataclasses.replace(trace, token_texts=texts))
    _tell(out, trace, len(done), len(questions), output)
    return INTERRUPTED if interrupted else 0


def output_path(options: Options, model: Model) -> Path:
    """Where the trace goes. Raises UsageError where that would destroy something."""
    path = storage.user_path(options.output or f"{Path(model.name).name}.trace")
    check_output(path, TRACE, [*model.paths, *map(storage.user_path, options.files)])
    return path


def _model_and_prompt(words: Sequence[str], options: Options) -> tuple[str | None, str]:
    if options.model is not None:
        return options.model, " ".join(words)
    if words and (catalog.looks_like_model(words[0]) or len(words) == 1):
        return words[0], " ".join(words[1:])
    return None, " ".join(words)


def _ask(
    model: LoadedModel, options: Options, questions: Sequence[Question], output: Output
) -> tuple[list[Prompt], bool]:
    """Ask each question in a conversation of its own.

    Returns the label and the number of computed tokens of each prompt, and whether Ctrl-C came.
    """
    done: list[Prompt] = []
    with loaded.stoppable(model, output) as pressed, LiveLine(output.stderr) as line:
        for number, question in enumerate(questions, 1):
            if not output.quiet:
                line.show(f"recording {number} of {len(questions)} · {clean_line(question.label)}")
            conversation = loaded.conversation(model, options, output)
            for event in conversation.ask(question.text):
                if isinstance(event, TurnDone):
                    usage = event.usage
                    done.append(Prompt(question.label, usage.prompt_tokens - usage.reused_tokens))
            if pressed.count:
                return done, True
    return done, False


def _tell(out: Path, trace: Trace, done: int, asked: int, output: Output) -> None:
    size = out.stat().st_size
    if output.as_json:
        output.json(
            {
                "path": str(out),
                "bytes": size,
                "prompts": done,
                "trace": documents.trace_document(trace),
            }
        )
        return
    decoded = int(trace.decode.sum())
    of = "" if done == asked else f" of {asked}"
    output.note(
        f"{out}: {done}{of} {'prompt' if asked == 1 else 'prompts'}, "
        f"{counted(len(trace) - decoded, 'token')} read, {decoded:,} written, "
        f"{format_size(size)}"
    )
    output.note(f"`localmoe experts show {out}` shows the load")
