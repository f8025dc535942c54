// A large batch that a GPU multiplies: what llama.cpp's scheduler copies there comes from the cache.
//
// From some tokens on the scheduler gives multiplications by experts in host memory to a GPU. For each it asks the
// router's ids back, and copies the chosen experts, neighbours at once, from where the tensor points. Both calls,
// ggml_backend_tensor_get_async and ggml_backend_tensor_set_async, pass through here, since this library is
// preloaded. For such a batch the tensors are in the file's layout and point to its mapping, which is right by
// itself and slow. Here the address only says which experts are meant; they are brought as for a multiplication of
// ours, and copied from where they are. Where the calls do not pass through here, the mapping serves.

#if defined(__linux__)

#include "expert_cache.h"

#include <algorithm>
#include <cstdlib>

namespace localmoe {

namespace {

using get_fn = void (*)(void * backend, const ggml_tensor * from, void * to, size_t offset, size_t size);
using set_fn = void (*)(void * backend, ggml_tensor * to, const void * from, size_t offset, size_t size);

get_fn get_async = nullptr;  // llama.cpp's own
set_fn set_async = nullptr;
std::atomic<expert_cache *> serving{nullptr};  // whose batch is computed on a GPU

}  // namespace

// From now on, batches of at least so many tokens may be multiplied on a GPU; 0: none.
void expert_cache::offload(int64_t tokens) {
    std::lock_guard<std::mutex> lock(mutex_);
    offloaded_ = tokens;
    zeros_size_ = PADDING;
    for (auto & g : groups_) {
        for (auto & t : g.tensors) {
            zeros_size_ = std::max(zeros_size_, t.bytes);
        }
    }
    void * at = mmap(nullptr, zeros_size_, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    zeros_ = at == MAP_FAILED ? nullptr : static_cast<const char *>(at);
}

// A batch is going to be computed: its graph is made with the tensors as the file has them.
void expert_cache::begin_copies() {
    cut_short_ = false;
    copying_ = zeros_ && offloaded_ > 0 && batch_ >= offloaded_;
    chosen_.data = nullptr;
    copied_ = {nullptr, 0, 0};
    if (copying_) {
        for (auto & g : groups_) {
            give_tensors_back(g);
        }
    }
    serving = copying_ ? this : nullptr;
}

void expert_cache::end_copies() {
    copying_ = false;
    if (serving == this) {
        serving = nullptr;
    }
}

// The scheduler has asked for a tensor's content: of integers, the experts that the next copies are for.
void expert_cache::asked(const ggml_tensor * what, void * to) {
    if (what->type == GGML_TYPE_I32) {
        chosen_ = *what;
        chosen_.data = to;
        copied_.g = nullptr;
    }
}

// `size` bytes from `from` on are to be copied. True: `send` has had them, piece by piece, from where they are,
// each with its place after `from`. False: they are none of ours, or to be had there.
template <typename Send> bool expert_cache::copy(const char * from, size_t size, Send send) {
    auto has = [&](const group & g, const tensor_info & x) {
        size_t at = size_t(from) - size_t(x.mapped);
        return at < x.bytes * g.experts.size() && at % x.bytes == 0 && size <= x.bytes * g.experts.size() - at;
    };
    group * g = nullptr;
    int t = 0;
    for (auto & candidate : groups_) {
        for (size_t i = 0; i < candidate.tensors.size() && !g; i++) {
            if (has(candidate, candidate.tensors[i])) {
                g = &candidate;
                t = int(i);
            }
        }
    }
    if (!g) {
        return false;
    }
    const tensor_info & x = g->tensors[size_t(t)];
    int first = int((size_t(from) - size_t(x.mapped)) / x.bytes), count = int(size / x.bytes);
    if (copied_.g != g || copied_.t != t || first < copied_.end) {  // a multiplication's first
        if (!chosen_.data) {
            return false;
        }
        follow(*g, t);
        if (!safely([&] { how_ == OFF ? look(*g, t) : provide(*g, t, &chosen_, nullptr); })) {
            broken_ = true;
        }
    }
    copied_ = {g, t, first + count};
    if (how_ != OFF && (broken_ || stopped())) {  // nobody will look at the result, but it is to be computed
        cut_short_ = true;
        for (size_t at = 0; at < size; at += zeros_size_) {
            send(zeros_, at, std::min(zeros_size_, size - at));
        }
        return true;
    }
    if (how_ != PRIVATE || g->mapped || !brought(*g, first, count)) {
        return false;
    }
    for (int i = 0; i < count; i++) {
        const char * at = g->streamed ? multiplied_->base + (x.offset - multiplied_->from) + x.bytes * size_t(first + i)
                                      : data_of(*g, x, first + i);
        send(at, x.bytes * size_t(i), x.bytes);
    }
    if (size_t rest = size - x.bytes * size_t(count)) {  // what follows the last one, lest it be no number
        send(zeros_, x.bytes * size_t(count), rest);
    }
    return true;
}

// The order in which a layer's tensors are multiplied is seen as they are; the layers are taken to be alike.
void expert_cache::follow(group & g, int t) {
    bool again = g.seen == 0 || (g.seen & (1u << t));
    group * before = &g == &groups_.front() ? nullptr : &g - 1;
    if (again && before && before->order.size() == g.order.size()) {
        g.order = before->order;
    }
    size_t at = 0;
    for (size_t i = 0; i < g.tensors.size() && !again; i++) {
        at += (g.seen >> i) & 1;
    }
    auto found = std::find(g.order.begin(), g.order.end(), t);
    if (found != g.order.end() && at < g.order.size()) {
        std::iter_swap(found, g.order.begin() + long(at));
    }
}

// Whether these experts are among those that this visit needs, which are there.
bool expert_cache::brought(const group & g, int first, int count) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto from = g.experts.begin() + first;
    return std::all_of(from, from + count, [&](const expert & x) { return x.pinned == visit_; });
}

// Counts and records a choice where nothing is to be brought.
void expert_cache::look(group & g, int t) {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.calls++;
    if (g.seen == 0 || (g.seen & (1u << t))) {
        g.seen = 0;
        observe(g, &chosen_);
    }
    g.seen |= 1u << t;
}

}  // namespace localmoe

using localmoe::expert_cache;

// ---- for Python ----------------------------------------------------------------------------------

// llama.cpp's own functions of these names; to be told before a model is loaded.
EXPORT void localmoe_transfers(void * get, void * set) {
    localmoe::get_async = reinterpret_cast<localmoe::get_fn>(get);
    localmoe::set_async = reinterpret_cast<localmoe::set_fn>(set);
}

EXPORT void localmoe_experts_offload(void * cache, int64_t tokens) {
    static_cast<expert_cache *>(cache)->offload(tokens);
}

// Whether an interrupt has ended the last decode although llama.cpp, whose GPUs do not ask, calls it done.
EXPORT bool localmoe_experts_cut_short(void * cache) { return static_cast<expert_cache *>(cache)->cut_short(); }

// ---- for llama.cpp, in place of its own ----------------------------------------------------------

EXPORT void ggml_backend_tensor_get_async(void * backend, const ggml_tensor * from, void * to, size_t offset, size_t size) {
    localmoe::get_async(backend, from, to, offset, size);
    if (expert_cache * cache = localmoe::serving) {
        cache->asked(from, to);
    }
}

EXPORT void ggml_backend_tensor_set_async(void * backend, ggml_tensor * to, const void * from, size_t offset, size_t size) {
    auto send = [&](const char * data, size_t at, size_t bytes) {
        localmoe::set_async(backend, to, data, offset + at, bytes);
    };
    expert_cache * cache = localmoe::serving;
    if (!cache || !cache->copy(static_cast<const char *>(from), size, send)) {
        localmoe::set_async(backend, to, from, offset, size);
    }
}

#endif  // __linux__
