// SPDX-License-Identifier: Apache-2.0
// A fork-join pool. Chunks are claimed dynamically and do not depend on the number of threads, so neither do results.
// The caller works too. A call that finds the pool busy (another thread, or a nested call) runs in its own thread.
// After fork() the child starts a fresh pool on its first call.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

namespace gossamer {

int num_threads();
void set_num_threads(int n);  // n >= 1
void shutdown_threads();

// A host's own pool in place of this one: f(context, count, task, argument) calls task(argument, i) for i = 0 ..
// count-1 on any threads and returns when all have returned. nullptr: this pool again. Not while a job runs.
using HostTask = void (*)(void* argument, std::int32_t index);
using HostParallelFor = void (*)(void* context, std::int32_t count, HostTask task, void* argument);
void set_host_parallel_for(HostParallelFor f, void* context);

// fn(context, chunk, worker) for chunk = 0 .. n-1; worker is in [0, workers) and unique while it runs.
// fn must not throw.
void run_chunks(std::int64_t n, int workers, void (*fn)(void*, std::int64_t, int), void* context);

namespace detail {

// f(chunk, worker). An exception ends the loop early and is thrown again here.
template <class F>
void parallel_for(std::int64_t n, int workers, F&& f) {
  struct Job {
    F& f;
    std::atomic<bool> failed{false};
    std::exception_ptr error;
  } job{f, {}, {}};
  run_chunks(
      n, workers,
      [](void* context, std::int64_t chunk, int worker) {
        Job& j = *static_cast<Job*>(context);
        if (j.failed.load(std::memory_order_relaxed)) return;
        try {
          j.f(chunk, worker);
        } catch (...) {
          if (!j.failed.exchange(true)) j.error = std::current_exception();
        }
      },
      &job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace detail

// One lazily made T per worker of the parallel_for that it is given to. Arrays in it are not filled with zeros: for a
// small tensor that would take longer than the work.
template <class T>
class PerWorker {
 public:
  PerWorker() : slots_(static_cast<std::size_t>(num_threads())) {}
  int workers() const { return static_cast<int>(slots_.size()); }
  T& operator[](int worker) {
    auto& slot = slots_[static_cast<std::size_t>(worker)].value;
    if (!slot) slot = std::make_unique_for_overwrite<T>();
    return *slot;
  }
  template <class F>
  void for_each(F&& f) {
    for (auto& slot : slots_)
      if (slot.value) f(*slot.value);
  }

 private:
  struct alignas(64) Slot {
    std::unique_ptr<T> value;
  };
  std::vector<Slot> slots_;
};

// f(chunk), for chunks that need no scratch.
template <class F>
void parallel_for(std::int64_t n, F&& f) {
  detail::parallel_for(n, num_threads(), [&](std::int64_t chunk, int) { f(chunk); });
}

// f(chunk, T&), where T is the scratch of the thread that runs the chunk.
template <class T, class F>
void parallel_for(std::int64_t n, PerWorker<T>& scratch, F&& f) {
  detail::parallel_for(n, scratch.workers(), [&](std::int64_t chunk, int worker) { f(chunk, scratch[worker]); });
}

}  // namespace gossamer
