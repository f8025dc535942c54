"""``localmoe experts simulate`` with the speed of computing that ``bench`` measured.

    python scripts/simulate_measured.py model.trace --resident-tps 9.5

The command estimates that speed from the bandwidth of the RAM, which is optimistic. Takes every
option of the command.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.app.more_memory import speeds_for
from localmoe.cli.arguments import parse
from localmoe.cli.experts.command import one_trace
from localmoe.cli.experts.simulate import simulated
from localmoe.cli.option_types import number
from localmoe.cli.output import Output
from localmoe.cli.requests import plan_request
from localmoe.errors import LocalmoeError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--resident-tps",
        type=number(0.001, 1e6),
        required=True,
        metavar="X",
        help="tok/s with all experts in RAM: `resident_tps` of `bench --json`",
    )
    own, rest = parser.parse_known_args(arguments)
    output = Output(as_json="--json" in rest, lines="--jsonl" in rest, quiet="--quiet" in rest)
    try:
        options = parse(["experts", "simulate", *rest])
        trace = one_trace("simulate", options.words[1:])
        speeds = speeds_for(trace, plan_request(options), options.model, output)
        if speeds is not None:
            speeds = dataclasses.replace(speeds, resident_tps=own.resident_tps, measured=True)
        simulated(trace, speeds, options, output)
    except LocalmoeError as error:
        output.error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
