"""A table and a plot of what ``localmoe bench --json`` measured.

    python scripts/bench_sweep.py big.gguf --sweep --log big.jsonl --at-most 8    # again and again
    python scripts/bench_sweep.py big.gguf --sweep --log big.jsonl --json > docs/bench/big.json
    python scripts/bench_report.py docs/bench/big.json       # big.md, big.png and big.svg beside it

The plot needs matplotlib: ``pip install '.[plots]'``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.text import format_bytes

Document = dict[str, Any]

STYLE = {
    "plain": ("#888888", "o", "plain mmap"),
    "off": ("#b0b0b0", "v", "no cache"),
    "page": ("#1f77b4", "s", "page"),
    "private": ("#d98200", "D", "private"),
    "auto": ("#2a7f2a", "^", "auto"),
}
COLUMNS = (
    "memory",
    "regime",
    "tok/s",
    "first {window} steps",
    "× plain",
    "of own bound",
    "of stretch bound",
    "first token",
    "÷ reading it",
    "prefill tok/s",
    "hits",
    "read per token",
    "anonymous peak",
    "plan",
)


def table(document: Document) -> str:
    """Markdown: medians, with the range in brackets where there were several runs."""
    window = document["shared_window"]
    lines = ["| " + " | ".join(COLUMNS).format(window=window) + " |"]
    lines.append("|" + "---|" * len(COLUMNS))
    for _, group in groupby(document["runs"], key=lambda run: run["memory"]):
        lines += _rows(list(group), document["size"])
    return "\n".join(lines) + "\n"


def _rows(runs: Sequence[Document], size: int) -> Iterator[str]:
    plain = next((run["shared_window_tps"] for run in runs if run["regime"] == "plain"), None)
    for run in runs:
        own, ran = run["shared_window_tps"], [r for r in run["ran"] if r != run["regime"]]
        resident = {"off": "resident"}
        regime = run["regime"]
        if ran and regime != "plain":
            regime += f" ({', '.join(resident.get(name, name) for name in ran)})"
        memory = run["memory"]
        read = run["bytes_read_per_token"]
        yield (
            "| "
            + " | ".join(
                (
                    "no limit" if memory is None else f"{memory / size:.2f} ×",
                    regime,
                    _spread(run["decode_tps"], 2),
                    _spread(own, 2),
                    f"{own['median'] / plain['median']:.1f}" if own and plain else "–",
                    _spread(run["of_own_bound"], 2),
                    _spread(run["of_stretch_bound"], 2),
                    _spread(run["first_token_s"], 1, " s"),
                    _median(run["first_token_over_reading"], 2),
                    _median(run["prefill_tps"], 1),
                    _median(run["hit_rate"], 3),
                    format_bytes(int(read["median"])) if read else "–",
                    format_bytes(run["anonymous_peak"] + run["locked_peak"]),
                    format_bytes(run["planned"]),
                )
            )
            + " |"
        )
        for error in run["errors"]:
            yield f"| | {run['regime']}: {error} |" + " |" * (len(COLUMNS) - 2)


def _spread(values: Document | None, digits: int, unit: str = "") -> str:
    if values is None:
        return "–"
    if values["low"] == values["high"]:
        return _median(values, digits, unit)
    low, high = f"{values['low']:.{digits}f}", f"{values['high']:.{digits}f}"
    return f"{values['median']:.{digits}f}{unit} ({low}–{high})"


def _median(values: Document | None, digits: int, unit: str = "") -> str:
    return "–" if values is None else f"{values['median']:.{digits}f}{unit}"


def plot(document: Document, paths: Sequence[Path]) -> None:
    """Speed by memory, a line per regime with the range of its runs; one file per path."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.8), constrained_layout=True)
    for regime, (color, marker, label) in STYLE.items():
        points = [
            (run["memory"] / document["size"], run["shared_window_tps"])
            for run in document["runs"]
            if run["regime"] == regime and run["memory"] and run["shared_window_tps"]
        ]
        if not points:
            continue
        points.sort(key=lambda point: point[0])
        medians = [tps["median"] for _, tps in points]
        below = [tps["median"] - tps["low"] for _, tps in points]
        above = [tps["high"] - tps["median"] for _, tps in points]
        axes.errorbar(
            [x for x, _ in points],
            medians,
            yerr=(below, above),
            label=label,
            color=color,
            marker=marker,
            markersize=5,
            capsize=2,
            linewidth=2.2 if regime == "auto" else 1.3,
        )
    if document["resident_tps"]:
        axes.axhline(document["resident_tps"], color="black", linewidth=0.8, linestyle=":")
        axes.annotate(
            "all in RAM",
            (1, document["resident_tps"]),
            (-4, 3),
            ha="right",
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("hard memory limit ÷ size of the model")
    axes.set_ylabel(f"tokens per second, first {document['shared_window']} after the prompt")
    axes.set_title(f"{document['model']}, {format_bytes(document['size'])}: median and range")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend(loc="lower right")
    for path in paths:
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("document", type=Path, help="what `localmoe bench --json` wrote")
    parser.add_argument("--no-plot", action="store_true", help="the table alone")
    options = parser.parse_args(arguments)
    document: Document = json.loads(options.document.read_text())
    if "runs" not in document:
        print(f"{options.document}: not what `localmoe bench --json` writes", file=sys.stderr)
        return 1
    options.document.with_suffix(".md").write_text(table(document))
    if not options.no_plot:
        plot(document, [options.document.with_suffix(kind) for kind in (".png", ".svg")])
    return 0


if __name__ == "__main__":
    sys.exit(main())
