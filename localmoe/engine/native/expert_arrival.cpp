// One token's multiplication while its experts come: those that are there are multiplied while the disk
// brings the others.
//
// llama.cpp's kernel takes all chosen experts of a projection at once, so it would have to wait for the last
// one. For one token it multiplies each expert's rows by themselves, with the type's own functions; these
// are called here, expert by expert in the order in which they come, so the numbers are the same. With more tokens,
// or with everything in memory, its kernel does it.

#if defined(__linux__)

#include "expert_cache.h"

#include <algorithm>

namespace localmoe {

namespace {

// A thread's copy of a row that is multiplied, in the type that the kernel wants.
struct operand {
    uint64_t           serial = 0;  // of the multiplication
    int64_t            row    = -1;
    std::vector<float> data;
};

std::atomic<uint64_t> last_serial{0};  // of any cache's

}  // namespace

// Whether thread 0 may open the gate before all is there; if so, what the threads go by is laid out.
// `waiting_` from now on: a read that fails is an error, not something to be asked for again.
bool expert_cache::multiplies_itself(group & g, int t, const ggml_tensor * op, bool reference) {
    const ggml_tensor *a = op->src[0], *b = op->src[1], *ids = op->src[2];
    auto * traits = type_traits_(a->type);
    int64_t k = ids->ne[0];
    bool plain = how_ == PRIVATE && !reference && ids->ne[1] == 1 && k <= int64_t(arrival::MOST) && b->type == GGML_TYPE_F32 &&
                 b->nb[0] == sizeof(float) && b->ne[2] == 1 && b->ne[0] == a->ne[0] && op->type == GGML_TYPE_F32 &&
                 op->nb[0] == sizeof(float) && op->ne[0] == a->ne[1] && op->ne[1] == k && traits->vec_dot;
    if (!plain || (traits->vec_dot_type != GGML_TYPE_F32 && !type_traits_(traits->vec_dot_type)->from_float)) {
        return false;
    }
    for (int64_t rank = 0; rank < k; rank++) {
        int e = id_at(ids, 0, rank);
        if (e < 0 || e >= int(g.experts.size())) {
            return false;
        }
        coming_.experts[size_t(rank)] = e;
    }
    coming_.g     = &g;
    coming_.t     = t;
    coming_.k     = int(k);
    coming_.parts = int((a->ne[1] + arrival::ROWS - 1) / arrival::ROWS);
    coming_.serial = ++last_serial;
    coming_.there = 0;
    coming_.taken = 0;
    coming_.over  = false;
    coming_.op    = op;
    waiting_      = true;
    stats_.arrivals++;
    return true;
}

// Those whose part of this tensor has come since the last look are handed to all threads.
void expert_cache::announce() {
    auto & c = coming_;
    int before = c.there.load(std::memory_order_relaxed), there = before;
    for (int rank = 0; rank < c.k; rank++) {
        auto known = c.ranks.begin() + there;
        if (c.g->experts[size_t(c.experts[size_t(rank)])].pieces[c.t].state == READY &&
            std::find(c.ranks.begin(), known, rank) == known) {
            c.ranks[size_t(there++)] = rank;
        }
    }
    if (there != before) {
        std::lock_guard<std::mutex> lock(gate_);
        c.there.store(there, std::memory_order_release);
        if (sleepers_) {
            go_.notify_all();
        }
    }
}

// Some rows of an expert that is there, which no thread has taken; -1: there are none now.
int expert_cache::take_rows() {
    auto & c = coming_;
    int part = c.taken.load(std::memory_order_relaxed);
    while (part < c.there.load(std::memory_order_acquire) * c.parts) {
        if (c.taken.compare_exchange_weak(part, part + 1, std::memory_order_relaxed)) {
            return part;
        }
    }
    return -1;
}

// As `ggml_compute_forward_mul_mat_id_one_chunk` in llama.cpp's ggml-cpu.c.
void expert_cache::multiply_rows(const ggml_tensor * op, int part) {
    static thread_local operand converted;
    auto & c = coming_;
    const ggml_tensor *a = op->src[0], *b = op->src[1];
    int64_t rank = c.ranks[size_t(part / c.parts)], row = rank % b->ne[1], width = a->ne[0];
    int64_t begin = part % c.parts * arrival::ROWS, end = std::min(begin + arrival::ROWS, a->ne[1]);
    auto * traits = type_traits_(a->type);
    auto * x = reinterpret_cast<const float *>(static_cast<const char *>(b->data) + row * int64_t(b->nb[1]));
    const void * with = x;
    if (traits->vec_dot_type != GGML_TYPE_F32) {
        if (converted.serial != c.serial || converted.row != row) {
            converted.data.resize(2 * size_t(width));
            type_traits_(traits->vec_dot_type)->from_float(x, converted.data.data(), width);
            converted.serial = c.serial;
            converted.row    = row;
        }
        with = converted.data.data();
    }
    auto * weights = static_cast<const char *>(a->data) + size_t(c.experts[size_t(rank)]) * a->nb[2];
    auto * out = reinterpret_cast<float *>(static_cast<char *>(op->data) + rank * int64_t(op->nb[1]));
    for (int64_t i = begin; i < end; i++) {
        traits->vec_dot(int(width), out + i, 0, weights + i * int64_t(a->nb[1]), 0, with, 0, 1);
    }
}

// By all threads, once thread 0 has started the reads.
void expert_cache::multiply_as_they_come(const ggml_compute_params * params, const ggml_tensor * op) {
    if (params->ith) {
        safely([&] { help(op); });
        return;
    }
    safely([&] { lead(op); });
    fresh_.clear();
    std::lock_guard<std::mutex> lock(mutex_);
    waiting_ = false;
    broken_  = coming_.taken != coming_.k * coming_.parts;
    std::lock_guard<std::mutex> gate(gate_);
    coming_.over = true;
    go_.notify_all();
}

// Thread 0: takes in what the disk brings, and multiplies in between.
void expert_cache::lead(const ggml_tensor * op) {
    std::unique_lock<std::mutex> lock(mutex_);
    auto & c = coming_;
    steady::time_point since = {};  // when it began to wait
    while (!stopped()) {
        reap(0);
        announce();
        if (c.there == c.k) {
            foretell_next(*c.g, 1, c.k);
        }
        int part = take_rows();
        if (part < 0 && c.taken == c.k * c.parts) {
            break;
        }
        if (part < 0) {
            since = since == steady::time_point{} ? steady::now() : since;
            read_on(lock, since);
            continue;
        }
        stats_.stall_s += since == steady::time_point{} ? 0 : seconds_since(since);
        since = {};
        lock.unlock();
        multiply_rows(op, part);
        lock.lock();
    }
    stats_.stall_s += since == steady::time_point{} ? 0 : seconds_since(since);
}

// The other threads: what is there, until there is nothing left.
void expert_cache::help(const ggml_tensor * op) {
    auto & c = coming_;
    auto done = [&] { return c.over || c.taken == c.k * c.parts; };
    int spins = 0;
    while (!done()) {
        int part = take_rows();
        if (part >= 0) {
            multiply_rows(op, part);
            spins = 0;
        } else if (++spins < SPINS) {
            pause();
        } else {
            std::unique_lock<std::mutex> lock(gate_);
            sleepers_++;
            go_.wait(lock, [&] { return done() || c.taken < c.there * c.parts; });
            sleepers_--;
            spins = 0;
        }
    }
}

}  // namespace localmoe

#endif  // __linux__
