#pragma once

#include <cstdint>
#include <cstring>
#include <ctime>
#include <linux/aio_abi.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace localmoe {

// Direct reads that thread 0 starts itself, so that no thread has to wait for them (io_submit(2)):
// handing a small read to a sleeping reader and back takes about as long as reading it.
template <typename What> class direct_queue {
  public:
    direct_queue() { working_ = syscall(SYS_io_setup, DEPTH, &context_) == 0; }

    ~direct_queue() {
        if (working_) {
            syscall(SYS_io_destroy, context_);  // returns when nothing is under way
        }
    }

    // The system makes whoever starts a read wait when its own queue is full: not for long.
    bool room() const { return working_ && under_way_ < DEPTH && bytes_ < MOST; }
    int  under_way() const { return under_way_; }

    bool start(int fd, void * target, size_t length, int64_t offset, const What & what) {
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
        s.what = what;
        under_way_++;
        bytes_ += length;
        return true;
    }

    // Calls done(what, bytes or -errno) for each read that has ended; `patience` nanoseconds are
    // waited for the first.
    template <typename F> void reap(long patience, F done) {
        io_event events[DEPTH];
        timespec timeout = {0, patience};
        long n = under_way_ ? syscall(SYS_io_getevents, context_, patience ? 1 : 0, DEPTH, events, &timeout) : 0;
        for (long i = 0; i < n; i++) {
            slot & s = slots_[events[i].data];
            s.used = false;
            under_way_--;
            bytes_ -= s.block.aio_nbytes;
            done(s.what, int64_t(events[i].res));
        }
    }

  private:
    static constexpr int      DEPTH = 256;
    static constexpr uint64_t MOST  = 128 << 20;  // bytes under way
    struct slot {
        iocb  block;
        What  what;
        bool  used = false;
    };
    aio_context_t context_ = 0;
    bool          working_ = false;
    int           under_way_ = 0;
    uint64_t      bytes_ = 0;
    slot          slots_[DEPTH];
};

}  // namespace localmoe
