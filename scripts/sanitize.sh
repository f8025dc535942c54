#!/usr/bin/env bash
# The expert cache's tests under sanitizers: memory and undefined behaviour, then data races.
#
#     scripts/sanitize.sh [address|thread] [pytest arguments]
#
# Builds the native helper anew with the sanitizer, in a copy of the source tree, and runs the tests
# there with the installed packages. llama.cpp and Python are not instrumented, so what a report
# names outside localmoe/engine/native is theirs, or an operation of ours on memory of theirs.
# ThreadSanitizer does not see the barriers of an OpenMP that it did not build, between which
# llama.cpp's threads hand each other their results: it is told to believe what comes from there.
set -euo pipefail

kind=${1:-address}
shift || true
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$(command -v python)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

case $kind in
    address)
        flags="-fsanitize=address,undefined -fno-sanitize=vptr -fno-omit-frame-pointer -g"
        runtime="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)"
        # Python frees little at exit; the cache reserves address space that ASan would poison.
        export ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0:allow_user_segv_handler=1
        export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
        ;;
    thread)
        flags="-fsanitize=thread -fno-omit-frame-pointer -g"
        runtime=$(g++ -print-file-name=libtsan.so)
        printf 'called_from_lib:libgomp.so\nrace:libggml\nrace:libllama\nrace:libpython\n' > "$work/tsan"
        export TSAN_OPTIONS="suppressions=$work/tsan:ignore_noninstrumented_modules=1:halt_on_error=0:exitcode=66"
        ;;
    *)
        echo "usage: scripts/sanitize.sh [address|thread] [pytest arguments]" >&2
        exit 2
        ;;
esac

git -C "$root" ls-files -z | (cd "$root" && xargs -0 cp --parents -t "$work")
cd "$work"
CFLAGS="$flags" CXXFLAGS="$flags" LDFLAGS="$flags" "$python" setup.py -q build_ext --inplace

tests=(tests/engine/test_cache_fuzz.py tests/engine/test_cache_memory.py tests/engine/test_cache_errors.py
    tests/engine/test_cache_prediction.py tests/engine/test_cache_reading.py)
preload=${runtime// /:}
echo "$kind: $(git -C "$root" rev-parse --short HEAD), ${tests[*]}"
PYTHONPATH="$work" LD_PRELOAD="$preload" LOCALMOE_SANITIZED=1 \
    "$python" -m pytest -q -p no:cacheprovider -o timeout=3000 "${@:-${tests[@]}}" 2>&1 | tee "$work/out"
if grep -E "ERROR: (Address|Thread)Sanitizer|runtime error:|WARNING: ThreadSanitizer" "$work/out"; then
    echo "$kind: reports above"
    exit 1
fi
echo "$kind: clean"
