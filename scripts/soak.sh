#!/usr/bin/env bash
# What takes long: kill loops, load and fuzz. Writes docs/soak.md.
#     scripts/soak.sh [MINUTES]      of those in tests/soak together; 30 unless said otherwise
# Those of tests/server take some 20 minutes more: LOCALMOE_SERVER_SOAK=SECONDS of clients, and
# LOCALMOE_SERVER_CASES=N requests of each kind.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" -m pytest tests/soak tests/server -m soak -n 0 -o timeout=0 \
    --soak-minutes "${1:-30}" --soak-page docs/soak.md
