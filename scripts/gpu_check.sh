#!/usr/bin/env bash
# The day a GPU is at hand: is it right, does the plan hold, what is faster? No network, eight minutes.
#
#     scripts/gpu_check.sh FOLDER [options of scripts/gpu_check.py]
#
# FOLDER has what was built elsewhere: ggml-cuda-VERSION.so or ggml-vulkan-VERSION.so (`localmoe engine
# install cuda`, on a machine that has nvcc), and, where this machine has no localmoe yet, the wheels of
# `python -m scripts.wheelhouse --out FOLDER` and those of the tests ($needed below: `pip download -d FOLDER
# --only-binary :all: --python-version VERSION NAME ...`). Writes gpu.json and gpu.md there.
set -euo pipefail
folder=$(cd "${1:?usage: scripts/gpu_check.sh FOLDER}" && pwd)
shift
cd "$(dirname "$0")/.."
needed="gguf hypothesis pytest pytest-timeout pytest-xdist"
python=${PYTHON:-python3}
# CUDA's libraries, where they came with PyTorch's wheels and not with the toolkit.
libraries=$("$python" -c "import nvidia.cu13; print(nvidia.cu13.__path__[0] + '/lib')" 2>/dev/null || true)
[ -z "$libraries" ] || export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
if ! "$python" -c "import llama_cpp.llama_cpp, localmoe" 2>/dev/null; then
    "$python" -m venv --system-site-packages "$folder/venv"  # what is there need not be carried
    python=$folder/venv/bin/python
    "$python" -m pip install --quiet --no-index --find-links "$folder" localmoe $needed
    # Away from this folder's localmoe, which has no compiled helper; that of the wheel has.
    rm -rf "$folder/checkout"
    mkdir "$folder/checkout"
    cp -r pyproject.toml scripts tests "$folder/checkout"
    cd "$folder/checkout"
fi
export LOCALMOE_HOME=${LOCALMOE_HOME:-$folder/home}
exec "$python" -m scripts.gpu_check "$folder" "$@"
