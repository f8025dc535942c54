"""The three screens with which the README begins, of the machine that this runs on.

    python -m scripts.readme_screens

The repository is a local server that speaks the Hub's protocol, the files are stand-ins with real
headers and no weights. The machine is measured first, in a home of its own: on a quiet one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from scripts import make_standin
from tests.hub import standins
from tests.hub.command import COMMAND, HubCommand
from tests.hub.server import HubServer

REPO, MODEL = "someone/Qwen3-30B-A3B-GGUF", "qwen3-30b-a3b"
QUANTS = ("Q3_K_M", "Q4_K_M", "UD-Q4_K_XL", "Q6_K", "Q8_0", "BF16")
LARGE = "gpt-oss-120b"
COLUMNS = "100"


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="localmoe-screens-") as folder, HubServer() as hub:
        home = Path(folder)
        paths = [path for quant in QUANTS for path in standins.conversion(home, MODEL, quant)]
        hub.add(REPO, standins.served(paths))
        make_standin.main([LARGE, "--header-only", "-o", str(home / f"{LARGE}.gguf")])
        environment = HubCommand(hub, home).environment(COLUMNS=COLUMNS)
        (home / ".cache" / "localmoe" / "rates.json").unlink()  # invented ones, for tests
        subprocess.run([*COMMAND, "doctor", "--measure"], cwd=home, env=environment, check=True)
        for arguments in (
            ("fit", REPO),
            ("fit", f"{LARGE}.gguf"),
            ("plan", f"{LARGE}.gguf", "--ram", "32", "--vram", "12"),
        ):
            print(f"\n$ localmoe {' '.join(arguments)}", flush=True)
            subprocess.run([*COMMAND, *arguments], cwd=home, env=environment, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
