// A dry run counts the buffers of the graph that will be computed.
//
// For each graph llama.cpp tells the scheduler which device has the first operation of a layer (graph_get_cb in
// src/llama-context.cpp). ggml_backend_sched_reserve goes by it. ggml_backend_sched_reserve_size, its counterpart
// that only counts, first resets the scheduler, which forgets it: the operation falls to the device of the layer
// before, and at each border between two devices one input too many is counted, up to four times. Its reset passes
// through here, since this library is preloaded, and is left out: the graph's maker has reset the scheduler already.

#if defined(__linux__)

#include <cstddef>

#include "export.h"

namespace {

using reset_fn = void (*)(void * scheduler);
using count_fn = void (*)(void * scheduler, void * graph, size_t * sizes);

reset_fn reset = nullptr;  // llama.cpp's own
count_fn count = nullptr;
bool counting = false;

}  // namespace

// llama.cpp's own functions of the names below; to be told before a model is loaded.
EXPORT void localmoe_scheduling(void * own_reset, void * own_count) {
    reset = reinterpret_cast<reset_fn>(own_reset);
    count = reinterpret_cast<count_fn>(own_count);
}

EXPORT void ggml_backend_sched_reset(void * scheduler) {
    if (!counting) {
        reset(scheduler);
    }
}

EXPORT void ggml_backend_sched_reserve_size(void * scheduler, void * graph, size_t * sizes) {
    counting = true;
    count(scheduler, graph, sizes);
    counting = false;
}

#endif  // __linux__
