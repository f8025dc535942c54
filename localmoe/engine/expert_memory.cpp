// Where experts are: address space of our own, the budget, and what leaves when it is full.

#if defined(__linux__)

#include "expert_cache.h"

#include <algorithm>
#include <cstdio>
#include <cerrno>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

namespace localmoe {

// One expert's tensors side by side, so that one slot, one move and one eviction serve them all.
bool expert_cache::lay_out(group & g) {
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

void expert_cache::take_tensors(group & g) {
    for (auto & t : g.tensors) {
        t.tensor->data  = g.base + t.at;
        t.tensor->nb[2] = g.stride;
        t.tensor->nb[3] = g.stride * g.experts.size();
    }
    g.taken = true;
}

void expert_cache::give_tensors_back(group & g) {
    if (g.taken) {
        for (auto & t : g.tensors) {
            t.tensor->data  = t.mapped;
            t.tensor->nb[2] = t.nb2;
            t.tensor->nb[3] = t.nb3;
        }
        g.taken = false;
    }
}

// Each layer's part of the budget: as it was planned, else in proportion to its size.
void expert_cache::share_budget() {
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
void expert_cache::share_mappings() {
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
bool expert_cache::idle(const expert & x) const {
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
    used_ -= g.slot;
    own_ -= x.memory == OWN ? g.slot : 0;
    file_backed_ -= x.memory == FILE_PAGES;
    x.memory = NOTHING;
    stats_.evictions++;
}

// Give an expert's memory back to the system; its place becomes inaccessible.
void expert_cache::release(group & g, int e) {
    if (g.experts[e].memory == FILE_PAGES) {
        for (auto & t : g.tensors) {
            dropped_.push_back({t.file, t.offset + int64_t(t.bytes) * e, int64_t(t.bytes)});
        }
    }
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

// Memory at an expert's place.
bool expert_cache::give_memory(group & g, int e, urgency why) {
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
bool expert_cache::direct_is_slow() const {
    return direct_reads_.bytes > ENOUGH && page_reads_.bytes > ENOUGH &&
           direct_reads_.seconds / double(direct_reads_.bytes) > 1.5 * page_reads_.seconds / double(page_reads_.bytes);
}

bool expert_cache::gave(group & g, int e, backing memory) {
    auto & x = g.experts[e];
    x.resident = true;
    x.memory = memory;
    g.resident++;
    used_ += g.slot;
    own_ += memory == OWN ? g.slot : 0;
    file_backed_ += memory == FILE_PAGES;
    return true;
}

bool expert_cache::map_own(group & g, int e) {
    void * target = mmap(place(g, e), g.slot, PROT_READ | PROT_WRITE,
                         MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return target != MAP_FAILED && gave(g, e, OWN);
}

bool expert_cache::map_file(group & g, int e) {
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

}  // namespace localmoe

#endif  // __linux__
