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

bool expert_cache::add_file(const char * path) {
    part file;
    file.path = path;
    file.fd   = open(path, O_RDONLY | O_CLOEXEC);
    if (file.fd < 0 || fstat(file.fd, &file.then) != 0) {
        return fail(std::string("cannot open ") + path + ": " + strerror(errno));
    }
    posix_fadvise(file.fd, 0, 0, POSIX_FADV_RANDOM);  // what is needed is said, nothing around it
    file.direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    if (file.direct < 0) {  // some file systems have no direct reads
        file.direct = dup(file.fd);
        no_direct_  = true;
    }
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
    int64_t offset = t.offset + int64_t(t.bytes) * e, from = int64_t(down(size_t(offset), PAGE));
    size_t  length = up(size_t(offset - from) + t.bytes, PAGE);
    if (!queue_.start(files_[t.file].direct, data_of(g, t, e) - (offset - from), length, from, {&g, e, tensor, 0, 1})) {
        return false;
    }
    auto & p = g.experts[e].pieces[tensor];
    p.state = READING;
    p.next  = UINT16_MAX;  // an entry left in a queue must not read a part of it too
    p.left  = 1;
    p.bad   = false;
    return true;
}

// Takes in what asynchronous reads have brought so far.
void expert_cache::reap(long patience) {
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

void expert_cache::ask(std::deque<piece> & queue, group & g, int e, int t) {
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
    x.resident = x.foretold = true;
    stats_.prefetched++;
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
    bool   keep = from != THROUGH_CACHE || direct_is_slow();
    bool   direct = from == DIRECT || from == DIRECT_TIMED;
    bool   fair = how_ == PRIVATE && from != PAGE_CACHE && !queue_.under_way();
    lock.unlock();
    size_t bytes = 0;
    auto   start = steady::now();
    std::string problem = how_ == PAGES    ? read_pages(p, bytes)
                          : direct         ? read_direct(p, bounce, bytes)
                                           : read_copied(p, keep, bytes);
    double took = seconds_since(start);
    lock.lock();
    stats_.bytes_read += from == PAGE_CACHE ? 0 : bytes;
    if (fair && !queue_.under_way() && bytes >= CHUNK / 4) {  // large reads among their like, so that the ways compare
        auto & way = direct ? direct_reads_ : cache_reads_;
        way.bytes += bytes;
        way.seconds += took;
    }
    if (how_ == PAGES && bytes && x.counted) {
        miss(g, x);
    }
    ended(p, problem);
}

void expert_cache::ended(const piece & p, const std::string & problem) {
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

// Reads `length` bytes, or as many of them as are needed if the file ends before. A read that came
// short goes on at a whole block.
std::string expert_cache::read_range(const part & file, int fd, char * target, int64_t length, int64_t need,
                                     int64_t offset, size_t block) {
    for (int64_t done = 0; done < need;) {
        ssize_t n = pread(fd, target + done, size_t(length - done), offset + done);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return "cannot read " + file.path + ": " + strerror(errno);
        }
        if (n == 0) {
            return file.path + " has become shorter while it was in use";
        }
        done += n;
        if (done < need) {
            done = int64_t(down(size_t(done), block));
        }
    }
    return "";
}

// Reads whole pages of the file to the same place within pages of memory.
std::string expert_cache::read_direct(const piece & p, std::vector<char> & bounce, size_t & bytes) {
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
    const part & file = files_[t.file];
    std::string problem = read_range(file, file.direct, target, to - from, need, from, PAGE);
    if (!problem.empty()) {
        return problem;
    }
    if (!p.g->direct) {
        int64_t first = std::max(from, offset);
        memcpy(data + (first - offset), target + (first - from), size_t(from + need - first));
    }
    bytes = size_t(need);
    return changed(t.file);
}

// Through the page cache, which may have it already; and need not keep it.
std::string expert_cache::read_copied(const piece & p, bool keep, size_t & bytes) {
    const tensor_info & t = p.g->tensors[p.tensor];
    const part & file = files_[t.file];
    size_t begin = CHUNK * size_t(p.chunk), end = std::min(begin + CHUNK, t.bytes);
    if (begin >= end) {
        return "";
    }
    int64_t size = int64_t(end - begin), offset = t.offset + int64_t(t.bytes) * p.expert + int64_t(begin);
    std::string problem = read_range(file, file.fd, data_of(*p.g, t, p.expert) + begin, size, size, offset, 1);
    if (!problem.empty()) {
        return problem;
    }
    bytes = end - begin;
    if (!keep) {
        posix_fadvise(file.fd, offset, size, POSIX_FADV_DONTNEED);
    }
    return changed(t.file);
}

std::string expert_cache::read_pages(const piece & p, size_t & bytes) {
    const tensor_info & t = p.g->tensors[p.tensor];
    char * data = static_cast<char *>(t.mapped) + t.bytes * size_t(p.expert);
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
std::string expert_cache::changed(int file) {
    struct stat now;
    auto & then = files_[file].then;
    if (fstat(files_[file].fd, &now) == 0 &&
        (now.st_size != then.st_size || now.st_mtim.tv_sec != then.st_mtim.tv_sec ||
         now.st_mtim.tv_nsec != then.st_mtim.tv_nsec)) {
        return files_[file].path + " was changed while it was in use";
    }
    return "";
}

bool expert_cache::fail(const std::string & why) {
    std::lock_guard<std::mutex> lock(mutex_);
    return fail_locked(why);
}

bool expert_cache::fail_locked(const std::string & why) {
    if (!failed_) {
        error_ = why;
    }
    failed_ = true;
    if (!*interrupt_) {
        *interrupt_ = 2;  // the abort callback looks there too: the graph must not go on
    }
    return false;
}

}  // namespace localmoe

#endif  // __linux__
