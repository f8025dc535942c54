// Preloaded: a kernel whose pages have PAGES bytes (16384, 65536), on one of 4096. What such a kernel refuses is
// refused, and noted in the file REFUSED; lengths cover whole large pages; mappings begin at one.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define SMALL 4096

static size_t page(void) {
    const char * text = getenv("PAGES");
    return text ? (size_t)atol(text) : SMALL;
}

static size_t up(size_t n) { return (n + page() - 1) / page() * page(); }

static long call(long number, long a, long b, long c, long d, long e, long f) {
    static long (*real)(long, ...);
    if (!real) {
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    }
    return real(number, a, b, c, d, e, f);
}

static int refused(const char * what, uintptr_t number) {
    if (number % page() == 0) {
        return 0;
    }
    const char * path = getenv("REFUSED");
    int log = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (log >= 0) {
        (void)!write(log, what, strlen(what));
        (void)!write(log, "\n", 1);
        close(log);
    }
    errno = EINVAL;
    return 1;
}

long sysconf(int name) { return name == _SC_PAGESIZE ? (long)page() : REAL(sysconf)(name); }

int getpagesize(void) { return (int)page(); }

static long map(long at, long length, long prot, long flags, long fd, long offset) {
    if (refused("mmap: offset", (uintptr_t)offset)) {
        return -1;
    }
    if (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)) {
        return refused("mmap: address", (uintptr_t)at)
                   ? -1
                   : call(SYS_mmap, at, flags & MAP_ANONYMOUS ? (long)up((size_t)length) : length, prot, flags, fd, offset);
    }
    size_t whole = up((size_t)length);
    long room = call(SYS_mmap, 0, (long)(whole + page()), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == -1) {
        return -1;
    }
    long begin = (long)up((size_t)room), end = room + (long)(whole + page());
    if (begin > room) {
        call(SYS_munmap, room, begin - room, 0, 0, 0, 0);
    }
    if (end > begin + (long)whole) {
        call(SYS_munmap, begin + (long)whole, end - begin - (long)whole, 0, 0, 0, 0);
    }
    long mapped = call(SYS_mmap, begin, flags & MAP_ANONYMOUS ? (long)whole : length, prot, flags | MAP_FIXED, fd, offset);
    if (mapped == -1) {
        int error = errno;
        call(SYS_munmap, begin, (long)whole, 0, 0, 0, 0);
        errno = error;
    }
    return mapped;
}

long syscall(long number, ...) {
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(list, long);
    }
    va_end(list);
    return number == SYS_mmap ? map(a[0], a[1], a[2], a[3], a[4], a[5]) : call(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

void * mmap(void * at, size_t length, int prot, int flags, int fd, off_t offset) {
    return (void *)map((long)at, (long)length, prot, flags, fd, offset);
}

void * mmap64(void * at, size_t length, int prot, int flags, int fd, off64_t offset) {
    return (void *)map((long)at, (long)length, prot, flags, fd, offset);
}

int munmap(void * at, size_t length) {
    return refused("munmap", (uintptr_t)at) ? -1 : (int)call(SYS_munmap, (long)at, (long)up(length), 0, 0, 0, 0);
}

int mprotect(void * at, size_t length, int prot) {
    return refused("mprotect", (uintptr_t)at) ? -1 : (int)call(SYS_mprotect, (long)at, (long)up(length), prot, 0, 0, 0);
}

int madvise(void * at, size_t length, int advice) {
    return refused("madvise", (uintptr_t)at) ? -1 : (int)call(SYS_madvise, (long)at, (long)up(length), advice, 0, 0, 0);
}

void * mremap(void * at, size_t before, size_t after, int flags, ...) {
    va_list list;
    va_start(list, flags);
    void * target = flags & MREMAP_FIXED ? va_arg(list, void *) : 0;
    va_end(list);
    if (refused("mremap", (uintptr_t)at) || refused("mremap: target", (uintptr_t)target)) {
        return MAP_FAILED;
    }
    return (void *)call(SYS_mremap, (long)at, (long)up(before), (long)up(after), flags, (long)target, 0);
}

int mincore(void * at, size_t length, unsigned char * there) {
    if (refused("mincore", (uintptr_t)at)) {
        return -1;
    }
    size_t pages = up(length) / page(), each = page() / SMALL;
    unsigned char small[65536 / SMALL];
    for (size_t i = 0; i < pages; i++) {
        if (call(SYS_mincore, (long)at + (long)(i * page()), (long)page(), (long)small, 0, 0, 0) == -1) {
            return -1;
        }
        there[i] = 1;
        for (size_t k = 0; k < each; k++) {
            there[i] &= small[k];
        }
    }
    return 0;
}
