"""A table: the expert cache beside plain decoding, per generated architecture and regime.

    python scripts/identity_table.py > docs/identity.md

What is compared, and with what, is in ``tests/engine/cache_matrix.py``; the same cells are a test.
Exit code 1 if any of them differs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.archs import ARCHITECTURES, generate
from tests.engine.cache_matrix import Cell, compare

DENSE = ("llama-dense", "qwen3")
HEAD = """\
# The same logits with and without the cache

Written by `scripts/identity_table.py`. Per architecture, the same conversation in each regime and
with three budgets: interrupted in the prompt, asked again, repeated, interrupted in the answer and
continued. Each cell: decodes whose logits are those of the run without a cache, bit by bit, of all
decodes; and how many experts were evicted on the way. Last column: that run beside llama.cpp's
plain loop with the same batches.

"""


def main() -> int:
    print(HEAD, end="")
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for number, architecture in enumerate(a for a in ARCHITECTURES if a not in DENSE):
            matrix = compare(generate(architecture, Path(folder)), Path(folder, "hot.json"))
            if not number:
                names = [cell.name for cell in matrix.cells]
                print("| architecture | " + " | ".join(names) + " | plain loop |")
                print("|---" * (len(names) + 2) + "|")
            good &= matrix.plain and all(cell.equal for cell in matrix.cells)
            plain = "equal" if matrix.plain else "**differs**"
            cells = " | ".join(shown(cell) for cell in matrix.cells)
            print(f"| {architecture} | {cells} | {plain} |", flush=True)
    return 0 if good else 1


def shown(cell: Cell) -> str:
    """``equal decodes/all, evictions``."""
    pairs = [
        (ours, theirs)
        for turn, reference in zip(cell.ran.turns, cell.reference.turns, strict=True)
        for ours, theirs in zip(turn.logits, reference.logits, strict=True)
    ]
    same = sum(ours == theirs for ours, theirs in pairs)
    text = f"{same}/{len(pairs)}, {cell.ran.counters['evictions']}"
    return text if cell.equal else f"**{text}**"


if __name__ == "__main__":
    sys.exit(main())
