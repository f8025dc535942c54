// From the files: reads for what is needed now, for what will be, and what went wrong with them.

#if defined(__linux__)

#include "expert_cache.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace localmoe {

// What a read of a file system says that has no direct reads after all, or none of blocks as small as ours.
bool refuses(int error) { return error == EINVAL || error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY; }

namespace {

// Whether blocks of BLOCK bytes can be read past the page cache, as far as can be known before: file systems
// that allow to open a file so may still refuse to read it.
bool reads_directly(int fd) {
#ifdef STATX_DIOALIGN
    struct statx known;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &known) == 0 && (known.stx_mask & STATX_DIOALIGN)) {
        size_t least = std::max(known.stx_dio_offset_align, known.stx_dio_mem_align);
        if (known.stx_dio_offset_align == 0 || least > BLOCK) {
            return false;
        }
    }
#endif
    alignas(BLOCK) static thread_local char block[BLOCK];
    return pread(fd, block, BLOCK, BLOCK) >= 0 || !refuses(errno);
}

}  // namespace

bool expert_cache::add_file(const char * path) {
    part file;
    file.path = path;
    file.fd   = open(path, O_RDONLY | O_CLOEXEC);
    if (file.fd < 0 || fstat(file.fd, &file.then) != 0) {
        int error = errno;
        close(file.fd);
        return fail(UNREADABLE, std::string("cannot open ") + path + ": " + strerror(error));
    }
    posix_fadvise(file.fd, 0, 0, POSIX_FADV_RANDOM);  // what is needed is said, nothing around it
    file.direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    file.no_direct = file.direct < 0 || (how_ == PRIVATE && !reads_directly(file.direct));
    // Linux tells others that all of it is in the page cache (mincore(2)).
    file.told = file.then.st_uid == geteuid() || access(path, W_OK) == 0;
    files_.push_back(file);
    return true;
}

// What is resident, most recently used first: (group, expert) pairs.
int32_t expert_cache::hot(int32_t * out, int32_t max) {
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
void expert_cache::warm(const int32_t * pairs, int32_t n) {
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

bool expert_cache::read_async(group & g, int e, int tensor) {
    if (!queue_.room()) {
        return false;
    }
    const tensor_info & t = g.tensors[tensor];
    int64_t offset = t.offset + int64_t(t.bytes) * e, from = int64_t(down(size_t(offset), BLOCK));
    size_t  length = up(size_t(offset - from) + t.bytes, BLOCK);
    if (files_[t.file].no_direct || !queue_.start(files_[t.file].direct, data_of(g, t, e) - (offset - from), length, from, {&g, e, tensor, 0, 1})) {
        return false;
    }
    auto & p = g.experts[e].pieces[tensor];
    p.state = READING;
    p.next  = UINT16_MAX;  // an entry left in a queue must not read a part of it too
    p.left  = 1;
    p.bad   = false;
    return true;
}

// Takes in what asynchronous reads have brought so far. What has failed, or came short, the readers try again.
void expert_cache::reap(long patience) {
    queue_.reap(patience, [&](const piece & p, int64_t n) {
        const tensor_info & t = p.g->tensors[p.tensor];
        expert & x = p.g->experts[p.expert];
        int64_t need = int64_t(t.bytes) + (t.offset + int64_t(t.bytes) * p.expert) % int64_t(BLOCK);
        if (n >= need) {
            stats_.bytes_read += t.bytes;
            ended(p, changed(t.file));
            return;
        }
        files_[t.file].no_direct = files_[t.file].no_direct || refuses(int(-n));
        x.pieces[p.tensor].state = ABSENT;
        ask(x.pinned == visit_ ? demand_ : foretold_, *p.g, p.expert, p.tensor);
        work_.notify_all();
    });
}

void expert_cache::ask(std::deque<piece> & queue, group & g, int e, int t) {
    auto & p = g.experts[e].pieces[t];
    if (p.state == ABSENT) {
        size_t length = up(g.tensors[t].bytes + PAGE, CHUNK);  // it begins anywhere in a page
        p.state = QUEUED;
        p.next  = 0;
        p.left  = uint16_t(length / CHUNK);
        p.bad   = false;
    }
    queue.push_back({&g, e, t, 0, p.left});
}

// Whether memory is held only until a read ends: of an interrupted request, or read ahead.
bool expert_cache::reading() const {
    for (auto & g : groups_) {
        for (auto & x : g.experts) {
            if (x.resident && x.pinned != visit_ && !idle(x)) {
                return true;
            }
        }
    }
    return false;
}

void expert_cache::foretell_all(group & h) {
    for (size_t e = 0; e < h.experts.size(); e++) {
        if (!h.experts[e].resident && !foretell(h, int(e), LIKELY)) {
            return;
        }
    }
}

// Memory for an expert that nobody has asked for yet.
bool expert_cache::expect(group & g, int e, urgency why) {
    auto & x = g.experts[e];
    if (x.resident || (how_ == PRIVATE && !give_memory(g, e, why))) {
        return false;
    }
    x.resident = true;
    if (why == SPARE) {
        stats_.warmed++;
    } else {
        x.foretold = true;
        stats_.prefetched++;
    }
    return true;
}

bool expert_cache::foretell(group & g, int e, urgency why) {
    if (!expect(g, e, why)) {
        return false;
    }
    auto & x = g.experts[e];
    x.worth = std::max(x.worth, double(clock_) / HALF_LIFE);  // as if used now: not the next victim
    for (size_t i = 0; i < g.tensors.size(); i++) {
        ask(foretold_, g, e, int(i));
    }
    work_.notify_all();
    return true;
}

bool expert_cache::take_piece(std::deque<piece> & queue, piece & p) {
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
bool expert_cache::next_piece(piece & p) {
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

void expert_cache::read_loop() {
    std::vector<char> bounce;
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stop_) {
        stage_part s;
        if (take_part(s)) {
            bring(lock, s);
            continue;
        }
        if (take_pages(lock)) {
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

void expert_cache::read(std::unique_lock<std::mutex> & lock, const piece & p, std::vector<char> & bounce) {
    group &  g = *p.g;
    expert & x = g.experts[p.expert];
    origin from = x.from;
    bool   keep = from != THROUGH_CACHE || !directly(g);
    bool   direct = from == DIRECT || from == DIRECT_TIMED;
    bool   fair = how_ == PRIVATE && from != PAGE_CACHE && !queue_.under_way();
    part & file = files_[g.tensors[p.tensor].file];
    bool   past = !file.no_direct;
    lock.unlock();
    outcome came;
    auto start = steady::now();
    try {
        came = how_ == PAGES ? read_pages(p, bounce) : direct ? read_direct(p, past, bounce) : read_copied(p, keep);
    } catch (const std::bad_alloc &) {
        came.problem = {NO_MEMORY, OUT_OF_MEMORY};
    }
    double took = seconds_since(start);
    lock.lock();
    file.no_direct = file.no_direct || refuses(came.refusal);
    stats_.bytes_read += from == PAGE_CACHE ? 0 : came.bytes;
    // Large reads among their like, so that the two ways compare.
    if (fair && !queue_.under_way() && came.bytes >= CHUNK / 4 && !came.refusal) {
        auto & way = direct && past ? direct_reads_ : cache_reads_;
        way.bytes += came.bytes;
        way.seconds += took;
    }
    if (how_ == PAGES && came.bytes && x.counted) {
        miss(g, x);
    }
    ended(p, came.problem);
}

void expert_cache::ended(const piece & p, const trouble & problem) {
    auto & x    = p.g->experts[p.expert];
    auto & done = x.pieces[p.tensor];
    if (problem.what != NONE) {
        done.bad = true;
        problem_ = problem;
    }
    if (done.bad && waiting_ && x.pinned == visit_) {  // else whoever needs it asks again
        fail_locked(problem_.what, problem_.why);
    }
    if (--done.left == 0) {
        done.state = done.bad ? ABSENT : READY;
        ready_.notify_one();
    }
}

// Reads until `need` of `length` bytes are there (a file may end before `length`); how many are, in `error` why
// not all. A read that came short goes on at a whole block; where it brought less than one, it does not go on.
int64_t expert_cache::read_range(int fd, char * target, int64_t length, int64_t need, int64_t offset, size_t block,
                                 int & error) {
    int64_t done = 0;
    error = 0;
    while (done < need) {
        ssize_t n = pread(fd, target + done, size_t(length - done), offset + done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            error = errno;
            break;
        }
        int64_t there = done + n < need ? int64_t(down(size_t(done + n), block)) : need;
        if (there == done) {
            break;
        }
        done = there;
    }
    return done;
}

// `need` bytes through the page cache, which takes any offset; what was wrong if they do not come.
trouble expert_cache::read_cached(const part & file, char * target, int64_t need, int64_t offset) {
    int error;
    if (read_range(file.fd, target, need, need, offset, 1, error) == need) {
        return {};
    }
    return error ? trouble{UNREADABLE, "cannot read " + file.path + ": " + strerror(error)}
                 : trouble{CHANGED, file.path + " has become shorter while it was in use"};
}

// Reads whole blocks of the file to the same place within blocks of memory. What does not come so is read once
// more through the page cache, before anything is called unreadable.
outcome expert_cache::read_direct(const piece & p, bool past, std::vector<char> & bounce) {
    const tensor_info & t = p.g->tensors[p.tensor];
    int64_t offset = t.offset + int64_t(t.bytes) * p.expert, end = offset + int64_t(t.bytes);
    int64_t from   = int64_t(down(size_t(offset), BLOCK)) + int64_t(CHUNK) * p.chunk;
    int64_t to     = std::min(from + int64_t(CHUNK), int64_t(up(size_t(end), BLOCK)));
    if (from >= to) {
        return {};
    }
    char * data   = data_of(*p.g, t, p.expert);  // where `offset` goes
    char * target = data + (from - offset);
    if (!p.g->direct) {
        bounce.resize(CHUNK + BLOCK);
        target = reinterpret_cast<char *>(up(size_t(bounce.data()), BLOCK));
    }
    int64_t need = std::min(to, end) - from;  // the file may end within the last block
    const part & file = files_[t.file];
    outcome result;
    int64_t done = past ? read_range(file.direct, target, to - from, need, from, BLOCK, result.refusal) : 0;
    if (done < need) {
        result.problem = read_cached(file, target + done, need - done, from + done);
        if (result.problem.what != NONE) {
            return result;
        }
    }
    if (!p.g->direct) {
        int64_t first = std::max(from, offset);
        memcpy(data + (first - offset), target + (first - from), size_t(from + need - first));
    }
    result.bytes   = size_t(need);
    result.problem = changed(t.file);
    return result;
}

// Through the page cache, which may have it already; and need not keep it.
outcome expert_cache::read_copied(const piece & p, bool keep) {
    const tensor_info & t = p.g->tensors[p.tensor];
    const part & file = files_[t.file];
    size_t begin = CHUNK * size_t(p.chunk), end = std::min(begin + CHUNK, t.bytes);
    if (begin >= end) {
        return {};
    }
    int64_t size = int64_t(end - begin), offset = t.offset + int64_t(t.bytes) * p.expert + int64_t(begin);
    outcome result;
    result.problem = read_cached(file, data_of(*p.g, t, p.expert) + begin, size, offset);
    if (result.problem.what != NONE) {
        return result;
    }
    if (!keep) {
        posix_fadvise(file.fd, offset, size, POSIX_FADV_DONTNEED);
    }
    result.bytes   = end - begin;
    result.problem = changed(t.file);
    return result;
}

// The mapping's pages, brought and mapped; `bytes` are those that the page cache did not have.
outcome expert_cache::read_pages(const piece & p, std::vector<char> & bounce) {
    const tensor_info & t = p.g->tensors[p.tensor];
    const part & file = files_[t.file];
    size_t data = size_t(t.mapped) + t.bytes * size_t(p.expert), end = data + t.bytes;
    size_t from = down(data, PAGE) + CHUNK * size_t(p.chunk), to = std::min(from + CHUNK, up(end, PAGE));
    if (from >= to) {
        return {};
    }
    void * address = reinterpret_cast<void *>(from);
    int64_t offset = t.offset + int64_t(t.bytes) * p.expert + (int64_t(from) - int64_t(data));
    outcome result;
    std::vector<unsigned char> there((to - from) / PAGE);
    if (mincore(address, to - from, there.data()) == 0) {
        result.bytes = PAGE * size_t(std::count_if(there.begin(), there.end(), [](unsigned char c) { return !(c & 1); }));
    }
    if (result.bytes) {
        posix_fadvise(file.fd, offset, int64_t(to - from), POSIX_FADV_WILLNEED);
    }
    if (madvise(address, to - from, MADV_POPULATE_READ) != 0) {  // before Linux 5.14, or it cannot be read
        bounce.resize(CHUNK + BLOCK);
        result.problem = read_cached(file, bounce.data(), int64_t(std::min(to, end) - from), offset);
    }
    if (result.problem.what == NONE) {
        result.problem = changed(t.file);
    }
    return result;
}

// A file that was rewritten under us would mix two models in one answer.
trouble expert_cache::changed(int file) {
    struct stat now;
    auto & then = files_[file].then;
    if (fstat(files_[file].fd, &now) == 0 &&
        (now.st_size != then.st_size || now.st_mtim.tv_sec != then.st_mtim.tv_sec ||
         now.st_mtim.tv_nsec != then.st_mtim.tv_nsec)) {
        return {CHANGED, files_[file].path + " was changed while it was in use"};
    }
    return {};
}

bool expert_cache::fail(cause what, const std::string & why) {
    std::lock_guard<std::mutex> lock(mutex_);
    return fail_locked(what, why);
}

bool expert_cache::fail_locked(cause what, const std::string & why) {
    if (!failed_) {
        error_ = {what, why};
    }
    failed_ = true;
    if (!*interrupt_) {
        *interrupt_ = 2;  // the abort callback looks there too: the graph must not go on
    }
    return false;
}

}  // namespace localmoe

#endif  // __linux__
