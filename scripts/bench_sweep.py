"""``localmoe bench`` as the tables of docs need it: in pieces, or with predictions imposed.

    python scripts/bench_sweep.py q24.gguf --memory 0.4x --regimes plain,auto --plain-tokens 32
    python scripts/bench_sweep.py q24.gguf --sweep --log q24.jsonl --at-most 8   # again and again
    python scripts/bench_sweep.py q24.gguf --replay TRACE --regimes auto --predicted 0.886

Takes every option of ``localmoe bench``, and its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.cli.arguments import parse
from localmoe.cli.bench.command import measure, measurement_of
from localmoe.cli.config.defaults import configured
from localmoe.cli.option_types import MAX_INT, number, whole
from localmoe.cli.output import Output
from localmoe.errors import LocalmoeError, UsageError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--plain-tokens", type=whole(1, MAX_INT), help="plain mapping writes only so many tokens"
    )
    parser.add_argument(
        "--predicted",
        type=number(0, 1),
        default=0.0,
        metavar="X",
        help="of an imposed routing, predict the next layer's experts with accuracy X (0: do not)",
    )
    parser.add_argument(
        "--at-most", type=whole(0, MAX_INT), help="stop after so many runs; --log keeps them"
    )
    own, rest = parser.parse_known_args(arguments)
    output = Output(as_json="--json" in rest, lines="--jsonl" in rest, quiet="--quiet" in rest)
    try:
        options = configured(parse(["bench", *rest]))
        if own.predicted and not options.replay:
            raise UsageError("--predicted is about an imposed routing", hint="with --replay TRACE")
        if own.at_most is not None and options.tune is None:
            options = dataclasses.replace(options, tune=0.0)  # a piece is no place to look for more
        asked = dataclasses.replace(
            measurement_of(options), plain_steps=own.plain_tokens, predicted=own.predicted
        )
        return measure(asked, options, output, at_most=own.at_most)
    except LocalmoeError as error:
        output.error(error)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
