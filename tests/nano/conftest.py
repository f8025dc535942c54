"""Makes the package of the training script importable; it needs no PyTorch for its data."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
