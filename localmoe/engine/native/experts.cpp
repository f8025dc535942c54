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
//          what is there never exceeds a budget. It is anonymous memory, so that no other program's
//          need takes it away, read directly (O_DIRECT; file offset and address agree modulo BLOCK,
//          the disk's unit, which is not the system's page), and what a direct read does not bring is
//          read once more through the page cache. While there is room, what the system has in its page cache is copied from there. At
//          the budget, memory moves from the least valuable expert to the next one by mremap: no fresh
//          page, no copy, nothing for the page cache to do.
//
// The lock is held for decisions only, never while reading or computing.

#if defined(__linux__)

#include "expert_cache.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <unistd.h>

#include "export.h"

namespace localmoe {

expert_cache::expert_cache(const localmoe_symbols & symbols, mode how, uint64_t budget, int readers, int32_t * interrupt)
    : how_(how), budget_(budget), reader_count_(readers), interrupt_(interrupt) {
    extra_types_ = reinterpret_cast<extra_types_fn>(symbols.extra_types);
    auto op_name = reinterpret_cast<op_name_fn>(symbols.op_name);
    mul_mat_id_  = op_named(op_name, "MUL_MAT_ID");
    get_rows_    = op_named(op_name, "GET_ROWS");
    mul_         = op_named(op_name, "MUL");
    mul_mat_     = op_named(op_name, "MUL_MAT");
    add_         = op_named(op_name, "ADD");
    soft_max_    = op_named(op_name, "SOFT_MAX");
    sqrt_        = op_named(op_name, "SQRT");
    type_traits_ = reinterpret_cast<type_traits_fn>(symbols.type_traits);
    buffer_base_ = reinterpret_cast<buffer_base_fn>(symbols.buffer_base);
    buffer_size_ = reinterpret_cast<buffer_size_fn>(symbols.buffer_size);
    batch_trust_.fill(1);
    buffer_type_.context = static_cast<ggml::cpu::extra_buffer_type *>(this);
}

expert_cache::~expert_cache() {
    remove();
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    work_.notify_all();
    for (auto & thread : readers_) {
        thread.join();
    }
    free_stages();
    end_copies();
    if (zeros_) {
        munmap(const_cast<char *>(zeros_), zeros_size_);
    }
    for (auto & g : groups_) {
        give_tensors_back(g);
        if (g.base) {
            munmap(g.base, g.span);
        }
    }
    for (auto & file : files_) {
        close(file.fd);
        if (file.direct >= 0) {
            close(file.direct);
        }
    }
}

// Whether a tensor can be served: all of it is in its file, its experts are of one size, and reads of them
// can be counted in pieces.
bool expert_cache::sound(const localmoe_expert_tensor & entry) const {
    if (entry.experts <= 0 || entry.nbytes <= 0 || entry.nbytes % entry.experts != 0 ||
        uint64_t(entry.nbytes / entry.experts) + PAGE >= CHUNK * UINT16_MAX) {
        return false;
    }
    if (how_ == OFF) {  // nothing is read
        return true;
    }
    if (entry.file < 0 || size_t(entry.file) >= files_.size() || entry.offset < 0) {
        return false;
    }
    int64_t size = files_[size_t(entry.file)].then.st_size;
    return entry.offset <= size && entry.nbytes <= size - entry.offset;
}

// A tensor of a group; groups come in the order in which they are computed.
bool expert_cache::add_tensor(const localmoe_expert_tensor & entry) {
    auto * tensor = static_cast<ggml_tensor *>(entry.tensor);
    bool fits = true;
    if (!groups_.empty() && entry.group == last_group_) {
        group & g = groups_.back();
        fits = g.tensors.size() < MAX_TENSORS && g.experts.size() == size_t(entry.experts);
    }
    if (!fits || !sound(entry)) {
        return fail(UNSOUND, std::string("the experts of ") + tensor->name + " are not laid out as this cache knows them");
    }
    if (groups_.empty() || entry.group != last_group_) {
        groups_.emplace_back();
        groups_.back().experts.resize(entry.experts);
        groups_.back().layer = entry.group;
        groups_.back().trust.fill(1);
        last_group_ = entry.group;
    }
    group & g = groups_.back();
    g.order.push_back(int(g.tensors.size()));
    g.tensors.push_back({tensor, entry.file, entry.offset, size_t(entry.nbytes / entry.experts), 0,
                         tensor->data, tensor->nb[2], tensor->nb[3], false});
    return true;
}

bool expert_cache::start() {
    for (auto & g : groups_) {
        if (how_ == PRIVATE && !lay_out(g)) {
            return false;
        }
    }
    if (how_ == PAGES) {
        expect_faults(false);  // no window around a fault: we say what is needed
    } else if (how_ == PRIVATE) {
        expect_faults(true);  // of batches that are multiplied there
    }
    limit_mappings();
    share_budget();
    size_t most = 0;
    for (auto & g : groups_) {
        most = std::max(most, g.experts.size());
    }
    scores_.resize(how_ == PRIVATE ? size_t(MAX_SCORED) * most : 0);
    for (int i = 0; i < reader_count_; i++) {
        readers_.emplace_back([this] { read_loop(); });
    }
    extra_types_().push_back(&buffer_type_);
    installed_ = true;
    return true;
}

void expert_cache::remove() {
    if (installed_) {
        auto & types = extra_types_();
        types.erase(std::remove(types.begin(), types.end(), &buffer_type_), types.end());
        installed_ = false;
    }
}

// Before each llama_decode: the tokens of the batch, how many came before them, and the number of
// the decoded token (-1 while a prompt is read); then the tokens of the prompt's next batch, and the bytes of the
// budget that this one's buffers take. False, here and at the end: `failure` says why not.
bool expert_cache::begin(int64_t position, int64_t tokens, int64_t decoded, int64_t following, uint64_t buffers) {
    std::unique_lock<std::mutex> lock(mutex_);
    failed_ = false;
    broken_ = false;
    error_ = {};
    decoding_ = decoded >= 0;
    step_     = decoding_ ? imposed_prefill_ + decoded : position;
    last_     = decoding_ ? imposed_steps_ : imposed_prefill_;
    clock_ += batch_;
    batch_ = tokens;
    following_ = following;
    if (staged_ && (decoding_ || leaves_stages(tokens, buffers))) {
        cancel(lock);
        free_stages();
    }
    if (decoding_ && how_ == PAGES && in_order_) {
        expect_faults(false);
    }
    if (buffers < lent_) {
        give_buffers_back();
    }
    if (buffers != lent_) {
        borrow(lent_, buffers);
    }
    rest();
    begin_copies();
    predicting_ = how_ == PRIVATE && (imposed_.empty() || imposed_predicted_ > 0);
    scored_for_ = predicted_for_ = nullptr;
    predicted_.clear();
    for (auto & g : groups_) {
        g.seen = g.rows = 0;
        g.planned = -1;
    }
    for (size_t i = 0; i < files_.size(); i++) {
        trouble problem = changed(int(i));
        if (problem.what != NONE) {
            fail_locked(problem.what, problem.why);
        }
    }
    return !failed_;
}

// The page regime steps down to plain mapping while it finds nothing to read: it looks for REST
// tokens, then not for seven times as many, until something was missing again.
void expert_cache::rest() {
    if (stats_.bytes_read != read_before_) {
        read_before_ = stats_.bytes_read;
        read_at_ = clock_;
    }
    int64_t quiet = clock_ - read_at_;
    resting_ = how_ == PAGES && decoding_ && quiet >= REST && quiet / REST % 8 != 0;
}

// After each llama_decode: nothing is needed any more.
bool expert_cache::end() {
    std::unique_lock<std::mutex> lock(mutex_);
    visit_++;
    end_copies();
    reap(0);
    unstage();
    pages_.clear();
    if (staged_ && (stopped() || following_ == 0)) {
        cancel(lock);
        free_stages();
        refill();
    }
    keep_budget();
    return !failed_;
}

// Why the last decode failed, or opening. What cannot be read may be the first sign of a changed file.
trouble expert_cache::failure() {
    std::lock_guard<std::mutex> lock(mutex_);
    trouble why = error_;
    for (size_t i = 0; i < files_.size() && why.what == UNREADABLE; i++) {
        trouble problem = changed(int(i));
        why = problem.what == NONE ? why : problem;
    }
    return why;
}

localmoe_expert_stats expert_cache::stats() {
    std::lock_guard<std::mutex> lock(mutex_);
    localmoe_expert_stats result = stats_;
    result.resident_bytes = used_;
    result.most_experts   = most_resident_;
    result.no_direct      = uint64_t(std::count_if(files_.begin(), files_.end(), [](auto & file) { return file.no_direct; }));
    return result;
}

// Per group: lookups and misses of decoded tokens so far.
int32_t expert_cache::layer_stats(uint64_t * lookups, uint64_t * misses, int32_t max) {
    std::lock_guard<std::mutex> lock(mutex_);
    int32_t n = std::min<int32_t>(max, int32_t(groups_.size()));
    std::copy_n(layer_lookups_.begin(), n, lookups);
    std::copy_n(layer_misses_.begin(), n, misses);
    return n;
}

void expert_cache::resize(uint64_t budget) {
    std::unique_lock<std::mutex> lock(mutex_);
    budget_ = budget;
    share_budget();
    reap(0);
    keep_budget();
    work_.notify_all();
}

// Each group's share of its experts at the present budget.
void expert_cache::share_out(const float * shares, int32_t n) {
    std::lock_guard<std::mutex> lock(mutex_);
    planned_ = budget_;
    for (int32_t i = 0; i < std::min<int32_t>(n, int32_t(groups_.size())); i++) {
        groups_[size_t(i)].share = shares[i];
    }
    share_budget();
}

ggml::cpu::tensor_traits * expert_cache::get_tensor_traits(const ggml_tensor * op) {
    if (op->op == mul_mat_id_) {
        return this;
    }
    // Nodes of llama.cpp's build_moe_ffn: "ffn_moe_weights-L" gathers the weights of the chosen
    // experts, so ids changed before it are used throughout; "ffn_moe_weighted-L" applies them.
    bool named = (op->op == get_rows_ && steering_) || (op->op == mul_ && recording_);
    if (named && begins(op, "ffn_moe_weight")) {
        return this;
    }
    return (predicting_ && routes(op)) || (recording_ && recording_->logits_in(op)) ? this : nullptr;
}

// True: "computed", which skips the node. That is how a failed read keeps the threads from
// touching what is not there; the abort callback then ends the graph.
bool expert_cache::compute_forward(ggml_compute_params * params, ggml_tensor * op) {
    if (op->op == mul_mat_id_) {
        return multiply(params, op);
    }
    if (predicting_ && op->op == mul_mat_) {
        safely([&] { score(params, op); });
    }
    const ggml_tensor * logits = recording_ ? recording_->logits_in(op) : nullptr;
    if (logits) {
        if (params->ith == 0) {
            safely([&] { recording_->logits(logits); });
        }
        together(params);  // the node may write its result over them
    } else if (op->op == mul_) {
        if (params->ith == 0 && recording_) {
            safely([&] { recording_->weights(layer_named(op, "ffn_moe_weighted-"), op->src[1]); });
        }
    } else if (group * g = group_of(layer_named(op, "ffn_moe_weights-"))) {
        if (params->ith == 0) {
            safely([&] { steer(*g, op->src[0], op->src[1]); });
        }
        together(params);
    }
    return false;
}

// From now on, how often each expert is used; see usage.h.
void expert_cache::count_uses() {
    std::lock_guard<std::mutex> lock(mutex_);
    usage_.clear();
    for (auto & g : groups_) {
        usage_.emplace_back(g.experts.size());
    }
}

bool expert_cache::usage(int32_t index, uint64_t * uses, uint64_t * found_at, int32_t experts, localmoe_usage_totals & totals) {
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

bool expert_cache::multiply(ggml_compute_params * params, const ggml_tensor * op) {
    group * g;
    int     t;
    if (!find(op->src[0], g, t)) {
        return false;
    }
    if (how_ == OFF || resting_) {  // nothing is waited for
        if (params->ith == 0 && t == 0) {
            safely([&] { observe(*g, op->src[2]); });
        }
        return false;
    }
    if (params->ith == 0) {
        coming_.op = nullptr;
        if (!safely([&] { provide(*g, t, op->src[2], op, params->use_ref); })) {
            broken_ = true;
        }
        fresh_.clear();
    }
    together(params);
    if (coming_.op == op) {
        multiply_as_they_come(params, op);
        return true;
    }
    return broken_;
}

group * expert_cache::group_of(int layer) {
    for (auto & g : groups_) {
        if (g.layer == layer) {
            return &g;
        }
    }
    return nullptr;
}

// The other threads go on when thread 0 does. They zero memory while it starts reads, and sleep while it
// waits for the disk: the readers need the processor. The last one closes the gate again; nobody can be at the next one before
// that, since ggml has a barrier after each node. How many threads compute may change from graph
// to graph, so none counts for itself.
void expert_cache::together(const ggml_compute_params * params) {
    if (params->ith == 0) {
        std::lock_guard<std::mutex> lock(gate_);
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

void expert_cache::pass_gate() {
    for (int spin = 0; spin < SPINS; spin++) {
        if (open_.load(std::memory_order_acquire)) {
            return;
        }
        if (fresh_.any()) {
            fresh_.touch();
            spin = 0;
        }
        pause();
    }
    std::unique_lock<std::mutex> lock(gate_);
    sleepers_++;
    while (!open_.load(std::memory_order_relaxed)) {
        if (fresh_.any()) {
            lock.unlock();
            fresh_.touch();
            lock.lock();
        } else {
            go_.wait(lock);
        }
    }
    sleepers_--;
}

// These experts have memory, their reads are about to be started: the other threads may zero it. All are
// needed or predicted in this visit, so none of it is taken away meanwhile.
void expert_cache::share_zeroing(group & g, const std::vector<int> & experts) {
    for (int e : experts) {
        if (g.experts[e].fresh) {
            g.experts[e].fresh = false;
            fresh_.add(place(g, e), g.slot);
        }
    }
    if (fresh_.any()) {
        std::lock_guard<std::mutex> lock(gate_);
        if (sleepers_) {
            go_.notify_all();
        }
    }
}

bool expert_cache::find(const ggml_tensor * weights, group *& g, int & t) {
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

// A layer's choice, once per visit; the batch's token of its first row.
int64_t expert_cache::observe(group & g, const ggml_tensor * ids) {
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

// `op`: the multiplication that needs them; null: they are to be copied to one elsewhere, and the tensor stays as it
// is. `reference`: llama.cpp is to multiply with its reference kernels.
void expert_cache::provide(group & g, int t, const ggml_tensor * ids, const ggml_tensor * op, bool reference) {
    std::unique_lock<std::mutex> lock(mutex_);
    stats_.calls++;
    if (failed_) {
        broken_ = true;
        return;
    }
    reap(0);
    unstage();  // whether or not this one is streamed: its tensor may be the one that was
    int64_t k = ids->ne[0], n = ids->ne[1];
    each_ = k;
    bool first = g.seen == 0 || (g.seen & (1u << t));
    int64_t row = 0;
    if (first) {
        visit_++;
        g.seen = 0;
        g.turn = visit_;
        g.predicted = false;
        g.streamed = streams(g, n, k, following_ == 0);
        g.mapped = maps(g, n, k);
        g.chosen = 0;
        row = observe(g, ids);
    }
    g.seen |= 1u << t;
    for (size_t i = 0; how_ == PRIVATE && op && i < g.tensors.size(); i++) {
        if (!copying_ || int(i) == t) {  // the layer's others may be copied
            redirect(g, g.tensors[i], !g.mapped);
        }
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
                g.chosen++;
                if (how_ == PAGES && x.resident && clock_ - x.last_use > FRESH) {
                    for (auto & p : x.pieces) {  // the system may have dropped it
                        p.state = p.state == READY ? ABSENT : p.state;
                    }
                }
                x.counted = decoding_ && first;
                if (x.counted) {
                    count(g, x);
                }
                stats_.prefetch_used += x.foretold;
                x.foretold = false;
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
    if (g.streamed) {
        stream(lock, g, t, n, k);
        return;
    }
    if (g.mapped || crowds(g, t)) {
        bring_pages(g, t);
        return;
    }
    if (!needed_.empty()) {
        std::sort(needed_.begin(), needed_.end());
        needed_.erase(std::unique(needed_.begin(), needed_.end()), needed_.end());
        if (!demand(lock, g, t)) {
            return;
        }
    }
    if (first) {
        judge(g);
    }
    if (first && reads_ahead(g, n) && n * k >= 2 * int64_t(g.experts.size()) &&
        !streams((&g)[1], n, k, following_ == 0)) {
        foretell_all((&g)[1]);  // a large batch needs nearly all of the next layer too
    }
    if (!needed_.empty()) {
        if (op && multiplies_itself(g, t, op, reference)) {
            return;
        }
        wait(lock, g, t);
    }
    notice_crowding(g, t);
    foretell_next(g, n, k);
}

// Once all that this visit needs of a layer is there: now the disk is idle.
void expert_cache::foretell_next(group & g, int64_t n, int64_t k) {
    if (reads_ahead(g, n) && !g.predicted && scored_for_ == &g + 1 && complete(g)) {
        g.predicted = true;
        foretell_predicted((&g)[1], k);
    }
}

// Slots for what is missing, and its pieces to the readers: first what is multiplied first, so
// that reading the rest overlaps with computing.
bool expert_cache::demand(std::unique_lock<std::mutex> & lock, group & g, int t) {
    for (int e : needed_) {
        auto & x = g.experts[e];
        while (how_ == PRIVATE && !x.resident && !give_memory(g, e, NEEDED)) {
            if (!reading() && staged_) {  // the budget has shrunk since, and this layer is not streamed
                cancel(lock);
                free_stages();
                continue;
            }
            if (!reading()) {
                fail_locked(NO_MEMORY, too_small());
            }
            if (stopped()) {
                broken_ = true;
                return false;
            }
            ready_.wait_for(lock, std::chrono::milliseconds(20));
            reap(0);
        }
        x.resident = true;
    }
    share_zeroing(g, needed_);
    bool handed = false;
    for (int tensor = t, i = 0; i < int(g.tensors.size()); tensor = after(g, tensor), i++) {
        for (int e : needed_) {
            auto & x = g.experts[e];
            if (how_ == PRIVATE && x.pieces[tensor].state == ABSENT && x.from == DIRECT && g.direct &&
                read_async(g, e, tensor)) {
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

std::string expert_cache::too_small() const {
    if (resident_ >= most_resident_) {
        return "the system lets a process have too few mappings (vm.max_map_count) for the experts of one layer: " +
               std::to_string(most_resident_) + " experts at most";
    }
    std::string why = "the memory for experts is too small for one layer of this batch";
    return refused_ ? why + ": " + strerror(refused_) : why;
}

void expert_cache::wait(std::unique_lock<std::mutex> & lock, group & g, int t) {
    auto start = steady::now();
    waiting_ = true;
    auto there = [&] {
        return std::all_of(needed_.begin(), needed_.end(), [&](int e) { return g.experts[e].pieces[t].state == READY; });
    };
    while (!stopped() && !there()) {
        read_on(lock, start);
    }
    waiting_ = false;
    stats_.stall_s += seconds_since(start);
    broken_ = !there();
}

// Thread 0 has nothing to do but to read, or to wait for a moment; it has since `since`.
void expert_cache::read_on(std::unique_lock<std::mutex> & lock, steady::time_point since) {
    piece p;
    if (take_piece(demand_, p)) {  // sooner done than a reader is awake
        read(lock, p, bounce_);
        return;
    }
    if (!queue_.under_way()) {
        ready_.wait_for(lock, std::chrono::milliseconds(20));
        return;
    }
    // Waking a sleeping processor takes a good part of a read: at first, look again.
    bool look = seconds_since(since) < SPIN_S;
    lock.unlock();
    if (look) {
        pause();
    }
    lock.lock();
    reap(look ? 0 : 1000000);
}

void expert_cache::count(group & g, expert & x) {
    size_t index = size_t(&g - groups_.data());
    stats_.lookups++;
    layer_lookups_[index]++;
    if (how_ == PRIVATE && !x.resident) {
        miss(g, x);
    }
}

void expert_cache::miss(group & g, expert & x) {
    stats_.misses++;
    layer_misses_[size_t(&g - groups_.data())]++;
    x.counted = false;
}

}  // namespace localmoe

using localmoe::expert_cache;

// ---- for Python ----------------------------------------------------------------------------------

namespace {

expert_cache * cache_of(void * handle) { return static_cast<expert_cache *>(handle); }

}  // namespace

// Null when it cannot be: `why` and `what` (of enum cause) then say so.
EXPORT void * localmoe_experts_open(const localmoe_symbols * symbols, int32_t how, uint64_t budget, int32_t readers,
                                    int32_t * interrupt, const char * const * paths, int32_t n_paths,
                                    const localmoe_expert_tensor * tensors, int32_t n_tensors, char * why, int32_t max,
                                    int32_t * what) {
    try {
        auto cache = std::make_unique<expert_cache>(*symbols, localmoe::mode(how), budget, readers, interrupt);
        bool good  = true;
        for (int32_t i = 0; i < n_paths && good; i++) {
            good = cache->add_file(paths[i]);
        }
        for (int32_t i = 0; i < n_tensors && good; i++) {
            good = cache->add_tensor(tensors[i]);
        }
        if (good && cache->start()) {
            return cache.release();
        }
        localmoe::trouble error = cache->failure();
        snprintf(why, size_t(max), "%s", error.why.c_str());
        *what = error.what;
    } catch (const std::exception & error) {  // no memory, or no more threads
        snprintf(why, size_t(max), "no memory for the threads that read experts: %s", error.what());
        *what = localmoe::NO_MEMORY;
    }
    if (*interrupt == 2) {  // set by what failed, to stop a graph: none is computed
        *interrupt = 0;
    }
    return nullptr;
}

EXPORT void localmoe_experts_close(void * cache) {
    guarded(0, [&] { delete cache_of(cache); });
}

EXPORT bool localmoe_experts_begin(void * cache, int64_t position, int64_t tokens, int64_t decoded, int64_t following,
                                   uint64_t buffers) {
    return guarded(false, [&] { return cache_of(cache)->begin(position, tokens, decoded, following, buffers); });
}

EXPORT bool localmoe_experts_end(void * cache) {
    return guarded(false, [&] { return cache_of(cache)->end(); });
}

// Why the last decode failed, of enum cause; `out` says it in words.
EXPORT int32_t localmoe_experts_failure(void * cache, char * out, int32_t max) {
    return guarded(int32_t(localmoe::NO_MEMORY), [&] {
        localmoe::trouble error = cache_of(cache)->failure();
        snprintf(out, size_t(max), "%s", error.why.c_str());
        return int32_t(error.what);
    });
}

EXPORT void localmoe_experts_stats(void * cache, localmoe_expert_stats * out) {
    guarded(0, [&] { *out = cache_of(cache)->stats(); });
}

EXPORT int32_t localmoe_experts_layers(void * cache, uint64_t * lookups, uint64_t * misses, int32_t max) {
    return guarded(0, [&] { return cache_of(cache)->layer_stats(lookups, misses, max); });
}

EXPORT void localmoe_experts_resize(void * cache, uint64_t budget) {
    guarded(0, [&] { cache_of(cache)->resize(budget); });
}

EXPORT void localmoe_experts_share_out(void * cache, const float * shares, int32_t n) {
    guarded(0, [&] { cache_of(cache)->share_out(shares, n); });
}

EXPORT int32_t localmoe_experts_hot(void * cache, int32_t * pairs, int32_t max) {
    return guarded(0, [&] { return cache_of(cache)->hot(pairs, max); });
}

EXPORT bool localmoe_experts_impose(void * cache, const int32_t * ids, int64_t prefill, int64_t steps, int64_t layers,
                                    int64_t k, float predicted) {
    return guarded(false, [&] { return cache_of(cache)->impose(ids, prefill, steps, layers, k, predicted); });
}

EXPORT void localmoe_experts_prefer(void * cache, float share) {
    guarded(0, [&] { cache_of(cache)->prefer(share); });
}

// `to`: a recording, or null to stop.
EXPORT void localmoe_experts_record(void * cache, void * to) {
    guarded(0, [&] { cache_of(cache)->record(static_cast<recording *>(to)); });
}

EXPORT bool localmoe_experts_count(void * cache) {
    return guarded(false, [&] { return cache_of(cache)->count_uses(), true; });
}

// Of one group so far: uses and places [experts], see usage.h. False if nothing is counted.
EXPORT bool localmoe_experts_usage(void * cache, int32_t group, uint64_t * uses, uint64_t * found_at, int32_t experts,
                                   localmoe_usage_totals * totals) {
    return guarded(false, [&] { return cache_of(cache)->usage(group, uses, found_at, experts, *totals); });
}

EXPORT void localmoe_experts_warm(void * cache, const int32_t * pairs, int32_t n) {
    guarded(0, [&] { cache_of(cache)->warm(pairs, n); });
}

#endif  // __linux__
