// SPDX-License-Identifier: Apache-2.0
#include "core/parallel.hpp"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "core/cpu.hpp"
#include "core/float_guard.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace gossamer {
namespace {

void relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spinning this long costs less than a wake-up (about 50 us in a virtual machine) and then stops costing anything.
constexpr std::chrono::microseconds spin_time{50};

template <class Ready>
bool spin_until(Ready&& ready) {
  const auto end = std::chrono::steady_clock::now() + spin_time;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// The processor that this thread runs on, or -1 where that is not known.
int current_processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Keeps a thread off a processor, if others are left, until its affinity mask is as it was again.
//
// On few processors the scheduler likes to put a worker on its caller's, where it waits for the caller's time slice to
// end or shares it, above all while another library's thread spins on the other one (OpenBLAS's 100 ms, Intel's
// OpenMP's 200 ms after a call), though that yields to whoever comes. 4096x4096 at 95 % right after numpy: 0.28 ms,
// 0.55 without.
class Elsewhere {
 public:
  void keep_from(std::thread::native_handle_type thread, int processor) {
#if defined(__linux__)
    if (kept_ || processor < 0 || processor >= CPU_SETSIZE ||
        pthread_getaffinity_np(thread, sizeof allowed_, &allowed_) != 0 || CPU_COUNT(&allowed_) < 2)
      return;
    cpu_set_t others = allowed_;
    CPU_CLR(static_cast<unsigned>(processor), &others);
    kept_ = pthread_setaffinity_np(thread, sizeof others, &others) == 0;
#else
    (void)thread, (void)processor;
#endif
  }
  // By the thread itself.
  void release() {
#if defined(__linux__)
    if (kept_) pthread_setaffinity_np(pthread_self(), sizeof allowed_, &allowed_);
    kept_ = false;
#endif
  }

 private:
#if defined(__linux__)
  cpu_set_t allowed_;
  bool kept_ = false;
#endif
};

// A worker that has got onto its caller's processor goes.
void leave_processor(int processor) {
#if defined(__linux__)
  if (processor < 0 || sched_getcpu() != processor) return;
  Elsewhere elsewhere;
  elsewhere.keep_from(pthread_self(), processor);
  elsewhere.release();
#else
  (void)processor;
#endif
}

// Asks for short time slices: since Linux 6.12 a thread that wakes up then need not wait for the slice of one that
// spins (3 ms). Its share of a processor stays the same. Older kernels take no notice.
void take_short_slices() {
#if defined(__linux__) && defined(SYS_sched_getattr) && defined(SYS_sched_setattr)
  struct {  // struct sched_attr, its first version
    std::uint32_t size, policy;
    std::uint64_t flags;
    std::int32_t nice;
    std::uint32_t priority;
    std::uint64_t runtime, deadline, period;
  } attributes = {};
  static_assert(sizeof attributes == 48);
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0 || attributes.policy != SCHED_OTHER) return;
  attributes.runtime = 100'000;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
#endif
}

class Pool {
 public:
  bool try_acquire() { return !busy_.exchange(true, std::memory_order_acquire); }
  void release() { busy_.store(false, std::memory_order_release); }

  // The following only by the thread that acquired the pool.
  void stop_threads() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
    threads_.clear();
    stop_ = refused_ = false;
  }

  void run(std::int64_t n, int workers, void (*fn)(void*, std::int64_t, int), void* context) {
    start_threads(workers - 1);
    workers_.store(workers, std::memory_order_relaxed);
    fn_ = fn;
    context_ = context;
    used_ranges_ = std::min(workers, max_ranges);
    for (int r = 0; r < used_ranges_; ++r) {
      ranges_[r].end = n * (r + 1) / used_ranges_;
      ranges_[r].next.store(n * r / used_ranges_, std::memory_order_relaxed);
    }
    const std::uint64_t generation = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(generation << 32 | open_bit, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (threads_.size() <= few_threads)
        for (std::size_t i = 0; i < threads_.size(); ++i)
          if (asleep_[i]) elsewhere_[i].keep_from(threads_[i].native_handle(), current_processor());
      wake_.notify_all();
    }
    work(0);
    // Closing the job first means that only threads which really joined are waited for: one that is still waking
    // up, or that another library's spinning threads hold off the processor, finds the job closed and goes back.
    state_.fetch_and(~open_bit, std::memory_order_acq_rel);
    const auto idle = [this] { return (state_.load(std::memory_order_acquire) & active_mask) == 0; };
    if (!spin_until(idle)) {
      std::unique_lock<std::mutex> lock(mutex_);
      done_.wait(lock, idle);
    }
  }

 private:
  // state_: generation (32 bits) | open (1 bit) | threads that joined and have not left (31 bits)
  static constexpr std::uint64_t open_bit = std::uint64_t{1} << 31;
  static constexpr std::uint64_t active_mask = open_bit - 1;

  void start_threads(int count) {
    while (static_cast<int>(threads_.size()) < count && !refused_) {
      try {
        threads_.emplace_back([this, worker = static_cast<int>(threads_.size()) + 1] { loop(worker); });
      } catch (const std::system_error&) {
        refused_ = true;  // a process limit: go on with those that there are
      } catch (const std::bad_alloc&) {
        refused_ = true;
      }
    }
  }

  // A worker goes through a range of its own, so that it walks through memory in one direction, and then helps with
  // what the others have left.
  void work(int worker) {
    for (int r = 0; r < used_ranges_; ++r) {
      Range& range = ranges_[(worker + r) % used_ranges_];
      for (std::int64_t i; (i = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;) {
        if (worker == 0)
          caller_processor_.store(current_processor(), std::memory_order_relaxed);
        else
          leave_processor(caller_processor_.load(std::memory_order_relaxed));
        fn_(context_, i, worker);
      }
    }
  }

  void loop(int worker) {
    const FloatGuard guard;
    take_short_slices();
    std::uint64_t seen = 0;
    const auto offered = [&] {
      const std::uint64_t state = state_.load(std::memory_order_seq_cst);
      return (state & open_bit) != 0 && state >> 32 != seen && worker < workers_.load(std::memory_order_relaxed);
    };
    for (;;) {
      if (!spin_until(offered)) {
        const std::size_t self = static_cast<std::size_t>(worker) - 1;
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        if (self < few_threads) asleep_[self] = true;
        wake_.wait(lock, [&] { return stop_ || offered(); });
        if (self < few_threads) {
          asleep_[self] = false;
          elsewhere_[self].release();
        }
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
        if (stop_) return;
      }
      std::uint64_t state = state_.load(std::memory_order_acquire);
      if ((state & open_bit) == 0 || state >> 32 == seen) continue;
      if (worker >= workers_.load(std::memory_order_relaxed)) continue;
      // Succeeds only if the job is still the one whose worker limit was just read.
      if (!state_.compare_exchange_strong(state, state + 1, std::memory_order_acq_rel)) continue;
      seen = state >> 32;
      work(worker);
      const std::uint64_t left = state_.fetch_sub(1, std::memory_order_acq_rel) - 1;
      if ((left & (active_mask | open_bit)) == 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        done_.notify_one();
      }
    }
  }

  static constexpr std::size_t few_threads = 4;
  std::vector<std::thread> threads_;
  bool asleep_[few_threads] = {};  // these two under the mutex
  Elsewhere elsewhere_[few_threads];
  bool refused_ = false;
  std::atomic<bool> busy_{false};

  void (*fn_)(void*, std::int64_t, int) = nullptr;
  void* context_ = nullptr;
  static constexpr int max_ranges = 64;
  struct alignas(64) Range {
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };
  Range ranges_[max_ranges];
  int used_ranges_ = 0;
  std::atomic<int> caller_processor_{-1};
  std::atomic<int> workers_{0};  // workers with a higher number stay out of the job
  alignas(64) std::atomic<std::uint64_t> state_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  bool stop_ = false;
};

// Made once and never destroyed: another thread may be about to look at it, and blocked threads die with the process.
std::atomic<Pool*> current{nullptr};
std::atomic<int> wanted{0};

int positive_environment(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) return 0;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);  // OMP_NUM_THREADS may be a list, "4,2": the first level counts
  const bool number = end != text && (*end == '\0' || *end == ',');
  return number && value >= 1 && value <= 1 << 16 ? static_cast<int>(value) : 0;
}

int default_threads() {
  for (const char* name : {"GOSSAMER_NUM_THREADS", "OMP_NUM_THREADS"})
    if (const int n = positive_environment(name)) return n;
  return usable_processors();
}

Pool* acquire_pool() {
  Pool* pool = current.load(std::memory_order_acquire);
  if (pool == nullptr) {
#if defined(__unix__) || defined(__APPLE__)
    // The child has no threads of ours and may have inherited a locked mutex: it forgets the pool (a small leak).
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); }); });
#endif
    Pool* fresh = new (std::nothrow) Pool;
    if (fresh == nullptr) return nullptr;
    if (current.compare_exchange_strong(pool, fresh)) {
      pool = fresh;
    } else {
      delete fresh;
    }
  }
  return pool->try_acquire() ? pool : nullptr;
}

}  // namespace

namespace {

// Stops the threads; the next job starts as many as it wants.
void reset_pool() {
  Pool* pool = current.load(std::memory_order_acquire);
  if (pool == nullptr) return;
  while (!pool->try_acquire()) std::this_thread::yield();
  pool->stop_threads();
  pool->release();
}

}  // namespace

int num_threads() {
  int n = wanted.load(std::memory_order_relaxed);
  if (n == 0) {
    n = default_threads();
    int unset = 0;
    if (!wanted.compare_exchange_strong(unset, n)) n = unset;
  }
  return n;
}

void set_num_threads(int n) {
  wanted.store(n);
  reset_pool();
}

void shutdown_threads() { reset_pool(); }

namespace {

struct Host {
  HostParallelFor f;
  void* context;
};
std::atomic<const Host*> host{nullptr};

// The host's indices are not trusted to be different: whoever comes is the next worker, and takes chunks until there
// are none. What a host leaves out is done here in the end.
void run_on_host(const Host& pool, std::int64_t n, int workers, void (*fn)(void*, std::int64_t, int), void* context) {
  struct Job {
    std::int64_t n;
    int workers;
    void (*fn)(void*, std::int64_t, int);
    void* context;
    std::atomic<std::int64_t> next{0};
    std::atomic<int> worker{0};

    void work(int self) {
      for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) fn(context, i, self);
    }
  } job{n, workers, fn, context, {}, {}};
  const HostTask task = [](void* argument, std::int32_t) {
    Job& j = *static_cast<Job*>(argument);
    const int self = j.worker.fetch_add(1, std::memory_order_relaxed);
    if (self >= j.workers) return;
    const FloatGuard guard;
    j.work(self);
  };
  pool.f(pool.context, workers, task, &job);
  job.work(0);
}

}  // namespace

void set_host_parallel_for(HostParallelFor f, void* context) {
  const Host* fresh = f == nullptr ? nullptr : new Host{f, context};
  delete host.exchange(fresh, std::memory_order_acq_rel);
  if (fresh != nullptr) shutdown_threads();
}

void run_chunks(std::int64_t n, int workers, void (*fn)(void*, std::int64_t, int), void* context) {
  const Host* other = host.load(std::memory_order_acquire);
  if (other != nullptr && n > 1 && workers > 1)
    return run_on_host(*other, n, static_cast<int>(std::min<std::int64_t>(workers, n)), fn, context);
  Pool* pool = n > 1 && workers > 1 ? acquire_pool() : nullptr;
  if (pool == nullptr) {
    for (std::int64_t i = 0; i < n; ++i) fn(context, i, 0);
    return;
  }
  pool->run(n, static_cast<int>(std::min<std::int64_t>(workers, n)), fn, context);
  pool->release();
}

}  // namespace gossamer
