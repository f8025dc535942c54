// Where experts are: address space of our own, the budget, and what leaves when it is full.

#if defined(__linux__)

#include "expert_cache.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

namespace localmoe {

// One expert's tensors side by side, so that one slot, one move and one eviction serve them all.
bool expert_cache::lay_out(group & g) {
    size_t rest = g.tensors[0].bytes % BLOCK;
    for (auto & t : g.tensors) {
        if (t.bytes % BLOCK != rest) {
            g.direct = false;
        }
    }
    rest = g.direct ? rest : 0;
    // A direct read covers whole blocks; where experts begin within a block, neighbours in memory
    // are kept a block apart, and a slot has a page more: its first tensor begins anywhere in the first.
    size_t gap = rest ? BLOCK : 0, at = gap;
    for (auto & t : g.tensors) {
        t.at = g.direct ? up(at, BLOCK) + size_t(t.offset) % BLOCK : up(at, 64);
        at   = t.at + t.bytes + gap;
    }
    g.slot   = up(at, PAGE) + (rest ? PAGE : 0);
    g.stride = g.slot + rest;
    g.span   = g.stride * g.experts.size() + 2 * PAGE;
    largest_slot_ = std::max(largest_slot_, g.slot);
    all_slots_ += uint64_t(g.slot) * g.experts.size();
    for (auto & t : g.tensors) {
        stage_bytes_ = std::max(stage_bytes_, up(size_t(t.offset) % BLOCK + t.bytes * g.experts.size(), PAGE));
    }
    void * base = mmap(nullptr, g.span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return fail(NO_MEMORY, "no address space for " + std::to_string(g.span >> 20) + " MiB of experts: " + strerror(errno));
    }
    g.base = static_cast<char *>(base);
    return true;
}

void expert_cache::place_tensor(group & g, const tensor_info & t) {
    t.tensor->data  = g.base + t.at;
    t.tensor->nb[2] = g.stride;
    t.tensor->nb[3] = g.stride * g.experts.size();
}

// To our memory, or back to where and as the file has it.
void expert_cache::redirect(group & g, tensor_info & t, bool here) {
    if (t.taken == here) {
        return;
    }
    if (here) {
        place_tensor(g, t);
    } else {
        t.tensor->data  = t.mapped;
        t.tensor->nb[2] = t.nb2;
        t.tensor->nb[3] = t.nb3;
    }
    t.taken = here;
}

void expert_cache::give_tensors_back(group & g) {
    for (auto & t : g.tensors) {
        redirect(g, t, false);
    }
}

// Each layer's part of the budget: as it was planned, else in proportion to its size.
void expert_cache::share_budget() {
    layer_lookups_.resize(groups_.size());
    layer_misses_.resize(groups_.size());
    uint64_t total = 0, budget = budget_ - std::min(budget_, staged_ + lent_);
    for (auto & g : groups_) {
        total += uint64_t(g.slot) * g.experts.size();
    }
    for (auto & g : groups_) {
        double share = g.share < 0 ? double(budget) / double(std::max<uint64_t>(total, 1))
                                   : g.share * double(budget) / double(std::max<uint64_t>(planned_, 1));
        g.capacity = int(std::min(1.0, share) * double(g.experts.size()) + 1e-3);
    }
}

// Whether an expert may be evicted now: not needed by this visit, no reader in it, no copy of it being made.
bool expert_cache::idle(const expert & x) const {
    if (!x.resident || x.pinned == visit_ || x.copied) {
        return false;
    }
    for (auto & p : x.pieces) {
        if (p.state == READING) {
            return false;
        }
    }
    return true;
}

int expert_cache::oldest(const group & g) const {
    int best = -1;
    for (size_t e = 0; e < g.experts.size(); e++) {
        auto & x = g.experts[e];
        if (idle(x) && (best < 0 || x.worth < g.experts[best].worth)) {
            best = int(e);
        }
    }
    return best;
}

void expert_cache::forget(group & g, int e) {
    auto & x = g.experts[e];
    x.resident = x.foretold = false;
    for (auto & p : x.pieces) {
        p.state = ABSENT;  // a queued piece is dropped by whoever takes it from the queue
    }
    g.resident--;
    resident_--;
    used_ -= g.slot;
    stats_.evictions++;
}

// Makes a place inaccessible and gives its memory back. A new mapping joins its inaccessible neighbours, so
// that places which are not in use take no mapping of their own. Where the system has no mapping left to
// split off, the memory goes all the same.
void expert_cache::hide(group & g, int e) {
    char * at = place(g, e);
    if (mmap(at, g.slot, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) == MAP_FAILED) {
        madvise(at, g.slot, MADV_DONTNEED);
        mprotect(at, g.slot, PROT_NONE);
    }
}

// Give an expert's memory back to the system; its place becomes inaccessible.
void expert_cache::release(group & g, int e) {
    forget(g, e);
    hide(g, e);
}

// What was in use when the budget shrank goes as soon as it is not.
void expert_cache::keep_budget() {
    while (used_ > budget_ && release_one(nullptr)) {
    }
}

bool expert_cache::release_one(const group * except) {
    group * from = donor(except, true);
    int     e    = from ? oldest(*from) : -1;
    if (e >= 0) {
        release(*from, e);
    }
    return e >= 0;
}

// Who gives memory when the layer itself should not: first one that has more than its part, then
// the one that was computed last and so is needed again the latest.
group * expert_cache::donor(const group * except, bool below_capacity) {
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

// Memory at an expert's place, and how it will be read. Where the system gives no more of it, that of another
// expert, as at the budget.
bool expert_cache::give_memory(group & g, int e, urgency why) {
    keep_budget();
    auto & x = g.experts[e];
    if (used_ + g.slot <= budget_ && resident_ < most_resident_) {
        x.from = source(g, e);
        if (map(g, e)) {
            return true;
        }
    }
    group * from = why == NEEDED && g.resident >= g.capacity && oldest(g) >= 0 ? &g : donor(&g, why != SPARE);
    if (!from && why == NEEDED && oldest(g) >= 0) {
        from = &g;
    }
    if (!from) {
        return false;
    }
    int victim = oldest(*from);
    x.from = directly(g) ? DIRECT : in_page_cache(g, e) ? PAGE_CACHE : THROUGH_CACHE;
    if (from->slot == g.slot) {
        char * target = place(g, e);
        char * place_of_victim = place(*from, victim);
        if (mremap(place_of_victim, g.slot, g.slot, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, target) !=
            MAP_FAILED) {
            hide(*from, victim);
            forget(*from, victim);
            x.fresh = false;
            return gave(g, e);
        }
    }
    release(*from, victim);
    while (used_ + g.slot > budget_) {  // experts of this layer are larger
        if (!release_one(why == NEEDED ? nullptr : &g)) {
            return false;
        }
    }
    return map(g, e);
}

bool expert_cache::map(group & g, int e) {
    void * target = mmap(place(g, e), g.slot, PROT_READ | PROT_WRITE,
                         MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (target == MAP_FAILED) {
        refused_ = errno;
        return false;
    }
    g.experts[e].fresh = true;
    return gave(g, e);
}

bool expert_cache::gave(group & g, int e) {
    g.experts[e].resident = true;
    g.resident++;
    resident_++;
    used_ += g.slot;
    return true;
}

// Where a new expert is read from while the budget has room. To compare, a prompt's first ones are read
// by the readers, every other one through the page cache.
origin expert_cache::source(const group & g, int e) {
    if (in_page_cache(g, e)) {
        return PAGE_CACHE;
    }
    if (!directly(g)) {
        return THROUGH_CACHE;
    }
    if (decoding_ || compared() || to_compare_ > 8 * ENOUGH) {
        return DIRECT;
    }
    to_compare_ += g.slot;
    through_cache_ = !through_cache_;
    return through_cache_ ? THROUGH_CACHE : DIRECT_TIMED;
}

// A glance at the middle of each tensor.
bool expert_cache::in_page_cache(const group & g, int e) const {
    return std::all_of(g.tensors.begin(), g.tensors.end(), [&](const tensor_info & t) {
        size_t middle = size_t(t.mapped) + t.bytes * size_t(e) + t.bytes / 2;
        unsigned char there = 0;
        return files_[t.file].told && mincore(reinterpret_cast<void *>(down(middle, PAGE)), PAGE, &there) == 0 && (there & 1);
    });
}

bool expert_cache::compared() const {
    return direct_reads_.bytes > ENOUGH && cache_reads_.bytes > ENOUGH;
}

// Some file systems read past their cache slowly, or not at all; then it serves all along.
bool expert_cache::directly(const group & g) const {
    auto & a = direct_reads_;
    auto & b = cache_reads_;
    bool slow = compared() && a.seconds / double(a.bytes) > 1.5 * b.seconds / double(b.bytes);
    return !slow && std::none_of(g.tensors.begin(), g.tensors.end(), [&](auto & t) { return files_[t.file].no_direct; });
}

// Each expert in memory is a mapping, and so is what lies between it and the next one. The rest of the process
// must go on getting some.
void expert_cache::limit_mappings() {
    unsigned long most = 65530, there = 0;  // the system's default
    if (FILE * file = fopen("/proc/sys/vm/max_map_count", "re")) {
        if (fscanf(file, "%lu", &most) != 1) {
            most = 65530;
        }
        fclose(file);
    }
    if (FILE * file = fopen("/proc/self/maps", "re")) {
        for (int c = fgetc(file); c != EOF; c = fgetc(file)) {
            there += c == '\n';
        }
        fclose(file);
    }
    most_resident_ = most > there + OTHER_MAPPINGS ? (most - there - OTHER_MAPPINGS) / 2 : 0;
}

}  // namespace localmoe

#endif  // __linux__
