// A batch whose experts do not stay in memory until they are multiplied, and that is multiplied where llama.cpp has
// mapped the file.
//
// A page that is missing then costs a fault, and what the system reads around it may be gone before it is used: a
// prompt of 150 tokens took ten times as long as reading its experts. So the readers bring them in the order of their
// numbers, which is that of computing, while they are multiplied; none is waited for.

#if defined(__linux__)

#include "expert_cache.h"

#include <algorithm>
#include <fcntl.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace localmoe {

// Tells the system what a fault in the mapped experts means: the next pages are needed too, or this one alone.
void expert_cache::expect_faults(bool in_order) {
    in_order_ = in_order;
    for (auto & g : groups_) {
        for (auto & t : g.tensors) {
            size_t from = down(size_t(t.mapped), PAGE), to = up(size_t(t.mapped) + t.bytes * g.experts.size(), PAGE);
            madvise(reinterpret_cast<void *>(from), to - from, in_order ? MADV_SEQUENTIAL : MADV_RANDOM);
        }
    }
}

// Whether the page cache does not keep as many experts as this multiplication needs.
bool expert_cache::crowds(const group & g, int t) const {
    return how_ == PAGES && !decoding_ && uint64_t(g.chosen) * g.tensors[size_t(t)].bytes >= crowded_;
}

// All that this multiplication needs has been read. Is the first of it still there?
void expert_cache::notice_crowding(group & g, int t) {
    if (how_ != PAGES || decoding_ || broken_) {
        return;
    }
    const tensor_info & x = g.tensors[size_t(t)];
    for (size_t e = 0; e < g.experts.size(); e++) {
        if (g.experts[e].pinned == visit_) {
            size_t middle = size_t(x.mapped) + x.bytes * e + x.bytes / 2;
            unsigned char there = 1;
            if (mincore(reinterpret_cast<void *>(down(middle, PAGE)), PAGE, &there) == 0 && !(there & 1)) {
                crowded_ = std::min(crowded_, uint64_t(g.chosen) * x.bytes);
                bring_pages(g, t);
            }
            return;
        }
    }
}

void expert_cache::bring_pages(group & g, int t) {
    if (!in_order_) {
        expect_faults(true);
    }
    pages_.clear();
    const tensor_info & x = g.tensors[size_t(t)];
    int most = std::max(1, int(STAGE_READ / x.bytes));
    for (int e = 0; e < int(g.experts.size()); e++) {
        expert & one = g.experts[size_t(e)];
        if (one.pinned != visit_) {
            continue;
        }
        if (how_ == PAGES && one.pieces[t].state == READY) {
            one.pieces[t].state = ABSENT;  // it will be gone when the next token needs it
        }
        if (!pages_.empty() && pages_.back().end == e && e - pages_.back().first < most) {
            pages_.back().end = e + 1;
        } else {
            pages_.push_back({&x, e, e + 1});
        }
    }
    work_.notify_all();
}

// Brings the next pages; false if there are none. What cannot be read is left to the multiplication.
bool expert_cache::take_pages(std::unique_lock<std::mutex> & lock) {
    if (pages_.empty()) {
        return false;
    }
    const tensor_info & x = *pages_.front().tensor;
    size_t from = down(size_t(x.mapped) + x.bytes * size_t(pages_.front().first), PAGE);
    size_t to   = up(size_t(x.mapped) + x.bytes * size_t(pages_.front().end), PAGE);
    pages_.pop_front();
    lock.unlock();
    std::vector<unsigned char> there((to - from) / PAGE);
    void * address = reinterpret_cast<void *>(from);
    size_t missing = 0;
    if (mincore(address, to - from, there.data()) == 0) {
        missing = PAGE * size_t(std::count_if(there.begin(), there.end(), [](unsigned char c) { return !(c & 1); }));
    }
    if (missing) {
        int64_t offset = x.offset + (int64_t(from) - int64_t(size_t(x.mapped)));
        posix_fadvise(files_[size_t(x.file)].fd, offset, int64_t(to - from), POSIX_FADV_WILLNEED);
    }
    madvise(address, to - from, MADV_POPULATE_READ);
    lock.lock();
    stats_.bytes_read += missing;
    return true;
}

}  // namespace localmoe

#endif  // __linux__
