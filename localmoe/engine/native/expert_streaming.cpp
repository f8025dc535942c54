// A large batch whose experts find no free memory: projection by projection, through two stages.
//
// A batch of some hundred tokens chooses nearly every expert of a layer, so a layer that does not fit into the
// budget would have to be read anew every few tokens. But one multiplication needs one projection only. It is
// brought to a stage, in the layout of the file and by large reads, experts that are in memory are copied from
// there, and the tensor points to the stage while it is multiplied; meanwhile the next projection comes to the
// other stage. So each expert is read once per batch, with the memory of two projections, and those that the
// answer's tokens use stay where they are. A prompt's last batch takes their place if two layers fit: its own stay
// for the answer. Where not even the stages fit, the file's own mapping serves the batch.

#if defined(__linux__)

#include "expert_cache.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>

namespace localmoe {

// Bytes of the experts that so many of a prompt's tokens choose in a layer, each its own; 0 where they need not pass
// through memory.
uint64_t expert_cache::passing(const group & g, int64_t rows, int64_t used) const {
    bool pass = how_ == PRIVATE && !decoding_ && rows > 1 && all_slots_ > budget_ - std::min(budget_, lent_ + staged_);
    return pass ? uint64_t(std::min(int64_t(g.experts.size()), rows * used)) * largest_slot_ : 0;
}

// Whether a batch that routes so many tokens to a layer goes through the stages: they fit, with one token's experts
// for a layer that computes no more, and its own experts find no room without others making it. A prompt's last batch
// takes that room if there is enough for the next layer's too: what it used stays for the answer.
bool expert_cache::streams(const group & g, int64_t rows, int64_t used, bool last) const {
    uint64_t bytes = passing(g, rows, used), left = budget_ - std::min(budget_, lent_ + staged_);
    uint64_t free = budget_ - std::min(budget_, used_ + (staged_ ? 0 : 2 * stage_bytes_));
    bool beside = last ? 2 * bytes <= left : bytes <= free + uint64_t(g.resident) * g.slot;
    return bytes && !beside && (staged_ || 2 * stage_bytes_ + uint64_t(used) * largest_slot_ <= left);
}

// Whether a batch does without the stages that the one before it had.
bool expert_cache::leaves_stages(int64_t tokens, uint64_t buffers) const {
    return following_ == 0 && 2 * passing(groups_.front(), tokens, each_) <= budget_ - std::min(budget_, buffers);
}

// Whether it is multiplied from the file's mapping, page by page: neither its experts nor the stages fit.
bool expert_cache::maps(const group & g, int64_t rows, int64_t used) const {
    return !streams(g, rows, used, following_ == 0) && passing(g, rows, used) > budget_ - std::min(budget_, lent_ + staged_);
}

// Takes bytes of the budget for something else, and gives back what it had been taken for before.
void expert_cache::borrow(uint64_t & what, uint64_t bytes) {
    used_ += bytes - what;
    what = bytes;
    share_budget();
    keep_budget();
}

// Memory for the two stages.
bool expert_cache::stages() {
    if (staged_) {
        return true;
    }
    borrow(staged_, 2 * stage_bytes_);
    for (stage & s : stages_) {
        void * at = mmap(nullptr, stage_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) {
            refused_ = errno;
            free_stages();
            return fail_locked(NO_MEMORY, too_small());
        }
        madvise(at, stage_bytes_, MADV_HUGEPAGE);  // fewer faults and fewer pages to pin; nothing is lost without
        s.base = static_cast<char *>(at);
    }
    return true;
}

void expert_cache::free_stages() {
    for (stage & s : stages_) {
        if (s.base) {
            munmap(s.base, stage_bytes_);
        }
        s = {};
    }
    if (staged_) {
        borrow(staged_, 0);
    }
}

// One multiplication of a batch that is streamed: its projection is in a stage, and the next one on its way.
void expert_cache::stream(std::unique_lock<std::mutex> & lock, group & g, int t, int64_t rows, int64_t used) {
    if (!stages()) {
        broken_ = true;
        return;
    }
    auto holds = [&](const stage & s) { return s.g == &g && s.t == t; };
    stage & here = stages_[holds(stages_[0]) ? 0 : 1];
    if (!holds(here) || here.problem.what != NONE) {  // nobody knew that it would be next, or it could not be read
        cancel(lock);
        fill(here, g, t, false);
    }
    if (!filled(lock, here)) {
        broken_ = true;
        return;
    }
    if (tensor_info & x = g.tensors[size_t(t)]; x.taken) {
        x.tensor->data  = here.base + (x.offset - here.from);
        x.tensor->nb[2] = x.nb2;
        x.tensor->nb[3] = x.nb3;
    }
    multiplied_ = &here;
    fill_next(&here == &stages_[0] ? stages_[1] : stages_[0], g, t, rows, used);
}

// The tensor that was multiplied in a stage is in its own place again.
void expert_cache::unstage() {
    if (multiplied_) {
        if (tensor_info & x = multiplied_->g->tensors[size_t(multiplied_->t)]; x.taken) {
            place_tensor(*multiplied_->g, x);
        }
        multiplied_->g = nullptr;
    }
    multiplied_ = nullptr;
}

// What is streamed after tensor t of a layer: its next one, of whose experts the needed ones are known, else the
// next layer's first, or the first one for the next batch. Which experts those need nobody knows, so they come
// where nearly all will be needed.
void expert_cache::fill_next(stage & s, group & g, int t, int64_t rows, int64_t used) {
    if (t != g.order.back()) {
        fill(s, g, after(g, t), false);
        return;
    }
    auto sure = [&](group & next, int64_t n, bool last) {
        return n * used >= 2 * int64_t(next.experts.size()) && streams(next, n, used, last);
    };
    for (group * next = &g + 1; next != groups_.data() + groups_.size(); next++) {
        if (sure(*next, next->planned < 0 ? rows : next->planned, following_ == 0)) {
            fill(s, *next, next->order.front(), true);
            return;
        }
    }
    if (sure(groups_.front(), following_, true)) {  // it may be the last one
        fill(s, groups_.front(), groups_.front().order.front(), true);
    }
}

// Starts to bring a projection: of the experts that this visit needs, or all.
void expert_cache::fill(stage & s, group & g, int t, bool all) {
    const tensor_info & x = g.tensors[size_t(t)];
    s.g       = &g;
    s.t       = t;
    s.from    = int64_t(down(size_t(x.offset), BLOCK));
    s.problem = {};
    int most = std::max(1, int(STAGE_READ / x.bytes)), experts = int(g.experts.size());
    for (int e = 0; e < experts; e++) {
        expert & one = g.experts[size_t(e)];
        if (!all && one.pinned != visit_) {
            continue;
        }
        bool copied = one.pieces[t].state == READY;
        one.copied += copied;
        stage_part * last = !copied && !parts_.empty() && !parts_.back().copied ? &parts_.back() : nullptr;
        if (last && last->to == &s && last->end == e && e - last->first < most) {
            last->end = e + 1;
        } else {
            parts_.push_back({&s, e, e + 1, copied});
            s.left++;
        }
    }
    work_.notify_all();
}

// Waits until all parts of a stage are there, and brings some of them.
bool expert_cache::filled(std::unique_lock<std::mutex> & lock, stage & s) {
    auto start = steady::now();
    while (!stopped() && s.left) {
        stage_part p;
        if (take_part(p)) {
            bring(lock, p);
        } else {
            ready_.wait_for(lock, std::chrono::milliseconds(20));
        }
    }
    stats_.stall_s += seconds_since(start);
    if (s.problem.what != NONE) {
        return fail_locked(s.problem.what, s.problem.why);
    }
    return s.left == 0;
}

bool expert_cache::take_part(stage_part & p) {
    if (parts_.empty()) {
        return false;
    }
    p = parts_.front();
    parts_.pop_front();
    p.to->busy++;
    return true;
}

void expert_cache::bring(std::unique_lock<std::mutex> & lock, const stage_part & p) {
    stage &     s = *p.to;
    group &     g = *s.g;
    const auto & x = g.tensors[size_t(s.t)];
    bool past = !files_[size_t(x.file)].no_direct;
    lock.unlock();
    outcome came;
    if (p.copied) {
        memcpy(s.base + (x.offset + int64_t(x.bytes) * p.first - s.from), data_of(g, x, p.first), x.bytes);
    } else {
        try {
            came = read_run(s, p, past);
        } catch (const std::bad_alloc &) {
            came.problem = {NO_MEMORY, OUT_OF_MEMORY};
        }
    }
    lock.lock();
    g.experts[size_t(p.first)].copied -= p.copied;
    files_[size_t(x.file)].no_direct = files_[size_t(x.file)].no_direct || refuses(came.refusal);
    stats_.bytes_read += came.bytes;
    if (came.problem.what != NONE) {
        s.problem = came.problem;
    }
    s.busy--;
    s.left--;
    ready_.notify_one();
}

// Experts that lie one after the other, whole blocks at once. The first and the last block hold parts of their
// neighbours too, which another reader may have brought: a read that fails may spoil all that it was to fill, so all
// of it is read again.
outcome expert_cache::read_run(const stage & s, const stage_part & p, bool past) {
    const tensor_info & x = s.g->tensors[size_t(s.t)];
    const part & file = files_[size_t(x.file)];
    int64_t begin = x.offset + int64_t(x.bytes) * p.first, end = x.offset + int64_t(x.bytes) * p.end;
    int64_t from = int64_t(down(size_t(begin), BLOCK)), to = int64_t(up(size_t(end), BLOCK));
    int64_t need = std::min(to, int64_t(file.then.st_size)) - from;
    char * target = s.base + (from - s.from);
    outcome result;
    int64_t done = past ? read_range(file.direct, target, to - from, need, from, BLOCK, result.refusal) : 0;
    if (done < need) {
        result.problem = read_cached(file, target + done, need - done, from + done);
        posix_fadvise(file.fd, from + done, need - done, POSIX_FADV_DONTNEED);
    }
    result.bytes = size_t(end - begin);
    if (result.problem.what == NONE) {
        result.problem = changed(x.file);
    }
    return result;
}

// What is on its way to the stages need not come.
void expert_cache::cancel(std::unique_lock<std::mutex> & lock) {
    for (const stage_part & p : parts_) {
        p.to->g->experts[size_t(p.first)].copied -= p.copied;
    }
    parts_.clear();
    while (stages_[0].busy || stages_[1].busy) {
        ready_.wait_for(lock, std::chrono::milliseconds(20));
    }
    for (stage & s : stages_) {
        s.g    = nullptr;
        s.left = 0;
    }
}

// After a prompt that was streamed: what its last tokens used most is read in the background, for the answer, in the
// memory that the stages had.
void expert_cache::refill() {
    struct entry { double worth; group * g; int e; };
    std::vector<entry> wanted;
    for (auto & g : groups_) {
        for (size_t e = 0; e < g.experts.size(); e++) {
            if (!g.experts[e].resident && g.experts[e].last_use >= 0) {
                wanted.push_back({g.experts[e].worth, &g, int(e)});
            }
        }
    }
    std::sort(wanted.begin(), wanted.end(), [](const entry & a, const entry & b) { return a.worth > b.worth; });
    uint64_t room = budget_ - std::min(budget_, used_);
    for (auto & x : wanted) {
        if (room < x.g->slot) {
            break;
        }
        room -= x.g->slot;
        hot_.push_back({x.g, x.e, 0, 0, 0});
    }
    work_.notify_all();
}

// The pages in which llama.cpp has computed a large batch go back to the system; a token touches few of them anew.
// Nothing is kept there from one graph to the next.
void expert_cache::give_buffers_back() {
    if (buffers_) {
        size_t from = size_t(buffer_base_(buffers_)), to = down(from + buffer_size_(buffers_), PAGE);
        from = up(from, PAGE);
        madvise(reinterpret_cast<void *>(from), to - from, MADV_DONTNEED);
    }
}

}  // namespace localmoe

#endif  // __linux__
