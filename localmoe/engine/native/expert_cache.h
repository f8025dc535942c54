// The expert cache: what it knows of experts, and its parts. experts.cpp says how it works.
//
// experts.cpp            llama.cpp's call, what a multiplication needs, waiting for it
// expert_memory.cpp      address space, budget, eviction
// expert_reading.cpp     from the files: what is needed, and what will be
// expert_arrival.cpp     a token's experts multiplied in the order in which they come
// expert_prediction.cpp  which experts the next layer will choose
// expert_streaming.cpp   a large batch, projection by projection, where its layers do not fit
// expert_offload.cpp     a large batch that a GPU multiplies
// expert_steering.cpp    other experts than the router chose: replay, and `--prefer-cached`

#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "direct_queue.h"
#include "export.h"
#include "ggml_layout.h"
#include "prefault_list.h"
#include "recording.h"
#include "usage.h"

// ---- what Python hands over ----------------------------------------------------------------------

struct localmoe_symbols {
    void * extra_types;
    void * op_name;
    void * type_traits;
    void * buffer_base, * buffer_size;
};

struct localmoe_expert_tensor {  // one *_exps.weight
    void *       tensor;   // llama.cpp's ggml_tensor, in host memory
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
    uint64_t prefetched, prefetch_used; // on a prediction
    uint64_t warmed;            // read in the background because they were used before
    double   stall_s;           // computing waited for reading
    uint64_t resident_bytes;    // of the budget: experts, and what a prompt borrows of it
    uint64_t calls;             // multiplications seen
    uint64_t preferred;         // chosen experts that gave way to resident ones (lossy)
    uint64_t most_experts;      // that may be in memory at once, for want of mappings
    uint64_t no_direct;         // files that are read through the page cache
    uint64_t arrivals;          // multiplications begun before all their experts were there
};

namespace localmoe {

using steady = std::chrono::steady_clock;

inline double seconds_since(steady::time_point start) {
    return std::chrono::duration<double>(steady::now() - start).count();
}

constexpr size_t BLOCK = 4096;  // the alignment of direct reads: nearly every disk takes it

// The unit of mmap, mremap, mprotect, madvise and mincore: 4, 16 or 64 KiB, a multiple of BLOCK.
inline const size_t PAGE = size_t(sysconf(_SC_PAGESIZE));

// Why a decode, or opening, failed: what the caller distinguishes.
enum cause : int32_t { NONE = 0, CHANGED = 1, UNREADABLE = 2, NO_MEMORY = 3, UNSOUND = 4 };

struct trouble {
    cause       what = NONE;
    std::string why;
};

bool refuses(int error);

constexpr const char * OUT_OF_MEMORY = "out of memory";  // short: to be said without any

// What one read of a part of an expert brought.
struct outcome {
    size_t  bytes   = 0;
    int     refusal = 0;  // the errno of a direct read that failed; the page cache served then
    trouble problem;
};

inline size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }
inline size_t down(size_t n, size_t to) { return n / to * to; }

enum mode : int32_t { OFF = 0, PAGES = 1, PRIVATE = 2 };
enum piece_state : uint8_t { ABSENT = 0, QUEUED = 1, READING = 2, READY = 3 };
enum origin : uint8_t { DIRECT, DIRECT_TIMED, PAGE_CACHE, THROUGH_CACHE };  // of an expert's bytes

// What a layer chooses its experts by, as seen in the graph; tensors of the model, null: unknown or none.
struct router {
    enum gating { LOGITS, SIGMOID, SOFTMAX, SQRT_SOFTPLUS };
    const ggml_tensor * weights = nullptr;  // [embedding, experts]
    const ggml_tensor * norm    = nullptr;  // [embedding]: what its input was multiplied by
    const ggml_tensor * bias    = nullptr;  // [experts]: of the logits
    const ggml_tensor * select  = nullptr;  // [experts]: of what `gating` makes of them
    gating by = LOGITS;
};

constexpr size_t PADDING = 512;  // bytes after an expert that the scheduler copies with it, at most

constexpr int64_t MAX_RANK = 16;  // of a token's experts, the most that are predicted
constexpr int MAX_TENSORS = 4;  // of one group: gate, up, down, and one to spare

struct expert {
    int     copied   = 0;      // how many copies of it are being made
    bool    resident = false;  // has memory (private) or was routed before (page)
    origin  from     = DIRECT; // private: how it is read
    bool    fresh    = false;  // its memory was never touched, as far as thread 0 knows
    bool    foretold = false;  // brought by a prediction, not used yet
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
    void *  mapped;   // llama.cpp's own data pointer and strides, put back at the end (the pointer also
                      // says where the file is mapped)
    size_t  nb2, nb3;
    bool    taken;    // it points into our memory
};

struct group {
    int layer = 0;
    std::vector<tensor_info> tensors;
    std::vector<int>         order;  // in which the tensors are multiplied
    std::vector<expert>      experts;
    char * base      = nullptr;  // private: address space of all experts
    size_t span      = 0;
    size_t stride    = 0;
    size_t slot      = 0;        // bytes that one expert occupies there, whole pages
    bool   direct    = true;     // file and memory agree modulo BLOCK for every expert
    bool   streamed  = false;    // in this visit
    bool   mapped    = false;    // in this visit: multiplied where llama.cpp has mapped the file
    int    chosen    = 0;        // experts of this visit
    int    resident  = 0;
    int    capacity  = 0;
    double share     = -1;       // of its experts at the planned budget; < 0: like the others
    int64_t turn     = -1;       // when it was computed last, for "needed again the latest"
    uint32_t seen    = 0;        // tensors multiplied in this visit, as bits
    int64_t  rows    = 0;        // tokens of this batch that were routed here so far
    router   chooses;
    int64_t  planned = -1;       // tokens that this graph routes here; -1: not known
    bool     predicted = false;  // in this visit: the next layer's experts
    std::array<float, MAX_RANK> trust;  // how often a prediction of a token's first, second … expert was right
    int64_t  doubted_until = 0;  // until this token none is made
};

struct part {
    std::string path;
    int         fd = -1, direct = -1;
    bool        no_direct = false;  // direct reads are refused
    bool        told = false;  // the system says which of its pages are in the page cache
    struct stat then;
};

struct piece {  // of one expert's part of one tensor
    group * g;
    int     expert;
    int     tensor;
    int     chunk, chunks;
};

// Room for one projection of a layer, in the layout of its file: where a large batch multiplies when the experts of
// its layers do not stay.
struct stage {
    char *  base = nullptr;
    group * g    = nullptr;  // whose projection it holds, or is about to; null: nobody's
    int     t    = 0;
    int64_t from = 0;        // what is at `base`: bytes from the start of the file, whole blocks
    int     left = 0;        // parts that are not there yet
    int     busy = 0;        // parts that somebody is bringing
    trouble problem;
};

// A token's multiplication by experts of which some are still being read.
struct arrival {
    static constexpr size_t  MOST = 32;  // experts of a token
    static constexpr int64_t ROWS = 64;  // of an expert, that a thread multiplies before it takes the next
    const ggml_tensor * op = nullptr;    // null: llama.cpp multiplies
    group *  g = nullptr;
    int      t = 0, k = 0;
    int      parts  = 0;                 // of ROWS rows, in an expert
    uint64_t serial = 0;
    std::array<int, MOST> experts;       // by rank
    std::array<int, MOST> ranks;         // in the order in which their experts came
    std::atomic<int>      there{0};      // how many of them have
    std::atomic<int>      taken{0};      // parts that threads have taken
    std::atomic<bool>     over{false};
};

struct page_part {  // the experts [first, end) of a tensor, where llama.cpp has mapped it
    const tensor_info * tensor;
    int first, end;
};

struct stage_part {  // the experts [first, end) of a stage
    stage * to;
    int     first, end;
    bool    copied;  // from the cache
};

class expert_cache final : public ggml::cpu::tensor_traits, public ggml::cpu::extra_buffer_type {
  public:
    expert_cache(const localmoe_symbols & symbols, mode how, uint64_t budget, int readers, int32_t * interrupt);
    ~expert_cache() override;
    bool add_file(const char * path);
    bool add_tensor(const localmoe_expert_tensor & entry);
    bool start();
    void remove();
    bool begin(int64_t position, int64_t tokens, int64_t decoded, int64_t following, uint64_t buffers);
    bool end();
    trouble failure();
    localmoe_expert_stats stats();
    int32_t layer_stats(uint64_t * lookups, uint64_t * misses, int32_t max);
    void resize(uint64_t budget);
    void share_out(const float * shares, int32_t n);
    int32_t hot(int32_t * out, int32_t max);
    void warm(const int32_t * pairs, int32_t n);

    // ---- called by llama.cpp --------------------------------------------------------------------

    bool supports_op(void *, const ggml_tensor *) override { return false; }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override;

    // Asked for each node before a graph is computed, by one thread.
    bool work_size(int, const ggml_tensor * op, size_t &) override {
        plan(op);
        return false;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override;
    bool impose(const int32_t * ids, int64_t prefill, int64_t steps, int64_t layers, int64_t k, float predicted);
    void prefer(float share);

    void record(recording * to) { recording_ = to; }

    // ---- for batches that a GPU multiplies ------------------------------------------------------

    void offload(int64_t tokens);
    bool cut_short() const { return cut_short_; }
    void asked(const ggml_tensor * what, void * to);
    template <typename Send> bool copy(const char * from, size_t size, Send send);

    void count_uses();
    bool usage(int32_t index, uint64_t * uses, uint64_t * found_at, int32_t experts, localmoe_usage_totals & totals);

  private:
    bool sound(const localmoe_expert_tensor & entry) const;
    void rest();

    // Does what one thread does while llama.cpp computes; an exception would end the process, or leave the other
    // threads waiting. False: out of memory, and the decode has failed.
    template <typename Act> bool safely(Act act) noexcept {
        try {
            act();
            return true;
        } catch (...) {
            return guarded(false, [&] { return fail(NO_MEMORY, OUT_OF_MEMORY); });
        }
    }

    bool multiply(ggml_compute_params * params, const ggml_tensor * op);
    group * group_of(int layer);
    void together(const ggml_compute_params * params);
    void pass_gate();
    void share_zeroing(group & g, const std::vector<int> & experts);

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

    void steer(group & g, const ggml_tensor * probabilities, ggml_tensor * ids);
    void prefer_resident(group & g, const ggml_tensor * probabilities, ggml_tensor * ids);
    int predicted_of_imposed(const group & h, int64_t token, int64_t rank);
    bool find(const ggml_tensor * weights, group *& g, int & t);

    // ---- address space ---------------------------------------------------------------------------

    bool lay_out(group & g);

    char * place(const group & g, int expert) const {
        return g.base + down(g.stride * size_t(expert), PAGE);
    }

    void place_tensor(group & g, const tensor_info & t);
    void redirect(group & g, tensor_info & t, bool here);
    void give_tensors_back(group & g);

    // ---- memory ----------------------------------------------------------------------------------

    void share_budget();
    bool idle(const expert & x) const;
    int oldest(const group & g) const;
    void forget(group & g, int e);
    void release(group & g, int e);

    void hide(group & g, int e);
    void keep_budget();
    bool release_one(const group * except);
    group * donor(const group * except, bool below_capacity);

    enum urgency { NEEDED, LIKELY, SPARE };  // for now, for soon, only if nobody misses it

    bool give_memory(group & g, int e, urgency why);
    std::string too_small() const;
    bool map(group & g, int e);
    bool gave(group & g, int e);
    origin source(const group & g, int e);
    bool in_page_cache(const group & g, int e) const;
    bool compared() const;
    bool directly(const group & g) const;
    void limit_mappings();

    static char * data_of(const group & g, const tensor_info & t, int e) { return g.base + g.stride * size_t(e) + t.at; }

    // ---- one multiplication ----------------------------------------------------------------------

    static int32_t & id_at(const ggml_tensor * ids, int64_t token, int64_t rank) {
        return *reinterpret_cast<int32_t *>(static_cast<char *>(ids->data) + token * ids->nb[1] + rank * ids->nb[0]);
    }

    int64_t observe(group & g, const ggml_tensor * ids);
    void provide(group & g, int t, const ggml_tensor * ids, const ggml_tensor * op, bool reference = false);

    // Least frequently used with fading: a use counts half after HALF_LIFE tokens. Kept as the
    // logarithm of the count at time 0, so that it need not be touched while time passes.
    // docs/policies.md compares it with others.
    static void used(expert & x, double now) { x.worth = now + std::log2(std::exp2(x.worth - now) + 1); }

    bool demand(std::unique_lock<std::mutex> & lock, group & g, int t);
    bool read_async(group & g, int e, int tensor);
    void reap(long patience);
    void ask(std::deque<piece> & queue, group & g, int e, int t);
    void wait(std::unique_lock<std::mutex> & lock, group & g, int t);
    void read_on(std::unique_lock<std::mutex> & lock, steady::time_point since);
    void foretell_next(group & g, int64_t n, int64_t k);

    bool stopped() const { return failed_ || *static_cast<volatile int32_t *>(interrupt_); }

    bool reading() const;
    void foretell_all(group & h);
    bool foretell(group & g, int e, urgency why);
    bool expect(group & g, int e, urgency why);
    void count(group & g, expert & x);
    void miss(group & g, expert & x);

    // ---- a token's experts as they come -----------------------------------------------------------

    bool multiplies_itself(group & g, int t, const ggml_tensor * op, bool reference);
    void announce();
    int  take_rows();
    void multiply_rows(const ggml_tensor * op, int part);
    void multiply_as_they_come(const ggml_compute_params * params, const ggml_tensor * op);
    void lead(const ggml_tensor * op);
    void help(const ggml_tensor * op);

    // ---- streaming -------------------------------------------------------------------------------

    uint64_t passing(const group & g, int64_t rows, int64_t used) const;
    bool streams(const group & g, int64_t rows, int64_t used, bool last) const;
    bool leaves_stages(int64_t tokens, uint64_t buffers) const;
    bool maps(const group & g, int64_t rows, int64_t used) const;
    void borrow(uint64_t & what, uint64_t bytes);
    bool stages();
    void free_stages();
    void stream(std::unique_lock<std::mutex> & lock, group & g, int t, int64_t rows, int64_t used);
    void unstage();
    void fill_next(stage & s, group & g, int t, int64_t rows, int64_t used);
    void fill(stage & s, group & g, int t, bool all);
    bool filled(std::unique_lock<std::mutex> & lock, stage & s);
    bool take_part(stage_part & p);
    void bring(std::unique_lock<std::mutex> & lock, const stage_part & p);
    outcome read_run(const stage & s, const stage_part & p, bool past);
    void cancel(std::unique_lock<std::mutex> & lock);
    void refill();
    void give_buffers_back();

    // ---- batches from the file's mapping ---------------------------------------------------------

    void expect_faults(bool in_order);
    bool crowds(const group & g, int t) const;
    void notice_crowding(group & g, int t);
    void bring_pages(group & g, int t);
    bool take_pages(std::unique_lock<std::mutex> & lock);

    // ---- copies to a GPU -------------------------------------------------------------------------

    void begin_copies();
    void end_copies();
    void follow(group & g, int t);
    void look(group & g, int t);
    bool brought(const group & g, int first, int count);

    // ---- prediction ------------------------------------------------------------------------------

    bool routes(const ggml_tensor * op) const;
    void plan(const ggml_tensor * op);
    void learn(const ggml_tensor * op);
    void score(const ggml_compute_params * params, const ggml_tensor * op);
    static void weigh(const router & r, float * scores, size_t n);
    static int  after(const group & g, int t);
    static bool there(const group & g, const expert & x);
    bool complete(const group & g) const;
    bool reads_ahead(const group & g, int64_t n) const;
    void foretell_predicted(group & g, int64_t k);
    void judge(group & g);

    // ---- readers ---------------------------------------------------------------------------------

    static bool take_piece(std::deque<piece> & queue, piece & p);
    bool next_piece(piece & p);
    void read_loop();
    void read(std::unique_lock<std::mutex> & lock, const piece & p, std::vector<char> & bounce);
    void ended(const piece & p, const trouble & problem);
    static int64_t read_range(int fd, char * target, int64_t length, int64_t need, int64_t offset, size_t block,
                              int & error);
    static trouble read_cached(const part & file, char * target, int64_t need, int64_t offset);
    outcome read_direct(const piece & p, bool past, std::vector<char> & bounce);
    outcome read_copied(const piece & p, bool keep);
    outcome read_pages(const piece & p, std::vector<char> & bounce);
    trouble changed(int file);
    bool fail(cause what, const std::string & why);
    bool fail_locked(cause what, const std::string & why);

    static constexpr int     SPINS   = 2000;  // some 50 µs, longer than an undisturbed decision takes
    static constexpr size_t  CHUNK   = 1 << 20;  // bytes of one read
    static constexpr size_t  STAGE_READ = 4 << 20;  // bytes of one read into a stage
    static constexpr uint64_t OTHER_MAPPINGS = 2048;  // that the rest of the process may still need
    static constexpr double  SPIN_S  = 0.002;  // looking for a read again and again before sleeping
    static constexpr double  HALF_LIFE = 32;  // tokens
    static constexpr uint64_t ENOUGH = 64 << 20;  // bytes read before two ways are compared
    static constexpr int64_t MAX_SCORED = 128;  // tokens of a batch for which the next layer is predicted
    static constexpr float   WORTHWHILE = 0.7f;  // how often a prediction must be right to be acted upon
    static constexpr float   WORTHWHILE_IN_BATCH = 0.9f;  // the disk is what a short prompt waits for
    static constexpr int64_t DOUBT      = 512;   // tokens without any after the best was not
    static constexpr int64_t FRESH = 16;  // tokens for which a page just read is taken to be there
    static constexpr int64_t REST  = 32;  // tokens without a read, after which looking pauses

    const mode how_;
    uint64_t   budget_;
    uint64_t   planned_ = 0;  // the budget that shares of groups are for
    const int  reader_count_;
    int32_t *  interrupt_;

    extra_types_fn extra_types_ = nullptr;
    type_traits_fn type_traits_ = nullptr;
    buffer_base_fn buffer_base_ = nullptr;
    buffer_size_fn buffer_size_ = nullptr;
    int            mul_mat_id_ = -1, get_rows_ = -1, mul_ = -1, mul_mat_ = -1, add_ = -1, soft_max_ = -1, sqrt_ = -1;
    ggml_backend_buffer_type buffer_type_ = {};
    bool           installed_ = false;

    std::vector<part>        files_;
    std::vector<group>       groups_;
    int                      last_group_ = -1;

    std::mutex               mutex_;
    std::condition_variable  work_, ready_;
    std::deque<piece>        demand_, foretold_, hot_;
    std::vector<std::thread> readers_;
    bool                     stop_ = false;

    std::mutex               gate_;
    std::condition_variable  go_;
    std::atomic<bool>        open_{false};
    std::atomic<int>         left_{0};  // threads that have passed the gate
    int                      sleepers_ = 0;
    prefault_list            fresh_;  // of what this visit reads
    arrival                  coming_;

    std::deque<page_part>    pages_;            // to be brought to the mapping, in this order
    uint64_t                 crowded_ = UINT64_MAX;  // page: bytes of a multiplication that did not stay until it began
    bool                     in_order_ = false;  // what the system was told of the mappings
    std::array<stage, 2>     stages_;
    std::deque<stage_part>   parts_;      // to be brought to them
    size_t                   stage_bytes_ = 0;  // of each
    size_t                   largest_slot_ = 0;  // of a group
    uint64_t                 all_slots_ = 0;    // bytes with every expert in memory
    uint64_t                 staged_ = 0;       // of the budget, that they take
    uint64_t                 lent_ = 0;         // … that a prompt's buffers take
    void *                   buffers_ = nullptr;  // llama.cpp's, in which graphs are computed
    stage *                  multiplied_ = nullptr;  // where the last multiplication was, if in a stage
    int64_t                  following_ = 0;    // tokens of the prompt's next batch
    int64_t                  each_ = 0;         // experts that a token chooses

    int64_t                  offloaded_ = 0;    // tokens of a batch from which on a GPU may multiply; 0: none does
    bool                     copying_ = false;  // in this decode
    bool                     cut_short_ = false;  // zeros were copied in the place of experts
    ggml_tensor              chosen_ = {};      // the ids that the scheduler was told last
    struct { const group * g; int t, end; } copied_ = {};  // the last copy: its tensor, and the expert after it
    const char *             zeros_ = nullptr;  // as many as an expert of one tensor has bytes
    size_t                   zeros_size_ = 0;

    direct_queue<piece>      queue_;  // thread 0 alone starts reads
    struct { uint64_t bytes = 0; double seconds = 0; } direct_reads_, cache_reads_;
    uint64_t                 to_compare_ = 0;  // bytes read one way or the other to compare
    bool                     through_cache_ = false;
    uint64_t                 used_ = 0;
    uint64_t                 resident_ = 0;       // experts that have memory
    uint64_t                 most_resident_ = 0;  // of them, without taking others' mappings
    int                      refused_ = 0;        // errno of the last mapping that was refused

    int64_t visit_ = 0, clock_ = 0, batch_ = 0;
    bool    decoding_ = false;
    bool    resting_ = false;
    uint64_t read_before_ = 0;
    int64_t  read_at_ = 0;
    bool      steering_ = false;
    recording * recording_ = nullptr;
    std::vector<layer_usage> usage_;  // of each group; empty: not counted
    float   prefer_ = 0;
    bool    predicting_ = false;
    int64_t scored_ = 0;              // tokens of the scores
    const group * scored_for_ = nullptr;
    std::vector<float> scores_;       // [MAX_SCORED][experts]
    const group * predicted_for_ = nullptr;
    std::vector<int>   predicted_;    // experts [tokens][k] that it is thought to choose, best first
    size_t  predicted_each_ = 0;      // k
    std::array<float, MAX_RANK> batch_trust_;  // as a layer's, of all layers, for several tokens at once
    std::vector<int32_t> imposed_;
    float    imposed_predicted_ = 0;
    uint32_t dice_ = 1;
    int64_t imposed_layers_ = 0, imposed_k_ = 0, imposed_prefill_ = 0, imposed_steps_ = 0, step_ = 0, last_ = 0;
    std::vector<int> needed_;
    std::vector<char> bounce_;  // thread 0's, where direct reads need one
    bool    broken_ = false;  // written by thread 0 before the barrier, read by all after it
    bool    failed_ = false, waiting_ = false;
    trouble error_, problem_;  // of the decode, and of the last read that went wrong

    localmoe_expert_stats stats_ = {};
    std::vector<uint64_t> layer_lookups_, layer_misses_;
};

}  // namespace localmoe
