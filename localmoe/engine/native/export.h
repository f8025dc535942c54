// How Python sees a function of ours: with C linkage, and without exceptions, which no C caller can pass on.

#pragma once

#include <type_traits>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

// What `body` returns, or `otherwise` where an exception ended it.
template <typename Result, typename Body> Result guarded(Result otherwise, Body body) noexcept {
    try {
        if constexpr (std::is_void_v<decltype(body())>) {
            body();
        } else {
            return body();
        }
    } catch (...) {
    }
    return otherwise;
}
