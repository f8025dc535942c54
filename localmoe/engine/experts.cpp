// Routed experts on demand: what a token's router chose is in memory before it is multiplied.
//
// llama.cpp asks each of its CPU "extra buffer types" before it computes a node, on every thread of
// the computation. We add one that never owns a tensor and only looks. When the node is a
// multiplication by routed experts (GGML_OP_MUL_MAT_ID) the ids are known, thread 0 makes sure that
// those experts are there, and all threads go on together. No node is split off and no callback
// ends a graph, so computing resident experts costs what it costs without us, and it makes no
// difference where the router itself ran: for a CPU multiplication its ids are in host memory.
//
// Two ways to have an expert "there":
//
// page     The tensor stays llama.cpp's mapping of the file. Missing pages of the routed experts
//          are read in parallel, exactly those, instead of one page fault after the other.
// private  The tensor's data is redirected to address space of our own with the same rows, and a
//          larger stride between experts. An expert that is not there has inaccessible pages, and
//          what is there never exceeds a budget. While there is room, an expert's place maps the
//          file: pages that the system has already cost nothing, and none is zeroed before it is
//          read. At the budget the least valuable expert is dropped, and the new one gets anonymous
//          memory, read directly (O_DIRECT; file offset and address agree modulo the page size).
//          From then on that memory moves from the evicted expert to the next one by mremap: no
//          fresh page, no copy, nothing for the page cache to do.
//
// The lock is held for decisions only, never while reading or computing.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <cerrno>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ggml_layout.h"
#include "recording.h"
#include "usage.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

// ---- what we share with ggml: ggml_layout.h, and from ggml-cpu-impl.h, ggml-backend-impl.h, traits.h

struct ggml_compute_params {
    int    ith, nth;
    size_t wsize;
    void * wdata;
    void * threadpool;
    bool   use_ref;
};

struct ggml_backend_buffer_type {
    void * iface[6];
    void * device;
    void * context;
};

namespace ggml::cpu {
class tensor_traits {
  public:
    virtual ~tensor_traits() = default;
    virtual bool work_size(int n_threads, const ggml_tensor * op, size_t & size)      = 0;
    virtual bool compute_forward(ggml_compute_params * params, ggml_tensor * op)      = 0;
};

class extra_buffer_type {
  public:
    virtual ~extra_buffer_type() = default;
    virtual bool            supports_op(void * dev, const ggml_tensor * op) = 0;
    virtual tensor_traits * get_tensor_traits(const ggml_tensor * op)       = 0;
};
}  // namespace ggml::cpu

using extra_types_fn = std::vector<ggml_backend_buffer_type *> & (*)();
using get_tensor_fn  = ggml_tensor * (*)(const void * model, const char * name);
using is_host_fn     = bool (*)(void * buffer);

// ---- what Python hands over ----------------------------------------------------------------------

struct localmoe_symbols {
    void * extra_types;
    void * op_name;
    void * get_tensor;
    void * is_host;
};

struct localmoe_expert_tensor {  // one *_exps.weight
    const char * name;
    int32_t      group;    // tensors of one group share their experts' ids: one layer
    int32_t      file;     // index of the part
    int64_t      offset;   // bytes in that part
    int64_t      nbytes;   // of all experts
    int32_t      experts;
};

struct localmoe_expert_stats {
    uint64_t lookups, misses;   // routed experts of decoded tokens, and those that were not there
    uint64_t bytes_read;        // by us, from files
    uint64_t evictions;
    uint64_t prefetched, prefetch_used;
    double   stall_s;           // computing waited for reading
    uint64_t resident_bytes;    // experts within the budget
    uint64_t own_bytes;         // of those, in anonymous memory
    uint64_t calls;             // multiplications seen
    uint64_t preferred;         // chosen experts that gave way to resident ones (lossy)
};

namespace {

using steady = std::chrono::steady_clock;

double seconds_since(steady::time_point start) {
    return std::chrono::duration<double>(steady::now() - start).count();
}

constexpr size_t PAGE  = 4096;  // also the alignment of direct reads: every disk takes it

size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }
size_t down(size_t n, size_t to) { return n / to * to; }

enum mode : int32_t { OFF = 0, PAGES = 1, PRIVATE = 2 };
enum piece_state : uint8_t { ABSENT = 0, QUEUED = 1, READING = 2, READY = 3 };
enum backing : uint8_t { NOTHING = 0, FILE_PAGES = 1, OWN = 2 };

constexpr int MAX_TENSORS = 4;  // of one group: gate, up, down, and one to spare

struct expert {
    bool    resident = false;  // has memory (private) or was routed before (page)
    backing memory   = NOTHING;
    bool    foretold = false;  // brought by prefetch, not used yet
    bool    counted  = false;  // this visit's lookup is a decoded token's (page: miss not seen yet)
    struct {
        piece_state state = ABSENT;
        bool        bad   = false;  // a chunk could not be read
        uint16_t    next  = 0;      // chunk to be read next
        uint16_t    left  = 0;      // chunks not there yet
    } pieces[MAX_TENSORS];
    int64_t last_use = -1;     // number of the token that used it
    double  worth    = -1e300; // how often it was used, old uses fading; see `used`
    int64_t pinned   = -1;     // the visit that needs it
};

struct tensor_info {
    ggml_tensor * tensor;
    int     file;
    int64_t offset;   // of expert 0
    size_t  bytes;    // of one expert
    size_t  at;       // private: bytes from the start of an expert's place to its data
    void *  mapped;   // llama.cpp's own data pointer and strides, put back at the end
    size_t  nb2, nb3;
};

struct group {
    int layer = 0;
    std::vector<tensor_info> tensors;
    std::vector<expert>      experts;
    char * base      = nullptr;  // private: address space of all experts
    size_t span      = 0;
    size_t stride    = 0;
    size_t slot      = 0;        // bytes that one expert occupies there, whole pages
    bool   direct    = true;     // file and memory agree modulo PAGE for every expert
    bool   taken     = false;    // tensors are redirected
    int    resident  = 0;
    int    capacity  = 0;
    double share     = -1;       // of its experts at the planned budget; < 0: like the others
    int64_t turn     = -1;       // when it was computed last, for "needed again the latest"
    uint32_t seen    = 0;        // tensors multiplied in this visit, as bits
    int64_t  rows    = 0;        // tokens of this batch that were routed here so far
};

struct part {
    std::string path;
    int         fd = -1, direct = -1;
    struct stat then;
};

struct file_range {
    int     file;
    int64_t offset, length;
};

struct piece {  // of one expert's part of one tensor
    group * g;
    int     expert;
    int     tensor;
    int     chunk, chunks;
};

// Direct reads that thread 0 starts itself, so that no thread has to wait for them (io_submit(2)):
// handing a small read to a sleeping reader and back takes about as long as reading it.
class direct_queue {
  public:
    direct_queue() { working_ = syscall(SYS_io_setup, DEPTH, &context_) == 0; }

    ~direct_queue() {
        if (working_) {
            syscall(SYS_io_destroy, context_);  // returns when nothing is under way
        }
    }

    bool room() const { return working_ && under_way_ < DEPTH; }
    int  under_way() const { return under_way_; }

    bool start(int fd, void * target, size_t length, int64_t offset, const piece & p) {
        int free = 0;
        while (slots_[free].used) {
            free++;
        }
        slot & s = slots_[free];
        memset(&s.block, 0, sizeof s.block);
        s.block.aio_fildes     = uint32_t(fd);
        s.block.aio_lio_opcode = IOCB_CMD_PREAD;
        s.block.aio_buf        = uint64_t(target);
        s.block.aio_nbytes     = length;
        s.block.aio_offset     = offset;
        s.block.aio_data       = uint64_t(free);
        iocb * list[] = {&s.block};
        if (syscall(SYS_io_submit, context_, 1, list) != 1) {
            return false;
        }
        s.used = true;
        s.what = p;
        under_way_++;
        return true;
    }

    // Calls done(piece, bytes or -errno) for each read that has ended; `patience` nanoseconds are
    // waited for the first.
    template <typename F> void reap(long patience, F done) {
        io_event events[DEPTH];
        timespec timeout = {0, patience};
        long n = under_way_ ? syscall(SYS_io_getevents, context_, patience ? 1 : 0, DEPTH, events, &timeout) : 0;
        for (long i = 0; i < n; i++) {
            slot & s = slots_[events[i].data];
            s.used = false;
            under_way_--;
            done(s.what, int64_t(events[i].res));
        }
    }

  private:
    static constexpr int DEPTH = 64;
    struct slot {
        iocb  block;
        piece what;
        bool  used = false;
    };
    aio_context_t context_ = 0;
    bool          working_ = false;
    int           under_way_ = 0;
    slot          slots_[DEPTH];
};

class expert_cache final : public ggml::cpu::tensor_traits, public ggml::cpu::extra_buffer_type {
  public:
    expert_cache(const localmoe_symbols & symbols, mode how, uint64_t budget, int readers, int32_t * interrupt)
        : how_(how), budget_(budget), reader_count_(readers), interrupt_(interrupt) {
        extra_types_ = reinterpret_cast<extra_types_fn>(symbols.extra_types);
        auto op_name = reinterpret_cast<op_name_fn>(symbols.op_name);
        mul_mat_id_  = op_named(op_name, "MUL_MAT_ID");
        get_rows_    = op_named(op_name, "GET_ROWS");
        mul_         = op_named(op_name, "MUL");
        buffer_type_.context = static_cast<ggml::cpu::extra_buffer_type *>(this);
    }

    ~expert_cache() override {
        remove();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        work_.notify_all();
        for (auto & thread : readers_) {
            thread.join();
        }
        for (auto & g : groups_) {
            give_tensors_back(g);
            if (g.base) {
                munmap(g.base, g.span);
            }
        }
        for (auto & file : files_) {
            close(file.fd);
            close(file.direct);
        }
    }

    bool add_file(const char * path) {
        part file;
        file.path = path;
        file.fd   = open(path, O_RDONLY | O_CLOEXEC);
        if (file.fd < 0 || fstat(file.fd, &file.then) != 0) {
            return fail(std::string("cannot open ") + path + ": " + strerror(errno));
        }
        file.direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
        if (file.direct < 0) {  // some file systems have no direct reads
            file.direct = dup(file.fd);
        }
        files_.push_back(file);
        return true;
    }

    // A tensor of a group; groups come in the order in which they are computed.
    void add_tensor(const localmoe_expert_tensor & entry, ggml_tensor * tensor) {
        if (groups_.empty() || entry.group != last_group_) {
            groups_.emplace_back();
            groups_.back().experts.resize(entry.experts);
            groups_.back().layer = entry.group;
            last_group_ = entry.group;
        }
        group & g = groups_.back();
        g.tensors.push_back({tensor, entry.file, entry.offset, size_t(entry.nbytes / entry.experts), 0,
                             tensor->data, tensor->nb[2], tensor->nb[3]});
    }

    bool start() {
        for (auto & g : groups_) {
            if (how_ == PRIVATE && !lay_out(g)) {
                return false;
            }
            for (auto & t : g.tensors) {
                if (how_ == PAGES) {  // no window around a fault: we say what is needed
                    auto from = down(size_t(t.mapped), PAGE);
                    madvise(reinterpret_cast<void *>(from), up(size_t(t.mapped) + t.bytes * g.experts.size(), PAGE) - from,
                            MADV_RANDOM);
                }
            }
        }
        share_budget();
        share_mappings();
        for (int i = 0; i < reader_count_; i++) {
            readers_.emplace_back([this] { read_loop(); });
        }
        extra_types_().push_back(&buffer_type_);
        installed_ = true;
        return true;
    }

    void remove() {
        if (installed_) {
            auto & types = extra_types_();
            types.erase(std::remove(types.begin(), types.end(), &buffer_type_), types.end());
            installed_ = false;
        }
    }

    // Before each llama_decode: the tokens of the batch, how many came before them, and the number of
    // the decoded token (-1 while a prompt is read). False, here and at the end: `error` says why not.
    bool begin(int64_t position, int64_t tokens, int64_t decoded) {
        std::lock_guard<std::mutex> lock(mutex_);
        failed_ = false;
        broken_ = false;
        error_.clear();
        decoding_ = decoded >= 0;
        step_     = decoding_ ? imposed_prefill_ + decoded : position;
        last_     = decoding_ ? imposed_steps_ : imposed_prefill_;
        clock_ += batch_;
        batch_ = tokens;
        for (auto & g : groups_) {
            g.seen = g.rows = 0;
        }
        for (size_t i = 0; i < files_.size(); i++) {
            std::string problem = changed(int(i));
            if (!problem.empty()) {
                fail_locked(problem);
            }
        }
        return !failed_;
    }

    // After each llama_decode: nothing is needed any more.
    bool end() {
        std::lock_guard<std::mutex> lock(mutex_);
        visit_++;
        keep_budget();
        return !failed_;
    }

    std::string error() {
        std::lock_guard<std::mutex> lock(mutex_);
        return error_;
    }

    localmoe_expert_stats stats() {
        std::lock_guard<std::mutex> lock(mutex_);
        localmoe_expert_stats result = stats_;
        result.resident_bytes = used_;
        result.own_bytes      = own_;
        return result;
    }

    // Per group: lookups and misses of decoded tokens so far.
    int32_t layer_stats(uint64_t * lookups, uint64_t * misses, int32_t max) {
        std::lock_guard<std::mutex> lock(mutex_);
        int32_t n = std::min<int32_t>(max, int32_t(groups_.size()));
        std::copy_n(layer_lookups_.begin(), n, lookups);
        std::copy_n(layer_misses_.begin(), n, misses);
        return n;
    }

    void resize(uint64_t budget) {
        std::unique_lock<std::mutex> lock(mutex_);
        budget_ = budget;
        share_budget();
        keep_budget();
        work_.notify_all();
    }

    // Each group's share of its experts at the present budget.
    void share_out(const float * shares, int32_t n) {
        std::lock_guard<std::mutex> lock(mutex_);
        planned_ = budget_;
        for (int32_t i = 0; i < std::min<int32_t>(n, int32_t(groups_.size())); i++) {
            groups_[size_t(i)].share = shares[i];
        }
        share_budget();
    }

    // What is resident, most recently used first: (group, expert) pairs.
    int32_t hot(int32_t * out, int32_t max) {
        std::lock_guard<std::mutex> lock(mutex_);
        struct entry { int64_t last; int g, e; };
        std::vector<entry> all;
        for (size_t gi = 0; gi < groups_.size(); gi++) {
            for (size_t e = 0; e < groups_[gi].experts.size(); e++) {
                auto & x = groups_[gi].experts[e];
                if (x.resident && x.last_use >= 0) {
                    all.push_back({x.last_use, int(gi), int(e)});
                }
            }
        }
        std::sort(all.begin(), all.end(), [](const entry & a, const entry & b) { return a.last > b.last; });
        int32_t n = 0;
        for (auto & entry : all) {
            if (n == max) {
                break;
            }
            out[2 * n] = entry.g;
            out[2 * n + 1] = entry.e;
            n++;
        }
        return n;
    }

    // Read these experts while nothing else is read, as far as they fit without evicting.
    void warm(const int32_t * pairs, int32_t n) {
        std::lock_guard<std::mutex> lock(mutex_);
        for (int32_t i = 0; i < n; i++) {
            int gi = pairs[2 * i], e = pairs[2 * i + 1];
            if (gi < 0 || gi >= int(groups_.size()) || e < 0 || e >= int(groups_[gi].experts.size())) {
                continue;
            }
            hot_.push_back({&groups_[gi], e, 0, 0, 0});
        }
        work_.notify_all();
    }

    // ---- called by llama.cpp --------------------------------------------------------------------

    bool supports_op(void *, const ggml_tensor *) override { return false; }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        if (op->op == mul_mat_id_) {
            return this;
        }
        // Nodes of llama.cpp's build_moe_ffn: "ffn_moe_weights-L" gathers the weights of the chosen
        // experts, so ids changed before it are used throughout; "ffn_moe_weighted-L" applies them.
        bool named = (op->op == get_rows_ && steering_) || (op->op == mul_ && recording_);
        if (named && strncmp(op->name, "ffn_moe_weight", 14) == 0) {
            return this;
        }
        return recording_ && recording_->logits_in(op) ? this : nullptr;
    }

    bool work_size(int, const ggml_tensor *, size_t &) override { return false; }

    // True: "computed", which skips the node. That is how a failed read keeps the threads from
    // touching what is not there; the abort callback then ends the graph.
    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (op->op == mul_mat_id_) {
            return multiply(params, op);
        }
        const ggml_tensor * logits = recording_ ? recording_->logits_in(op) : nullptr;
        if (logits) {
            if (params->ith == 0) {
                recording_->logits(logits);
            }
            together(params);  // the node may write its result over them
        } else if (op->op == mul_) {
            if (params->ith == 0 && recording_) {
                recording_->weights(layer_named(op, "ffn_moe_weighted-"), op->src[1]);
            }
        } else if (group * g = group_of(layer_named(op, "ffn_moe_weights-"))) {
            if (params->ith == 0) {
                steer(*g, op->src[0], op->src[1]);
            }
            together(params);
        }
        return false;
    }

    // A recorded routing to impose: expert ids [steps][layers][k], layers as in the model, -1 for none.
    // The first `prefill` steps are for prompts, by position, the others for decoded tokens.
    void impose(const int32_t * ids, int64_t prefill, int64_t steps, int64_t layers, int64_t k) {
        std::lock_guard<std::mutex> lock(mutex_);
        imposed_.assign(ids, ids + steps * layers * k);
        imposed_layers_ = layers;
        imposed_prefill_ = prefill;
        imposed_steps_ = steps;
        imposed_k_ = k;
        steering_ = steps > 0 || prefer_ > 0;
    }

    // How much less probable than the chosen one an expert may be that is taken because it is there.
    void prefer(float share) {
        prefer_ = share;
        steering_ = share > 0 || !imposed_.empty();
    }

    void record(recording * to) { recording_ = to; }

    // From now on, how often each expert is used; see usage.h.
    void count_uses() {
        std::lock_guard<std::mutex> lock(mutex_);
        usage_.clear();
        for (auto & g : groups_) {
            usage_.emplace_back(g.experts.size());
        }
    }

    bool usage(int32_t index, uint64_t * uses, uint64_t * found_at, int32_t experts, localmoe_usage_totals & totals) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (index < 0 || index >= int32_t(usage_.size()) || usage_[size_t(index)].uses.size() != size_t(experts)) {
            return false;
        }
        auto & u = usage_[size_t(index)];
        std::copy(u.uses.begin(), u.uses.end(), uses);
        std::copy(u.found_at.begin(), u.found_at.end(), found_at);
        totals = u.totals;
        return true;
    }

  private:
    bool multiply(ggml_compute_params * params, const ggml_tensor * op) {
        group * g;
        int     t;
        if (!find(op->src[0], g, t)) {
            return false;
        }
        if (how_ == OFF) {  // nothing is waited for
            if (params->ith == 0 && t == 0) {
                observe(*g, op->src[2]);
            }
            return false;
        }
        if (params->ith == 0) {
            provide(*g, t, op->src[2]);
        }
        together(params);
        return broken_;
    }

    // −1: the node is called otherwise.
    static int layer_named(const ggml_tensor * op, const char * prefix) {
        size_t length = strlen(prefix);
        return strncmp(op->name, prefix, length) == 0 ? atoi(op->name + length) : -1;
    }

    group * group_of(int layer) {
        for (auto & g : groups_) {
            if (g.layer == layer) {
                return &g;
            }
        }
        return nullptr;
    }

    // The other threads go on when thread 0 does. They sleep while it waits for the disk: the readers
    // need the processor. The last one closes the gate again; nobody can be at the next one before
    // that, since ggml has a barrier after each node. How many threads compute may change from graph
    // to graph, so none counts for itself.
    void together(const ggml_compute_params * params) {
        if (params->ith == 0) {
            std::lock_guard<std::mutex> lock(mutex_);
            open_.store(true, std::memory_order_release);
            if (sleepers_) {
                go_.notify_all();
            }
        } else {
            pass_gate();
        }
        if (left_.fetch_add(1, std::memory_order_acq_rel) + 1 == params->nth) {
            left_.store(0, std::memory_order_relaxed);
            open_.store(false, std::memory_order_release);
        }
    }

    void pass_gate() {
        for (int spin = 0; spin < SPINS; spin++) {
            if (open_.load(std::memory_order_acquire)) {
                return;
            }
            pause();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_++;
        go_.wait(lock, [&] { return open_.load(std::memory_order_relaxed); });
        sleepers_--;
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    // The batch's token of the first of n rows: a layer may compute the last tokens of a batch only,
    // or a batch in several parts.
    int64_t first_row(int64_t before, int64_t n) const {
        return before == 0 && n < batch_ && n == 1 ? batch_ - n : before;
    }

    void steer(group & g, const ggml_tensor * probabilities, ggml_tensor * ids) {
        std::lock_guard<std::mutex> lock(mutex_);
        int64_t k = ids->ne[0], n = ids->ne[1];
        if (!imposed_.empty() && g.layer < imposed_layers_) {
            int64_t first = step_ + first_row(g.rows, n);
            for (int64_t token = 0; token < n && first + token < last_; token++) {
                int64_t at = ((first + token) * imposed_layers_ + g.layer) * imposed_k_;
                for (int64_t rank = 0; rank < std::min(k, imposed_k_); rank++) {
                    int e = imposed_[size_t(at + rank)];
                    if (e >= 0 && e < int(g.experts.size())) {
                        id_at(ids, token, rank) = e;
                    }
                }
            }
        }
        if (prefer_ > 0 && decoding_ && how_ == PRIVATE) {
            prefer_resident(g, probabilities, ids);
        }
    }

    // Lossy: the last-ranked chosen experts that are not in memory give way to resident ones that
    // the router finds nearly as good. Probabilities are [1, experts, 1].
    void prefer_resident(group & g, const ggml_tensor * probabilities, ggml_tensor * ids) {
        auto p = [&](int e) {
            return *reinterpret_cast<const float *>(static_cast<const char *>(probabilities->data) + size_t(e) * probabilities->nb[1]);
        };
        int64_t k = ids->ne[0];
        for (int64_t rank = k - 1; rank >= 1; rank--) {  // the first choice is always kept
            int chosen = id_at(ids, 0, rank);
            if (g.experts[size_t(chosen)].resident) {
                continue;
            }
            int best = -1;
            for (int e = 0; e < int(g.experts.size()); e++) {
                bool taken = false;
                for (int64_t r = 0; r < k; r++) {
                    taken = taken || id_at(ids, 0, r) == e;
                }
                if (!taken && g.experts[size_t(e)].resident && (best < 0 || p(e) > p(best))) {
                    best = e;
                }
            }
            if (best >= 0 && p(best) >= (1 - prefer_) * p(chosen)) {
                id_at(ids, 0, rank) = best;
                stats_.preferred++;
            }
        }
    }

    bool find(const ggml_tensor * weights, group *& g, int & t) {
        // 3 tensors × some dozen layers: the tensor that comes next is nearly always the one after
        // the last, but each thread looks for itself, so a search it is.
        for (auto & candidate : groups_) {
            for (size_t i = 0; i < candidate.tensors.size(); i++) {
                if (candidate.tensors[i].tensor == weights) {
                    g = &candidate;
                    t = int(i);
                    return true;
                }
            }
        }
        return false;
    }

    // ---- address space ---------------------------------------------------------------------------

    // One expert's tensors side by side, so that one slot, one move and one eviction serve them all.
    bool lay_out(group & g) {
        size_t rest = g.tensors[0].bytes % PAGE;
        for (auto & t : g.tensors) {
            if (t.bytes % PAGE != rest) {
                g.direct = false;
            }
        }
        rest = g.direct ? rest : 0;
        // A direct read covers whole pages; where experts begin within a page, neighbours in memory
        // are kept a page apart.
        size_t gap = rest ? PAGE : 0, at = gap;
        for (auto & t : g.tensors) {
            t.at = g.direct ? up(at, PAGE) + size_t(t.offset) % PAGE : up(at, 64);
            at   = t.at + t.bytes + gap;
        }
        g.slot   = up(at, PAGE) + gap;
        g.stride = g.slot + gap + rest;
        g.span   = g.stride * g.experts.size() + 2 * PAGE;
        void * base = mmap(nullptr, g.span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) {
            return fail("no address space for the experts");
        }
        g.base = static_cast<char *>(base);
        return true;
    }

    char * place(const group & g, int expert) const {
        return g.base + down(g.stride * size_t(expert), PAGE);
    }

    void take_tensors(group & g) {
        for (auto & t : g.tensors) {
            t.tensor->data  = g.base + t.at;
            t.tensor->nb[2] = g.stride;
            t.tensor->nb[3] = g.stride * g.experts.size();
        }
        g.taken = true;
    }

    void give_tensors_back(group & g) {
        if (g.taken) {
            for (auto & t : g.tensors) {
                t.tensor->data  = t.mapped;
                t.tensor->nb[2] = t.nb2;
                t.tensor->nb[3] = t.nb3;
            }
            g.taken = false;
        }
    }

    // ---- memory ----------------------------------------------------------------------------------

    // Each layer's part of the budget: as it was planned, else in proportion to its size.
    void share_budget() {
        layer_lookups_.resize(groups_.size());
        layer_misses_.resize(groups_.size());
        uint64_t total = 0;
        for (auto & g : groups_) {
            total += uint64_t(g.slot) * g.experts.size();
        }
        for (auto & g : groups_) {
            double share = g.share < 0 ? double(budget_) / double(std::max<uint64_t>(total, 1))
                                       : g.share * double(budget_) / double(std::max<uint64_t>(planned_, 1));
            g.capacity = int(std::min(1.0, share) * double(g.experts.size()) + 1e-3);
        }
    }

    // The system bounds a process's mappings. Memory of our own takes two per expert (it, and the gap
    // after it), the file's pages two per tensor: so many experts may have those.
    void share_mappings() {
        long most = 65530;  // Linux' default
        if (FILE * file = fopen("/proc/sys/vm/max_map_count", "re")) {
            if (fscanf(file, "%ld", &most) != 1) {
                most = 65530;
            }
            fclose(file);
        }
        most -= most / 8;  // libraries, threads, the allocator
        long more = 1;
        for (auto & g : groups_) {
            most -= 2 * long(g.experts.size());
            more = std::max(more, 2 * long(g.tensors.size()) - 2);
        }
        most_file_backed_ = most / more;
    }

    // Whether an expert may be evicted now: not needed by this visit, no reader in it.
    bool idle(const expert & x) const {
        if (!x.resident || x.pinned == visit_) {
            return false;
        }
        for (auto & p : x.pieces) {
            if (p.state == READING) {
                return false;
            }
        }
        return true;
    }

    int oldest(const group & g) const {
        int best = -1;
        for (size_t e = 0; e < g.experts.size(); e++) {
            auto & x = g.experts[e];
            if (idle(x) && (best < 0 || x.worth < g.experts[best].worth)) {
                best = int(e);
            }
        }
        return best;
    }

    void forget(group & g, int e) {
        auto & x = g.experts[e];
        x.resident = x.foretold = false;
        for (auto & p : x.pieces) {
            p.state = ABSENT;  // a queued piece is dropped by whoever takes it from the queue
        }
        g.resident--;
        used_ -= g.slot;
        own_ -= x.memory == OWN ? g.slot : 0;
        file_backed_ -= x.memory == FILE_PAGES;
        x.memory = NOTHING;
        stats_.evictions++;
    }

    // Give an expert's memory back to the system; its place becomes inaccessible.
    void release(group & g, int e) {
        if (g.experts[e].memory == FILE_PAGES) {
            for (auto & t : g.tensors) {
                dropped_.push_back({t.file, t.offset + int64_t(t.bytes) * e, int64_t(t.bytes)});
            }
        }
        forget(g, e);
        hide(g, e);
    }

    void hide(group & g, int e) {
        mmap(place(g, e), g.slot, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }

    // What was in use when the budget shrank goes as soon as it is not.
    void keep_budget() {
        while (used_ > budget_ && release_one(nullptr)) {
        }
    }

    bool release_one(const group * except) {
        group * from = donor(except, true);
        int     e    = from ? oldest(*from) : -1;
        if (e >= 0) {
            release(*from, e);
        }
        return e >= 0;
    }

    // Who gives memory when the layer itself should not: first one that has more than its part, then
    // the one that was computed last and so is needed again the latest.
    group * donor(const group * except, bool below_capacity) {
        group * best = nullptr;
        for (int pass = 0; pass < (below_capacity ? 2 : 1) && !best; pass++) {
            for (auto & g : groups_) {
                if (&g == except || g.resident == 0 || (pass == 0 && g.resident <= g.capacity) ||
                    (best && g.turn <= best->turn)) {
                    continue;
                }
                if (oldest(g) >= 0) {
                    best = &g;
                }
            }
        }
        return best;
    }

    enum urgency { NEEDED, LIKELY, SPARE };  // for now, for soon, only if nobody misses it

    // Memory at an expert's place.
    bool give_memory(group & g, int e, urgency why) {
        keep_budget();
        if (used_ + g.slot <= budget_) {
            if (g.direct ? map_file(g, e) : map_own(g, e)) {
                return true;
            }
            budget_ = used_;  // the system gives no more
        }
        group * from = why == NEEDED && g.resident >= g.capacity && oldest(g) >= 0 ? &g : donor(&g, why != SPARE);
        if (!from && why == NEEDED && oldest(g) >= 0) {
            from = &g;
        }
        if (!from) {
            return false;
        }
        int victim = oldest(*from);
        if (from->slot == g.slot && from->experts[victim].memory == OWN) {
            char * source = place(*from, victim);
            char * target = place(g, e);
            if (mremap(source, g.slot, g.slot, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, target) != MAP_FAILED) {
                mprotect(source, g.slot, PROT_NONE);
                forget(*from, victim);
                return gave(g, e, OWN);
            }
        }
        release(*from, victim);
        while (used_ + g.slot > budget_) {  // experts of this layer are larger
            if (!release_one(why == NEEDED ? nullptr : &g)) {
                return false;
            }
        }
        // A prompt streams through, and zeroing fresh memory costs more than the page cache; what a
        // decoded token needs comes and goes for long, so that memory of our own pays.
        bool pays = decoding_ && !direct_is_slow();
        return g.direct && !pays ? map_file(g, e) : map_own(g, e);
    }

    // Some file systems read past their cache slowly; then the page cache serves all along.
    bool direct_is_slow() const {
        return direct_reads_.bytes > ENOUGH && page_reads_.bytes > ENOUGH &&
               direct_reads_.seconds / double(direct_reads_.bytes) > 1.5 * page_reads_.seconds / double(page_reads_.bytes);
    }

    bool gave(group & g, int e, backing memory) {
        auto & x = g.experts[e];
        x.resident = true;
        x.memory = memory;
        g.resident++;
        used_ += g.slot;
        own_ += memory == OWN ? g.slot : 0;
        file_backed_ += memory == FILE_PAGES;
        return true;
    }

    bool map_own(group & g, int e) {
        void * target = mmap(place(g, e), g.slot, PROT_READ | PROT_WRITE,
                             MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return target != MAP_FAILED && gave(g, e, OWN);
    }

    bool map_file(group & g, int e) {
        if (file_backed_ >= most_file_backed_) {
            return map_own(g, e);
        }
        for (auto & t : g.tensors) {
            int64_t offset = t.offset + int64_t(t.bytes) * e;
            int64_t from   = int64_t(down(size_t(offset), PAGE));
            char *  target = data_of(g, t, e) - (offset - from);
            size_t  length = up(size_t(offset - from) + t.bytes, PAGE);
            if (mmap(target, length, PROT_READ, MAP_FIXED | MAP_SHARED, files_[t.file].fd, from) == MAP_FAILED) {
                hide(g, e);
                return map_own(g, e);
            }
            madvise(target, length, MADV_RANDOM);  // no window around a fault: all is read by us
        }
        return gave(g, e, FILE_PAGES);
    }

    static char * data_of(const group & g, const tensor_info & t, int e) { return g.base + g.stride * size_t(e) + t.at; }

    // ---- one multiplication ----------------------------------------------------------------------

    static int32_t & id_at(const ggml_tensor * ids, int64_t token, int64_t rank) {
        return *reinterpret_cast<int32_t *>(static_cast<char *>(ids->data) + token * ids->nb[1] + rank * ids->nb[0]);
    }

    // A layer's choice, once per visit; the batch's token of its first row.
    int64_t observe(group & g, const ggml_tensor * ids) {
        int64_t row = first_row(g.rows, ids->ne[1]);
        if (recording_) {
            recording_->ids(g.layer, ids);
        }
        if (!usage_.empty()) {
            usage_[size_t(&g - groups_.data())].add(ids, clock_ + row, decoding_, HALF_LIFE);
        }
        g.rows += ids->ne[1];
        return row;
    }

    void provide(group & g, int t, const ggml_tensor * ids) {
        std::unique_lock<std::mutex> lock(mutex_);
        stats_.calls++;
        if (failed_) {
            broken_ = true;
            return;
        }
        reap(0);
        int64_t k = ids->ne[0], n = ids->ne[1];
        bool first = g.seen == 0 || (g.seen & (1u << t));
        int64_t row = 0;
        if (first) {
            visit_++;
            g.seen = 0;
            g.turn = visit_;
            row = observe(g, ids);
        }
        g.seen |= 1u << t;
        if (how_ == PRIVATE && !g.taken) {
            take_tensors(g);
        }
        needed_.clear();
        for (int64_t token = 0; token < n; token++) {
            for (int64_t rank = 0; rank < k; rank++) {
                int e = id_at(ids, token, rank);
                if (e < 0 || e >= int(g.experts.size())) {
                    continue;  // llama.cpp checks; it is not ours to say
                }
                auto & x = g.experts[e];
                if (x.pinned != visit_) {
                    x.pinned = visit_;
                    if (how_ == PAGES && x.resident && clock_ - x.last_use > FRESH) {
                        for (auto & p : x.pieces) {  // the system may have dropped it
                            p.state = p.state == READY ? ABSENT : p.state;
                        }
                    }
                    x.counted = decoding_ && first;
                    if (x.counted) {
                        count(g, x);
                    }
                }
                if (first) {
                    x.last_use = clock_ + row + token;
                    used(x, double(x.last_use) / HALF_LIFE);
                }
                if (x.pieces[t].state != READY) {
                    needed_.push_back(e);
                }
            }
        }
        if (!needed_.empty()) {
            std::sort(needed_.begin(), needed_.end());
            needed_.erase(std::unique(needed_.begin(), needed_.end()), needed_.end());
            if (!demand(lock, g, t)) {
                return;
            }
        }
        if (first && how_ == PRIVATE && n * k >= 2 * int64_t(g.experts.size())) {
            foretell_all(g);  // a large batch needs nearly all of the next layer too
        }
        if (!needed_.empty()) {
            wait(lock, g, t);
        }
    }

    // Least frequently used with fading: a use counts half after HALF_LIFE tokens. Kept as the
    // logarithm of the count at time 0, so that it need not be touched while time passes.
    // docs/policies.md compares it with others.
    static void used(expert & x, double now) { x.worth = now + std::log2(std::exp2(x.worth - now) + 1); }

    // Slots for what is missing, and its pieces to the readers: first what is multiplied first, so
    // that reading the rest overlaps with computing.
    bool demand(std::unique_lock<std::mutex> & lock, group & g, int t) {
        for (int e : needed_) {
            auto & x = g.experts[e];
            while (how_ == PRIVATE && !x.resident && !give_memory(g, e, NEEDED)) {
                if (!reading()) {
                    fail_locked("the memory for experts is too small for one layer of this batch");
                }
                if (stopped()) {
                    broken_ = true;
                    return false;
                }
                ready_.wait_for(lock, std::chrono::milliseconds(20));
            }
            x.resident = true;
        }
        bool handed = false;
        for (size_t i = 0; i < g.tensors.size(); i++) {
            int tensor = int((t + i) % g.tensors.size());
            for (int e : needed_) {
                auto & x = g.experts[e];
                if (x.pieces[tensor].state == ABSENT && x.memory == OWN && g.direct && read_async(g, e, tensor)) {
                    continue;
                }
                if (x.pieces[tensor].state != READY) {  // a queued one may be far behind: ask again
                    ask(demand_, g, e, tensor);
                    handed = true;
                }
            }
        }
        if (handed) {
            work_.notify_all();
        }
        return true;
    }

    bool read_async(group & g, int e, int tensor) {
        if (!queue_.room()) {
            return false;
        }
        const tensor_info & t = g.tensors[tensor];
        int64_t offset = t.offset + int64_t(t.bytes) * e, from = int64_t(down(size_t(offset), PAGE));
        size_t  length = up(size_t(offset - from) + t.bytes, PAGE);
        if (!queue_.start(files_[t.file].direct, data_of(g, t, e) - (offset - from), length, from, {&g, e, tensor, 0, 1})) {
            return false;
        }
        auto & p = g.experts[e].pieces[tensor];
        p.state = READING;
        p.next  = p.left = 1;
        p.bad   = false;
        return true;
    }

    // Takes in what asynchronous reads have brought so far.
    void reap(long patience) {
        queue_.reap(patience, [&](const piece & p, int64_t n) {
            const tensor_info & t = p.g->tensors[p.tensor];
            int64_t need = int64_t(t.bytes) + (t.offset + int64_t(t.bytes) * p.expert) % int64_t(PAGE);
            std::string problem = n >= need ? changed(t.file)
                                  : n < 0   ? "cannot read " + files_[t.file].path + ": " + strerror(int(-n))
                                            : files_[t.file].path + " has become shorter while it was in use";
            stats_.bytes_read += n >= need ? t.bytes : 0;
            ended(p, problem);
        });
    }

    void ask(std::deque<piece> & queue, group & g, int e, int t) {
        auto & p = g.experts[e].pieces[t];
        if (p.state == ABSENT) {
            size_t length = up(size_t(g.tensors[t].offset) % PAGE + g.tensors[t].bytes + PAGE, CHUNK);
            p.state = QUEUED;
            p.next  = 0;
            p.left  = uint16_t(length / CHUNK);
            p.bad   = false;
        }
        queue.push_back({&g, e, t, 0, p.left});
    }

    void wait(std::unique_lock<std::mutex> & lock, group & g, int t) {
        auto start = steady::now();
        waiting_ = true;
        auto there = [&] {
            return std::all_of(needed_.begin(), needed_.end(), [&](int e) { return g.experts[e].pieces[t].state == READY; });
        };
        while (!stopped() && !there()) {
            piece p;
            if (take_piece(demand_, p)) {  // sooner done than a reader is awake
                read(lock, p, bounce_);
                continue;
            }
            if (!queue_.under_way()) {
                ready_.wait_for(lock, std::chrono::milliseconds(20));
                continue;
            }
            // Waking a sleeping processor takes a good part of a read: at first, look again.
            bool look = seconds_since(start) < SPIN_S;
            lock.unlock();
            if (look) {
                pause();
            }
            lock.lock();
            reap(look ? 0 : 1000000);
        }
        waiting_ = false;
        stats_.stall_s += seconds_since(start);
        broken_ = !there();
    }

    bool stopped() const { return failed_ || *static_cast<volatile int32_t *>(interrupt_); }

    // Whether memory is held only until a read ends: of an interrupted request, or read ahead.
    bool reading() const {
        for (auto & g : groups_) {
            for (auto & x : g.experts) {
                if (x.resident && x.pinned != visit_ && !idle(x)) {
                    return true;
                }
            }
        }
        return false;
    }

    void foretell_all(group & g) {
        size_t next = size_t(&g - groups_.data()) + 1;
        if (next >= groups_.size()) {
            return;
        }
        group & h = groups_[next];
        for (size_t e = 0; e < h.experts.size(); e++) {
            if (!h.experts[e].resident && !foretell(h, int(e), LIKELY)) {
                return;
            }
        }
    }

    bool foretell(group & g, int e, urgency why) {
        auto & x = g.experts[e];
        if (x.resident || (how_ == PRIVATE && !give_memory(g, e, why))) {
            return false;
        }
        x.resident = x.foretold = true;
        x.worth = std::max(x.worth, double(clock_) / HALF_LIFE);  // as if used now: not the next victim
        stats_.prefetched++;
        for (size_t i = 0; i < g.tensors.size(); i++) {
            ask(foretold_, g, e, int(i));
        }
        work_.notify_all();
        return true;
    }

    void count(group & g, expert & x) {
        size_t index = size_t(&g - groups_.data());
        stats_.lookups++;
        layer_lookups_[index]++;
        if (how_ == PRIVATE && !x.resident) {
            miss(g, x);
        } else if (x.foretold) {
            stats_.prefetch_used++;
        }
        x.foretold = false;
    }

    void miss(group & g, expert & x) {
        stats_.misses++;
        layer_misses_[size_t(&g - groups_.data())]++;
        x.counted = false;
    }

    // ---- readers ---------------------------------------------------------------------------------

    static bool take_piece(std::deque<piece> & queue, piece & p) {
        while (!queue.empty()) {
            p = queue.front();
            auto & x = p.g->experts[p.expert].pieces[p.tensor];
            if ((x.state == QUEUED || x.state == READING) && x.next < p.chunks) {
                x.state = READING;
                p.chunk = x.next++;
                return true;
            }
            queue.pop_front();  // read already, or evicted meanwhile
        }
        return false;
    }

    // Takes what is to be read next; false when there is nothing.
    bool next_piece(piece & p) {
        if (take_piece(demand_, p) || take_piece(foretold_, p)) {
            return true;
        }
        while (!hot_.empty()) {
            p = hot_.front();
            hot_.pop_front();
            if (p.g->resident < p.g->capacity && foretell(*p.g, p.expert, SPARE)) {
                return next_piece(p);
            }
        }
        return false;
    }

    void read_loop() {
        std::vector<char> bounce;
        std::unique_lock<std::mutex> lock(mutex_);
        while (!stop_) {
            if (!dropped_.empty()) {
                file_range r = dropped_.front();
                dropped_.pop_front();
                lock.unlock();
                posix_fadvise(files_[r.file].fd, r.offset, r.length, POSIX_FADV_DONTNEED);
                lock.lock();
                continue;
            }
            piece p;
            if (!next_piece(p)) {
                work_.wait(lock);
                continue;
            }
            read(lock, p, bounce);
        }
    }

    void read(std::unique_lock<std::mutex> & lock, const piece & p, std::vector<char> & bounce) {
        group &  g = *p.g;
        expert & x = g.experts[p.expert];
        bool own = x.memory == OWN;
        lock.unlock();
        size_t bytes = 0;
        auto   start = steady::now();
        std::string problem = own ? read_direct(p, bounce, bytes) : read_pages(p, bytes);
        double took = seconds_since(start);
        lock.lock();
        stats_.bytes_read += bytes;
        if (bytes == CHUNK) {  // whole chunks, so that the two ways compare
            auto & way = own ? direct_reads_ : page_reads_;
            way.bytes += bytes;
            way.seconds += took;
        }
        if (how_ == PAGES && bytes && x.counted) {
            miss(g, x);
        }
        ended(p, problem);
    }

    void ended(const piece & p, const std::string & problem) {
        auto & x    = p.g->experts[p.expert];
        auto & done = x.pieces[p.tensor];
        if (!problem.empty()) {
            done.bad = true;
            problem_ = problem;
        }
        if (done.bad && waiting_ && x.pinned == visit_) {  // else whoever needs it asks again
            fail_locked(problem_);
        }
        if (--done.left == 0) {
            done.state = done.bad ? ABSENT : READY;
            ready_.notify_one();
        }
    }

    // Reads whole pages of the file to the same place within pages of memory.
    std::string read_direct(const piece & p, std::vector<char> & bounce, size_t & bytes) {
        const tensor_info & t = p.g->tensors[p.tensor];
        int64_t offset = t.offset + int64_t(t.bytes) * p.expert, end = offset + int64_t(t.bytes);
        int64_t from   = int64_t(down(size_t(offset), PAGE)) + int64_t(CHUNK) * p.chunk;
        int64_t to     = std::min(from + int64_t(CHUNK), int64_t(up(size_t(end), PAGE)));
        if (from >= to) {
            return "";
        }
        char * data   = data_of(*p.g, t, p.expert);  // where `offset` goes
        char * target = data + (from - offset);
        if (!p.g->direct) {
            bounce.resize(CHUNK + PAGE);
            target = reinterpret_cast<char *>(up(size_t(bounce.data()), PAGE));
        }
        int64_t need = std::min(to, end) - from;  // the file may end within the last page
        for (int64_t done = 0; done < need;) {
            ssize_t n = pread(files_[t.file].direct, target + done, size_t(to - from - done), from + done);
            if (n < 0 && errno == EINTR) {
                continue;
            }
            if (n < 0) {
                return "cannot read " + files_[t.file].path + ": " + strerror(errno);
            }
            if (n == 0) {
                return files_[t.file].path + " has become shorter while it was in use";
            }
            done += n;
            if (done < need) {
                done = int64_t(down(size_t(done), PAGE));  // direct reads go on at a block
            }
        }
        if (!p.g->direct) {
            int64_t first = std::max(from, offset);
            memcpy(data + (first - offset), target + (first - from), size_t(from + need - first));
        }
        bytes = size_t(need);
        return changed(t.file);
    }

    std::string read_pages(const piece & p, size_t & bytes) {
        const tensor_info & t = p.g->tensors[p.tensor];
        char * data = how_ == PRIVATE ? data_of(*p.g, t, p.expert) : static_cast<char *>(t.mapped) + t.bytes * size_t(p.expert);
        size_t from = down(size_t(data), PAGE) + CHUNK * size_t(p.chunk);
        size_t to   = std::min(from + CHUNK, up(size_t(data) + t.bytes, PAGE));
        if (from >= to) {
            return "";
        }
        void * address = reinterpret_cast<void *>(from);
        std::vector<unsigned char> there((to - from) / PAGE);
        if (mincore(address, to - from, there.data()) == 0) {
            bytes = PAGE * size_t(std::count_if(there.begin(), there.end(), [](unsigned char c) { return !(c & 1); }));
        }
        if (bytes) {
            int64_t offset = t.offset + int64_t(t.bytes) * p.expert + (int64_t(from) - int64_t(size_t(data)));
            posix_fadvise(files_[t.file].fd, offset, int64_t(to - from), POSIX_FADV_WILLNEED);
        }
        if (madvise(address, to - from, MADV_POPULATE_READ) != 0 && errno == EFAULT) {
            return "cannot read " + files_[t.file].path + ": it has become shorter or unreadable";
        }
        return changed(t.file);
    }

    // A file that was rewritten under us would mix two models in one answer.
    std::string changed(int file) {
        struct stat now;
        auto & then = files_[file].then;
        if (fstat(files_[file].fd, &now) == 0 &&
            (now.st_size != then.st_size || now.st_mtim.tv_sec != then.st_mtim.tv_sec ||
             now.st_mtim.tv_nsec != then.st_mtim.tv_nsec)) {
            return files_[file].path + " was changed while it was in use";
        }
        return "";
    }

    bool fail(const std::string & why) {
        std::lock_guard<std::mutex> lock(mutex_);
        return fail_locked(why);
    }

    bool fail_locked(const std::string & why) {
        if (!failed_) {
            error_ = why;
        }
        failed_ = true;
        if (!*interrupt_) {
            *interrupt_ = 2;  // the abort callback looks there too: the graph must not go on
        }
        return false;
    }

    static constexpr int     SPINS   = 2000;  // some 50 µs, longer than an undisturbed decision takes
    static constexpr size_t  CHUNK   = 1 << 20;  // bytes of one read
    static constexpr double  SPIN_S  = 0.002;  // looking for a read again and again before sleeping
    static constexpr double  HALF_LIFE = 32;  // tokens
    static constexpr uint64_t ENOUGH = 64 << 20;  // bytes read before two ways are compared
    static constexpr int64_t FRESH = 16;  // tokens for which a page just read is taken to be there

    const mode how_;
    uint64_t   budget_;
    uint64_t   planned_ = 0;  // the budget that shares of groups are for
    const int  reader_count_;
    int32_t *  interrupt_;

    extra_types_fn extra_types_ = nullptr;
    int            mul_mat_id_ = -1, get_rows_ = -1, mul_ = -1;
    ggml_backend_buffer_type buffer_type_ = {};
    bool           installed_ = false;

    std::vector<part>        files_;
    std::vector<group>       groups_;
    int                      last_group_ = -1;

    std::mutex               mutex_;
    std::condition_variable  work_, ready_, go_;
    std::atomic<bool>        open_{false};
    std::atomic<int>         left_{0};  // threads that have passed the gate
    int                      sleepers_ = 0;
    std::deque<piece>        demand_, foretold_, hot_;
    std::vector<std::thread> readers_;
    bool                     stop_ = false;

    direct_queue             queue_;  // for thread 0 alone
    std::deque<file_range>   dropped_;
    struct { uint64_t bytes = 0; double seconds = 0; } direct_reads_, page_reads_;
    uint64_t                 used_ = 0, own_ = 0;
    long                     file_backed_ = 0, most_file_backed_ = 0;  // experts

    int64_t visit_ = 0, clock_ = 0, batch_ = 0;
    bool    decoding_ = false;
    bool      steering_ = false;
    recording * recording_ = nullptr;
    std::vector<layer_usage> usage_;  // of each group; empty: not counted
    float   prefer_ = 0;
    std::vector<int32_t> imposed_;
    int64_t imposed_layers_ = 0, imposed_k_ = 0, imposed_prefill_ = 0, imposed_steps_ = 0, step_ = 0, last_ = 0;
    std::vector<int> needed_;
    std::vector<char> bounce_;  // thread 0's, where direct reads need one
    bool    broken_ = false;  // written by thread 0 before the barrier, read by all after it
    bool    failed_ = false, waiting_ = false;
    std::string error_, problem_;  // of the decode, and of the last read that went wrong

    localmoe_expert_stats stats_ = {};
    std::vector<uint64_t> layer_lookups_, layer_misses_;
};

}  // namespace

// ---- for Python ----------------------------------------------------------------------------------

// Null when it cannot be: `why` then says so.
EXPORT void * localmoe_experts_open(const localmoe_symbols * symbols, const void * model, int32_t how, uint64_t budget,
                                    int32_t readers, int32_t * interrupt, const char * const * paths, int32_t n_paths,
                                    const localmoe_expert_tensor * tensors, int32_t n_tensors, char * why, int32_t max) {
    auto get_tensor = reinterpret_cast<get_tensor_fn>(symbols->get_tensor);
    auto is_host    = reinterpret_cast<is_host_fn>(symbols->is_host);
    auto * cache    = new expert_cache(*symbols, mode(how), budget, readers, interrupt);
    bool good = true;
    for (int32_t i = 0; i < n_paths && good; i++) {
        good = cache->add_file(paths[i]);
    }
    for (int32_t i = 0; i < n_tensors && good; i++) {
        ggml_tensor * tensor = get_tensor(model, tensors[i].name);
        if (tensor && tensor->buffer && is_host(tensor->buffer)) {
            cache->add_tensor(tensors[i], tensor);
        }
    }
    if (!good || !cache->start()) {
        snprintf(why, size_t(max), "%s", cache->error().c_str());
        delete cache;
        return nullptr;
    }
    return cache;
}

EXPORT void localmoe_experts_close(void * cache) { delete static_cast<expert_cache *>(cache); }

EXPORT bool localmoe_experts_begin(void * cache, int64_t position, int64_t tokens, int64_t decoded) {
    return static_cast<expert_cache *>(cache)->begin(position, tokens, decoded);
}

EXPORT bool localmoe_experts_end(void * cache) { return static_cast<expert_cache *>(cache)->end(); }

// The length of the reason why the last decode failed; 0 if it did not.
EXPORT int32_t localmoe_experts_error(void * cache, char * out, int32_t max) {
    std::string why = static_cast<expert_cache *>(cache)->error();
    snprintf(out, size_t(max), "%s", why.c_str());
    return int32_t(why.size());
}

EXPORT void localmoe_experts_stats(void * cache, localmoe_expert_stats * out) {
    *out = static_cast<expert_cache *>(cache)->stats();
}

EXPORT int32_t localmoe_experts_layers(void * cache, uint64_t * lookups, uint64_t * misses, int32_t max) {
    return static_cast<expert_cache *>(cache)->layer_stats(lookups, misses, max);
}

EXPORT void localmoe_experts_resize(void * cache, uint64_t budget) { static_cast<expert_cache *>(cache)->resize(budget); }

EXPORT void localmoe_experts_share_out(void * cache, const float * shares, int32_t n) {
    static_cast<expert_cache *>(cache)->share_out(shares, n);
}

EXPORT int32_t localmoe_experts_hot(void * cache, int32_t * pairs, int32_t max) {
    return static_cast<expert_cache *>(cache)->hot(pairs, max);
}

EXPORT void localmoe_experts_impose(void * cache, const int32_t * ids, int64_t prefill, int64_t steps, int64_t layers,
                                    int64_t k) {
    static_cast<expert_cache *>(cache)->impose(ids, prefill, steps, layers, k);
}

EXPORT void localmoe_experts_prefer(void * cache, float share) { static_cast<expert_cache *>(cache)->prefer(share); }

// `to`: a recording, or null to stop.
EXPORT void localmoe_experts_record(void * cache, void * to) {
    static_cast<expert_cache *>(cache)->record(static_cast<recording *>(to));
}

EXPORT void localmoe_experts_count(void * cache) { static_cast<expert_cache *>(cache)->count_uses(); }

// Of one group so far: uses and places [experts], see usage.h. False if nothing is counted.
EXPORT bool localmoe_experts_usage(void * cache, int32_t group, uint64_t * uses, uint64_t * found_at, int32_t experts,
                                   localmoe_usage_totals * totals) {
    return static_cast<expert_cache *>(cache)->usage(group, uses, found_at, experts, *totals);
}

EXPORT void localmoe_experts_warm(void * cache, const int32_t * pairs, int32_t n) {
    static_cast<expert_cache *>(cache)->warm(pairs, n);
}

#endif  // __linux__
