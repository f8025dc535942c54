"""``doctor``: what this machine and this engine build are, and what to type about each finding."""

from __future__ import annotations

from localmoe.app.diagnosis import diagnose, diagnosis_document
from localmoe.cli import render
from localmoe.cli.arguments import Options, no_words
from localmoe.cli.output import Output
from localmoe.cli.requests import plan_request


def doctor_command(options: Options, output: Output) -> int:
    """Exit code 1 when the engine does not work, else 0."""
    no_words(options)
    found = diagnose(plan_request(options), output, measure=options.measure)
    if output.as_json:
        output.json(diagnosis_document(found))
    else:
        output.print(render.doctor_screen([(f.area, f.text, f.fix) for f in found.findings]))
    return 0 if found.engine else 1
