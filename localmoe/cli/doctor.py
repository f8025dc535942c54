"""``doctor``: what this machine and this engine build are, and what to type about each finding."""

from __future__ import annotations

import sys
from dataclasses import asdict

from localmoe import __version__, storage
from localmoe.app.diagnosis import diagnose
from localmoe.app.machine_file import machine_document
from localmoe.app.rates import key_of
from localmoe.cli import render
from localmoe.cli.arguments import Options, no_words
from localmoe.cli.output import Output
from localmoe.cli.requests import plan_request
from localmoe.facts import bandwidth, catalog


def doctor_command(options: Options, output: Output) -> int:
    """Exit code 1 when the engine does not work, else 0."""
    no_words(options)
    found = diagnose(plan_request(options), output, measure=options.measure)
    if not output.as_json:
        output.print(render.doctor_screen([(f.area, f.text, f.fix) for f in found.findings]))
        return 0 if found.engine else 1
    rates = bandwidth.to_json(found.rates) if found.rates else None
    output.json(
        {
            "version": __version__,
            "python": sys.version.split()[0],
            "machine": machine_document(found.machine)
            | {"rates": rates, "key": key_of(found.machine)},
            "engine": asdict(found.engine) if found.engine else None,
            "paths": {
                "models": str(storage.models_dir()),
                "cache": str(storage.cache_dir()),
                "hub_cache": str(catalog.hub_cache()),
                "bundled": str(catalog.models_package()),
            },
            "findings": [asdict(finding) for finding in found.findings],
        }
    )
    return 0 if found.engine else 1
