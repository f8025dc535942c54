"""The pictures of docs/routing.md: nano by its own domains, and the real trace of the tests.

    python scripts/routing_pictures.py [--browser chromium]

Records nano on the questions that it never saw (tests/nano/held_out.txt), one domain each, writes
both reports, and takes some of their plots; with a browser, the whole page as it shows it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = ROOT / "tests/nano/held_out.txt"
REAL = ROOT / "tests/routing/data/qwen3-30b-a3b.route.csv.gz"
PICTURES = ROOT / "docs/pictures"
PLOTS = {
    "nano": ("load", "domains", "divergence"),
    "qwen3": ("load", "hits"),
}
HEIGHT = 9000  # pixels of the browser's window, more than a page has


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--browser", help="a Chromium, for pictures of the whole page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nano = folder / "nano.trace"
        files = [word for path in domains(folder) for word in ("-f", str(path))]
        localmoe("experts", "record", "nano", *files, "-n", "48", "--no-history", "-o", str(nano))
        for label, trace in (("nano", nano), ("qwen3", REAL)):
            page, plots = folder / f"{label}.html", folder / label
            localmoe("experts", "report", str(trace), "-o", str(page), "--png", str(plots))
            for plot in PLOTS[label]:
                shutil.copy(plots / f"{plot}.png", PICTURES / f"routing-{label}-{plot}.png")
            if options.browser:
                photograph(options.browser, page, PICTURES / f"routing-{label}-page.png")


def domains(folder: Path) -> list[Path]:
    """A file of questions per domain."""
    asked: dict[str, list[str]] = {}
    for line in QUESTIONS.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            domain, _, question = (part.strip() for part in line.split("|", 2))
            asked.setdefault(domain, []).append(question)
    paths = []
    for domain, questions in asked.items():
        paths.append(folder / f"{domain}.txt")
        paths[-1].write_text("\n\n".join(questions), "utf-8")
    return paths


def localmoe(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "localmoe", *words], cwd=ROOT, check=True)


def photograph(browser: str, page: Path, picture: Path) -> None:
    """The page as the browser draws it, without the empty part below."""
    from PIL import Image, ImageChops

    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={page.with_suffix('.profile')}",
            f"--window-size=880,{HEIGHT}",
            f"--screenshot={picture}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
    )
    image = Image.open(picture).convert("RGB")
    empty = Image.new("RGB", image.size, image.getpixel((2, image.height - 2)))
    box = ImageChops.difference(image, empty).getbbox()
    image.crop((0, 0, image.width, min(image.height, (box[3] if box else 0) + 40))).quantize(
        64
    ).save(picture, optimize=True)


if __name__ == "__main__":
    main()
