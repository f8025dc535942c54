// Preloaded: a system that has no mapping left when PLACES have been made accessible and not been hidden again. It
// then refuses another one, and to move one, as the kernel does at vm.max_map_count; each refusal is a line in the
// file REFUSED.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static long made;

static long call(long number, long a, long b, long c, long d, long e, long f) {
    static long (*real)(long, ...);
    if (!real) {
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    }
    return real(number, a, b, c, d, e, f);
}

static int refused(const char * what) {
    if (made < atol(getenv("PLACES"))) {
        return 0;
    }
    int log = open(getenv("REFUSED"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    (void)!write(log, what, strlen(what));
    close(log);
    errno = ENOMEM;
    return 1;
}

long syscall(long number, ...) {
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(list, long);
    }
    va_end(list);
    int place = number == SYS_mmap && (a[3] & MAP_FIXED), open = place && a[2] != PROT_NONE;
    if (open && refused("mmap\n")) {
        return -1;
    }
    made += open - (place && !open);
    return call(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

void * mremap(void * at, size_t before, size_t after, int flags, ...) {
    va_list list;
    va_start(list, flags);
    void * target = flags & MREMAP_FIXED ? va_arg(list, void *) : 0;
    va_end(list);
    if ((flags & MREMAP_FIXED) && refused("mremap\n")) {
        return MAP_FAILED;
    }
    made += (flags & MREMAP_FIXED) != 0;
    return (void *)call(SYS_mremap, (long)at, (long)before, (long)after, flags, (long)target, 0);
}
