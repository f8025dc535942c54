"""How well the NumPy reference agrees with the engine, as Markdown: for docs/routing.md.

    python scripts/gating_table.py

Every generated architecture is run; what the engine recorded, logits too, is computed anew.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.routing import gating
from tests.archs import generate
from tests.routing.agreement import HALF, MOE, agreement, case_of, steps_of


def main() -> None:
    rows: dict[str, list[tuple[str, int, int, float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for architecture in MOE:
            folder = Path(name) / architecture
            folder.mkdir()
            case = case_of(generate(architecture, Path(name)), folder)
            for layer, seen in case.seen.items():
                way = gating.gating_of(case.model, layer)
                if way is None:
                    raise SystemExit(f"{architecture}: no reference")
                for mine, theirs in zip(steps_of(case.trace, layer), seen, strict=True):
                    exact = agreement(way, theirs, layer, case.tensors)
                    largest = float(abs(theirs.logits).max())
                    kept = agreement(way, mine, layer, case.tensors, tie=4 * largest * HALF)
                    rows.setdefault(way.describe(), []).append(
                        (
                            architecture,
                            exact.tokens,
                            exact.different + kept.different,
                            exact.worst,
                            kept.worst,
                        )
                    )
    print("| gating | architectures | choices | other experts | weights, 32 bits | 16 bits |")
    print("|---|---|---|---|---|---|")
    for words, found in sorted(rows.items()):
        names = ", ".join(dict.fromkeys(row[0] for row in found))
        print(
            f"| {words} | {names} | {sum(row[1] for row in found):,} "
            f"| {sum(row[2] for row in found)} | {max(row[3] for row in found):.0e} "
            f"| {max(row[4] for row in found):.0e} |"
        )


if __name__ == "__main__":
    main()
