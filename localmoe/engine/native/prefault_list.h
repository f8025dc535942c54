#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <mutex>
#include <vector>

#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; on an older system it fails, and nothing is gained
#endif

namespace localmoe {

// Fresh memory that thread 0 is about to read into, from the first byte on. The system zeroes it when it is
// first touched, which takes longer than starting the read; so threads that wait for thread 0 touch it
// meanwhile, from the last byte on. Touching what is being read does no harm; what is in the list must stay
// where it is until they have passed the gate.
class prefault_list {
  public:
    void add(char * at, size_t bytes) {
        std::lock_guard<std::mutex> lock(mutex_);
        open_.push_back({at, bytes});
        any_ = true;
    }

    void clear() {
        std::lock_guard<std::mutex> lock(mutex_);
        open_.clear();
        any_ = false;
    }

    bool any() const { return any_.load(std::memory_order_acquire); }

    // Touches the last part that nobody has touched.
    void touch() {
        extent last;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            if (open_.empty()) {
                return;
            }
            extent & from = open_.back();
            last.bytes = std::min(from.bytes, PART);
            last.at    = from.at + (from.bytes -= last.bytes);
            if (from.bytes == 0) {
                open_.pop_back();
                any_ = !open_.empty();
            }
        }
        madvise(last.at, last.bytes, MADV_POPULATE_WRITE);
    }

  private:
    static constexpr size_t PART = 256 << 10;  // whole pages
    struct extent {
        char * at;
        size_t bytes;
    };
    std::vector<extent> open_;
    std::mutex          mutex_;
    std::atomic<bool>   any_{false};
};

}  // namespace localmoe
