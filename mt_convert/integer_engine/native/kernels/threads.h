// Threads of this library, which share out parts of a job: whoever is awake takes the next part, so
// that a thread without a processor of its own holds nobody up. Waiting spins briefly, then sleeps.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <system_error>
#include <thread>

#if defined(__linux__)
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace {

constexpr int spins = 2000;  // about 100 microseconds
constexpr std::chrono::milliseconds too_long{1};  // to wait for the last part of an image
constexpr int most_rest = 512;

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

using Word = std::atomic<uint32_t>;

// Sleeps while a word is as expected, or for a moment.
inline void sleep_while([[maybe_unused]] Word& word, [[maybe_unused]] uint32_t expected) {
#if defined(__linux__)
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
#else
    std::this_thread::yield();
#endif
}

inline void wake_all([[maybe_unused]] Word& word) {
#if defined(__linux__)
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

// One job at a time, in parts 0 ... n - 1. A ticket has the job's number, n and the next part; it is
// taken by comparing and exchanging, so that a part is done once, and what a job needs is read by
// nobody but who holds one of its parts.
class Pool {
  public:
    static constexpr int most_parts = 0xffff;

    // The pool of this process: a child of a fork begins with one of its own, without threads.
    static Pool& shared() {
        static const bool registered = [] {
#if defined(__linux__)
            pthread_atfork(nullptr, nullptr, [] { instance() = new Pool; });
#endif
            return true;
        }();
        (void)registered;
        return *instance();
    }

    // Whether the pool is the caller's now, for ``threads`` of which it is one; `give_back` ends it.
    // ``in_turns``: each part of a job waits for all of the one before. On a machine so busy that a
    // thread lost its processor meanwhile such jobs are refused for a while, and longer each time.
    bool take(int threads, bool in_turns) {
        if (taken_.exchange(true, std::memory_order_acquire)) return false;
        if (in_turns && rest_ > 0) {
            --rest_;
            give_back();
            return false;
        }
        late_ = false;
        try {
            for (; started_ + 1 < threads; ++started_)
                std::thread([this, number = started_ + 1] { serve(number); }).detach();
        } catch (const std::system_error&) {  // no more threads: fewer will do
        }
        threads_.store(threads, std::memory_order_relaxed);
        return true;
    }

    void give_back(bool in_turns = false) {
        if (in_turns) {
            rest_ = late_ ? last_rest_ = std::min(most_rest, 2 * last_rest_ + 8) : 0;
            if (!late_) last_rest_ /= 2;
        }
        taken_.store(false, std::memory_order_release);
    }

    // Does ``part(i, thread)`` for all i below n, 1 ... most_parts, and returns when all are done.
    template <class Part>
    void run(int n, const Part& part) {
        part_ = [](const void* what, int i, int thread) { (*(const Part*)what)(i, thread); };
        what_ = &part;
        done_.store(0, std::memory_order_relaxed);
        const uint64_t number = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
        ticket_.store(number << 32 | uint64_t(n) << 16, std::memory_order_release);
        if (n > 1) {
            published_.fetch_add(1);
            if (asleep_.load() > 0) wake_all(published_);
        }
        while (take_part(0)) {}
        for (int spin = 0;; ++spin) {
            const uint32_t done = done_.load(std::memory_order_acquire);
            if (done == uint32_t(n)) return;
            if (spin < spins) {
                pause_briefly();
                continue;
            }
            const auto begun = std::chrono::steady_clock::now();
            waits_.store(true);
            if (done_.load() == done) sleep_while(done_, done);
            waits_.store(false);
            late_ |= std::chrono::steady_clock::now() - begun > too_long;
        }
    }

  private:
    static Pool*& instance() {
        static Pool* pool = new Pool;  // never ends: its threads may outlive what ends at exit
        return pool;
    }

    // Takes the next part, if there is one.
    bool take_part(int thread) {
        uint64_t ticket = ticket_.load(std::memory_order_acquire);
        do {
            if ((ticket & 0xffff) >= (ticket >> 16 & 0xffff)) return false;
            if (thread >= threads_.load(std::memory_order_relaxed)) return false;
        } while (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                                std::memory_order_acquire));
        part_(what_, int(ticket & 0xffff), thread);
        done_.fetch_add(1);
        if (waits_.load()) wake_all(done_);
        return true;
    }

    void serve(int thread) {
        for (int spin = 0;;) {
            const uint32_t published = published_.load();
            if (take_part(thread)) {
                spin = 0;
            } else if (++spin < spins) {
                pause_briefly();
            } else {
                asleep_.fetch_add(1);
                sleep_while(published_, published);
                asleep_.fetch_sub(1);
                spin = 0;
            }
        }
    }

    std::atomic<uint64_t> ticket_{0};
    Word done_{0}, published_{0};
    std::atomic<int> asleep_{0}, threads_{0};
    std::atomic<bool> taken_{false}, waits_{false};
    int started_ = 0, rest_ = 0, last_rest_ = 0;
    bool late_ = false;
    void (*part_)(const void*, int, int) = nullptr;
    const void* what_ = nullptr;
};

}  // namespace
