// Preloaded: reads that go wrong. DIRECT says how those past the page cache do, CACHED those through it: EIO, EINVAL,
// EOPNOTSUPP, short (a block or less comes), torn (less than a block), slow (20 ms each, or SLOW); RATE is how many of
// a hundred do, by default all; with AGAIN it is the first read of a place that was read before, and no other. ONLY is
// a part of the name of the files that are meant, FROM the first byte of them. Where a read failed or came short, the
// memory that it would have filled is spoilt. What is done is noted in the file FAULTS, a line each.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int meant(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) {
        return 0;
    }
    path[n] = 0;
    return strstr(path, getenv("ONLY") ? getenv("ONLY") : ".gguf") != 0;
}

// Whether this is the first read of a place that was read before.
static int again(long at) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static long seen[1024];
    static int count, met;
    int found = 0;
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < count && !met; i++) {
        found |= seen[i] == at;
    }
    met |= found;
    if (count < 1024) {
        seen[count++] = at;
    }
    pthread_mutex_unlock(&mutex);
    return found;
}

static const char * fault(int fd, long at) {
    static __thread unsigned dice = 12345;
    const char * from = getenv("FROM");
    const char * how = at >= (from ? atol(from) : 0) && meant(fd) ? getenv(fcntl(fd, F_GETFL) & O_DIRECT ? "DIRECT" : "CACHED") : 0;
    if (!how || !*how || (getenv("AGAIN") && !again(at))) {
        return 0;
    }
    dice = dice * 1664525 + 1013904223;
    const char * rate = getenv("RATE");
    return (dice >> 8) % 100 < (unsigned)(rate ? atoi(rate) : 100) ? how : 0;
}

static void note(const char * how, const char * way) {
    const char * path = getenv("FAULTS");
    int log = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (log >= 0) {
        char line[64];
        int n = snprintf(line, sizeof line, "%s %s\n", how, way);
        (void)!write(log, line, (size_t)n);
        close(log);
    }
}

// What a read of `there` bytes into `target` results in instead: bytes or -errno.
static long spoil(const char * how, const char * way, char * target, long there) {
    if (there <= 0) {
        return there;
    }
    note(how, way);
    long left = 0;
    if (strcmp(how, "slow") == 0) {
        usleep(1000 * (getenv("SLOW") ? (unsigned)atoi(getenv("SLOW")) : 20));
        return there;
    }
    if (strcmp(how, "short") == 0) {
        left = there > 4096 ? 4096 : (there + 1) / 2;
    } else if (strcmp(how, "torn") == 0) {
        left = there > 512 ? 512 : (there + 1) / 2;
    } else {
        left = strcmp(how, "EIO") == 0 ? -EIO : strcmp(how, "EINVAL") == 0 ? -EINVAL : -EOPNOTSUPP;
    }
    memset(target + (left > 0 ? left : 0), 0xAA, (size_t)(there - (left > 0 ? left : 0)));
    return left;
}

ssize_t pread(int fd, void * target, size_t bytes, off_t at) {
    static ssize_t (*real)(int, void *, size_t, off_t);
    if (!real) {
        real = (ssize_t (*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread");
    }
    ssize_t n = real(fd, target, bytes, at);
    const char * how = n > 0 ? fault(fd, at) : 0;
    if (how) {
        n = spoil(how, "pread", target, n);
        if (n < 0) {
            errno = (int)-n;
            n = -1;
        }
    }
    return n;
}

ssize_t pread64(int fd, void * target, size_t bytes, off_t at) { return pread(fd, target, bytes, at); }

long syscall(long number, ...) {
    static long (*real)(long, ...);
    if (!real) {
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    }
    long a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(list, long);
    }
    va_end(list);
    long n = real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_io_getevents && n > 0) {
        struct io_event * events = (struct io_event *)a[3];
        for (long i = 0; i < n; i++) {
            struct iocb * read = (struct iocb *)events[i].obj;
            const char * how = fault((int)read->aio_fildes, (long)read->aio_offset);
            if (how) {
                events[i].res = spoil(how, "aio", (char *)read->aio_buf, (long)events[i].res);
            }
        }
    }
    return n;
}
