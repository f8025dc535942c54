#!/usr/bin/env bash
# The day a GPU is at hand: is it right, does the plan hold, what is faster? No network, eight minutes.
#
#     scripts/gpu_check.sh FOLDER [options of scripts/gpu_check.py]
#
# FOLDER has what was built elsewhere: ggml-cuda-VERSION.so or ggml-vulkan-VERSION.so (`localmoe engine
# install cuda`, on a machine that has nvcc), and, where this machine has no localmoe yet, the wheels of
# `python -m scripts.wheelhouse`, with those of NumPy, gguf and pytest beside them. Writes gpu.json and
# gpu.md there.
set -euo pipefail
folder=$(cd "${1:?usage: scripts/gpu_check.sh FOLDER}" && pwd)
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if ! "$python" -c "import llama_cpp.llama_cpp, localmoe" 2>/dev/null; then
    "$python" -m venv "$folder/venv"
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet --no-index --find-links "$folder" localmoe numpy gguf pytest
fi
export LOCALMOE_HOME=${LOCALMOE_HOME:-$folder/home}
exec "$python" -m scripts.gpu_check "$folder" "$@"
