"""What holds for every process of the tests, however the environment was set."""

import os
import sys

# Thousands of processes import the package, and each would compile it anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# The engine's threads sleep while they wait for each other. Else they spin, and where more want to
# compute than there are cores, that is most of what they do.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
