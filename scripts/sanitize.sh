#!/usr/bin/env bash
# The expert cache's tests under sanitizers: memory and undefined behaviour, then data races.
#
#     scripts/sanitize.sh [address|thread] [pytest arguments]
#
# Builds the native helper anew with the sanitizer, in a copy of the source tree, and runs the tests
# there with the installed packages. llama.cpp and Python are not instrumented, so what a report
# names outside localmoe/engine/native is theirs, or an operation of ours on memory of theirs.
# ThreadSanitizer does not see the barriers of an OpenMP that it did not build, between which
# llama.cpp's threads hand each other their results: a library of some lines tells it of them. (To
# suppress what is called from there instead would suppress all: whatever computes is.)
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
        export ASAN_OPTIONS="detect_leaks=0:verify_asan_link_order=0:allow_user_segv_handler=1:log_path=$work/report"
        export UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1:log_path=$work/report"
        ;;
    thread)
        flags="-fsanitize=thread -fno-omit-frame-pointer -g"
        runtime="$(g++ -print-file-name=libtsan.so) $work/barriers.so"
        printf 'called_from_lib:libgomp.so\n' > "$work/tsan"
        gcc -shared -fPIC -O1 -x c - -o "$work/barriers.so" << 'C'
#include <dlfcn.h>
void __tsan_acquire(void *), __tsan_release(void *);
static char all;  // what each thread did before a barrier, every thread knows after it
static void * real(const char * name) { return dlsym(dlopen("libgomp.so.1", RTLD_LAZY), name); }
void GOMP_barrier(void) {
    static void (*barrier)(void);
    if (!barrier) barrier = (void (*)(void))real("GOMP_barrier");
    __tsan_release(&all);
    barrier();
    __tsan_acquire(&all);
}
struct task { void (*body)(void *); void * data; };
static void run(void * what) {
    struct task * t = what;
    __tsan_acquire(&all);
    t->body(t->data);
    __tsan_release(&all);
}
void GOMP_parallel(void (*body)(void *), void * data, unsigned threads, unsigned flags) {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned) = real("GOMP_parallel");
    struct task t = {body, data};
    __tsan_release(&all);
    parallel(run, &t, threads, flags);
    __tsan_acquire(&all);
}
C
        export TSAN_OPTIONS="suppressions=$work/tsan:ignore_noninstrumented_modules=1:halt_on_error=0:exitcode=66:log_path=$work/report"
        ;;
    *)
        echo "usage: scripts/sanitize.sh [address|thread] [pytest arguments]" >&2
        exit 2
        ;;
esac

git -C "$root" ls-files -z | (cd "$root" && xargs -0 cp --parents -t "$work")
cd "$work"
CFLAGS="$flags" CXXFLAGS="$flags" LDFLAGS="$flags" "$python" setup.py -q build_ext --inplace

tests=(tests/engine/test_cache_streaming.py tests/engine/test_cache_fuzz.py tests/engine/test_cache_memory.py
    tests/engine/test_cache_errors.py tests/engine/test_cache_prediction.py tests/engine/test_cache_reading.py
    tests/engine/test_offload.py)
if [ $# -gt 0 ]; then
    tests=("$@")
fi
preload=${runtime// /:}
echo "$kind: $(git -C "$root" rev-parse --short HEAD), ${tests[*]}"
failed=0
PYTHONPATH="$work" LD_PRELOAD="$preload" LOCALMOE_SANITIZED=1 \
    "$python" -m pytest -q -p no:cacheprovider -o timeout=3000 "${tests[@]}" || failed=1
if compgen -G "$work/report*" > /dev/null; then  # of any process, whoever has read what it said
    cat "$work"/report*
    echo "$kind: reports above"
    exit 1
fi
echo "$kind: no reports"
exit $failed
