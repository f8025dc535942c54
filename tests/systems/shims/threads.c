// Preloaded: the system gives C++ no more than THREADS threads; those of Python and of C are as ever.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

int pthread_create(pthread_t * thread, const pthread_attr_t * how, void * (*start)(void *), void * with) {
    static atomic_int given;
    int (*real)(pthread_t *, const pthread_attr_t *, void * (*)(void *), void *) =
        (int (*)(pthread_t *, const pthread_attr_t *, void * (*)(void *), void *))dlsym(RTLD_NEXT, "pthread_create");
    Dl_info caller;
    int cpp = dladdr(__builtin_return_address(0), &caller) && caller.dli_fname && strstr(caller.dli_fname, "libstdc++");
    if (cpp && atomic_fetch_add(&given, 1) >= atoi(getenv("THREADS"))) {
        return EAGAIN;
    }
    return real(thread, how, start, with);
}
