// What ctypes cannot do, or not well. Built with the package if there is a compiler, and optional:
// localmoe/engine/worker/binding.py says what is lost without it.
//
// No engine header is included: the symbols come in as pointers that Python looked up, and the
// one C++ type that crosses (a std::map returned by value) is declared here with the layout of
// llama.cpp's src/llama-ext.h.

#include <cstddef>
#include <cstdint>
#include <map>

#include "export.h"

#if defined(__linux__)
#include <cerrno>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#endif

namespace {

struct breakdown_entry {
    size_t model;
    size_t context;
    size_t compute;
};

using breakdown    = std::map<void *, breakdown_entry>;
using breakdown_fn = breakdown (*)(const void * ctx);

}  // namespace

struct localmoe_buffer_bytes {
    void *   buffer_type;
    uint64_t model;
    uint64_t context;
    uint64_t compute;
};

// Bytes per buffer type of a llama_context. Returns the number of entries; at most `max` are written.
EXPORT int32_t localmoe_memory_breakdown(void * fn, const void * ctx, localmoe_buffer_bytes * out, int32_t max) {
    return guarded(0, [&] {
        int32_t n = 0;
        for (const auto & [buffer_type, bytes] : reinterpret_cast<breakdown_fn>(fn)(ctx)) {
            if (n < max) {
                out[n] = {buffer_type, bytes.model, bytes.context, bytes.compute};
            }
            n++;
        }
        return n;
    });
}

// The abort callback: asked between graph nodes (about 1,500 times per token), so it must not
// enter Python. `flag` is one int that another thread sets.
EXPORT bool localmoe_abort_requested(void * flag) {
    return *static_cast<volatile int32_t *>(flag) != 0;
}

#if defined(__linux__)
// The worker starts with this library preloaded, so that llama.cpp's mapping of a model does not
// read the whole file before it returns: engine/worker/readahead.py does that where it is wanted, with
// progress and a way to stop.
// ThreadSanitizer comes through here while it starts, before it can follow calls: it is told not to.
EXPORT __attribute__((no_sanitize("thread"))) void * mmap(void * addr, size_t length, int prot, int flags, int fd,
                                                          off_t offset) noexcept {
    return reinterpret_cast<void *>(syscall(SYS_mmap, addr, length, prot, flags & ~MAP_POPULATE, fd, offset));
}

EXPORT int posix_madvise(void * addr, size_t length, int advice) noexcept {
    if (advice == POSIX_MADV_WILLNEED || advice == POSIX_MADV_DONTNEED) {
        return 0;
    }
    return madvise(addr, length, advice) == 0 ? 0 : errno;
}

// Brings a part of a file into the page cache, in units as large as the system has (2 MB), and
// touches it: a tenth of the processor time of read(2), nothing is copied, and on a virtual machine
// the first touch of memory is as slow as reading it, so it should not be left to the computation.
// Returns 0 or an errno; ENOSYS where the system (before Linux 5.14) cannot. `offset`: whole pages.
EXPORT int32_t localmoe_bring(int32_t fd, int64_t offset, int64_t length) {
    void * data = mmap(nullptr, size_t(length), PROT_READ, MAP_SHARED, fd, offset);
    if (data == MAP_FAILED) {
        return errno;
    }
    madvise(data, size_t(length), MADV_HUGEPAGE);
    int32_t why = 0;
    if (madvise(data, size_t(length), MADV_POPULATE_READ) != 0) {
        why = errno == EINVAL ? ENOSYS : errno;
    }
    for (int64_t at = 0; why == 0 && at < length; at += 4096) {
        static_cast<void>(static_cast<volatile char *>(data)[at]);
    }
    munmap(data, size_t(length));
    return why;
}
#endif

// What the library was built from: setup.py passes the fingerprint of the sources, which
// engine/worker/binding.py compares with that of the sources that are there when it is loaded.
EXPORT const char * localmoe_sources(void) {
    return LOCALMOE_SOURCES;
}

// The build tool makes a Python extension file, and Windows' linker insists on this name.
EXPORT void * PyInit__native(void) {
    return nullptr;
}
