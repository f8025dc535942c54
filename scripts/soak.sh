#!/usr/bin/env bash
# What takes long: kill loops, load and fuzz of tests/soak. Writes docs/soak.md.
#     scripts/soak.sh [MINUTES]      of all together; 30 unless said otherwise
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m pytest tests/soak -m soak -n 0 -o timeout=0 \
    --soak-minutes "${1:-30}" --soak-page docs/soak.md
