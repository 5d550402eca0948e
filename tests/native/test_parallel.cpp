// SPDX-License-Identifier: Apache-2.0
// The pool: every chunk once, whoever else is calling, whatever is forked, shut down or refused meanwhile.
#include "core/parallel.hpp"

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>

#include "check.hpp"

#if defined(__unix__)
#include <grp.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <dirent.h>
#endif

using namespace gossamer;

namespace {

using Counts = std::unique_ptr<std::atomic<int>[]>;

Counts zeros(std::int64_t n) { return Counts(new std::atomic<int>[static_cast<std::size_t>(n)]()); }

// A job of n chunks that all must run once; true when they did.
bool job_is_right(std::int64_t n) {
  const Counts seen = zeros(n);
  std::atomic<std::int64_t> sum{0};
  parallel_for(n, [&](std::int64_t i) {
    ++seen[static_cast<std::size_t>(i)];
    sum += i;
  });
  bool once = sum == n * (n - 1) / 2;
  for (std::int64_t i = 0; i < n; ++i) once = once && seen[static_cast<std::size_t>(i)] == 1;
  return once;
}

void pause(int microseconds) { std::this_thread::sleep_for(std::chrono::microseconds(microseconds)); }

// Chunks that wait for each other cannot be finished by one thread: true only if `n` threads worked at once.
bool runs_at_once(int n) {
  std::atomic<int> here{0};
  std::atomic<bool> all{false};
  parallel_for(n, [&](std::int64_t) {
    ++here;
    for (int i = 0; i < 20000 && !all; ++i) {
      if (here == n) all = true;
      pause(100);
    }
  });
  return all;
}

int threads_of_process() {
#if defined(__linux__)
  DIR* folder = opendir("/proc/self/task");
  if (folder == nullptr) return -1;
  int count = 0;
  while (const dirent* entry = readdir(folder)) count += entry->d_name[0] != '.';
  closedir(folder);
  return count;
#else
  return -1;
#endif
}

// A joined thread may be listed for a moment longer.
bool threads_become(int n) {
  for (int i = 0; i < 20000 && threads_of_process() != n; ++i) pause(100);
  return threads_of_process() == n;
}

}  // namespace

TEST(every_chunk_runs_once) {
  for (int threads : {1, 2, 3, 8}) {
    set_num_threads(threads);
    CHECK(num_threads() == threads);
    for (std::int64_t n : {0, 1, 2, 3, 7, 8, 9, 100, 5000})
      CHECK(job_is_right(n), "threads=%d n=%d", threads, static_cast<int>(n));
  }
}

TEST(threads_work_at_once) {
  set_num_threads(3);
  CHECK(runs_at_once(3));
}

TEST(scratch_gives_results) {
  for (int threads : {1, 4}) {
    set_num_threads(threads);
    struct Sum {
      std::int64_t value = 0;
    };
    PerWorker<Sum> sums;
    CHECK(sums.workers() == threads);
    parallel_for(1000, sums, [](std::int64_t i, Sum& sum) { sum.value += i * i; });
    std::int64_t total = 0, used = 0;
    sums.for_each([&](Sum& sum) {
      total += sum.value;
      ++used;
    });
    CHECK(total == 332833500);
    CHECK(used >= 1 && used <= threads);
  }
}

TEST(workers_are_unique_while_they_run) {
  set_num_threads(4);
  for (int repeat = 0; repeat < 50; ++repeat) {
    const Counts busy = zeros(4);
    std::atomic<bool> clash{false};
    detail::parallel_for(64, 4, [&](std::int64_t, int worker) {
      if (worker < 0 || worker >= 4 || busy[static_cast<std::size_t>(worker)].exchange(1) != 0) clash = true;
      pause(20);
      if (worker >= 0 && worker < 4) busy[static_cast<std::size_t>(worker)] = 0;
    });
    CHECK(!clash);
  }
}

TEST(a_job_with_fewer_workers_than_threads_stays_inside_them) {
  set_num_threads(4);
  CHECK(runs_at_once(4));  // all threads exist
  for (int repeat = 0; repeat < 200; ++repeat) {
    std::atomic<int> highest{0};
    detail::parallel_for(16, 2, [&](std::int64_t, int worker) {
      int seen = highest;
      while (worker > seen && !highest.compare_exchange_weak(seen, worker)) {
      }
      pause(5);
    });
    CHECK(highest < 2);
  }
}

TEST(nested_calls_run) {
  set_num_threads(3);
  const Counts seen = zeros(20 * 30);
  parallel_for(20, [&](std::int64_t i) {
    parallel_for(30, [&](std::int64_t j) { ++seen[static_cast<std::size_t>(i * 30 + j)]; });
  });
  bool once = true;
  for (std::size_t i = 0; i < 600; ++i) once = once && seen[i] == 1;
  CHECK(once);
}

TEST(an_exception_comes_out_and_the_pool_goes_on) {
  for (int threads : {1, 4}) {
    set_num_threads(threads);
    for (std::int64_t bad : {0, 1, 50, 99}) {
      std::string message;
      try {
        parallel_for(100, [&](std::int64_t i) {
          if (i == bad) throw std::out_of_range("chunk " + std::to_string(i));
        });
      } catch (const std::out_of_range& error) {
        message = error.what();
      }
      CHECK(message == "chunk " + std::to_string(bad));
      CHECK(job_is_right(100));
    }
    int caught = 0;
    for (int repeat = 0; repeat < 100; ++repeat) {
      try {
        parallel_for(64, [](std::int64_t i) { throw static_cast<int>(i); });
      } catch (int chunk) {
        caught += chunk >= 0 && chunk < 64;
      }
    }
    CHECK(caught == 100);
    try {
      parallel_for(8, [](std::int64_t) {
        parallel_for(8, [](std::int64_t j) {
          if (j == 5) throw std::runtime_error("inner");
        });
      });
      CHECK(false, "the inner exception was lost");
    } catch (const std::runtime_error& error) {
      CHECK(std::string(error.what()) == "inner");
    }
    CHECK(job_is_right(100));
  }
}

TEST(a_job_leaves_nothing_behind_on_its_stack) {
  // Short jobs one after the other: a thread that joins late must not touch the job that has ended.
  set_num_threads(3);
  std::int64_t wrong = 0;
  for (int repeat = 0; repeat < 5000; ++repeat) {
    std::atomic<int> count{0};
    const int n = 2 + repeat % 5;
    parallel_for(n, [&](std::int64_t) { count.fetch_add(1, std::memory_order_relaxed); });
    wrong += count != n;
  }
  CHECK(wrong == 0);
}

TEST(sleeping_threads_wake_up) {
  set_num_threads(3);
  for (int repeat = 0; repeat < 30; ++repeat) {
    pause(1000);  // beyond the spin time: the threads block
    CHECK(runs_at_once(3));
  }
}

TEST(the_caller_waits_for_slow_chunks) {
  set_num_threads(2);
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::atomic<int> finished{0};
    parallel_for(2, [&](std::int64_t i) {
      if (i == 1) pause(2000);
      ++finished;
    });
    CHECK(finished == 2);
  }
}

TEST(many_threads_call_at_once) {
  set_num_threads(3);
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 8; ++t)
    callers.emplace_back([&, t] {
      for (int repeat = 0; repeat < 200; ++repeat) wrong += !job_is_right(1 + (t * 31 + repeat) % 40);
    });
  for (auto& caller : callers) caller.join();
  CHECK(wrong == 0);
}

TEST(the_number_of_threads_changes_while_others_run) {
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 3; ++t)
    callers.emplace_back([&] {
      while (!stop) {
        PerWorker<std::atomic<int>> scratch;
        std::atomic<int> count{0};
        parallel_for(20, scratch, [&](std::int64_t, std::atomic<int>& mine) {
          ++mine;
          ++count;
        });
        wrong += count != 20;
      }
    });
  for (int repeat = 0; repeat < 300; ++repeat) {
    set_num_threads(1 + repeat % 5);
    if (repeat % 7 == 0) shutdown_threads();
  }
  stop = true;
  for (auto& caller : callers) caller.join();
  CHECK(wrong == 0);
}

TEST(shutdown_ends_the_threads_and_the_next_job_starts_them) {
  set_num_threads(3);
  shutdown_threads();
  pause(20000);
  const int before = threads_of_process();
  for (int repeat = 0; repeat < 5; ++repeat) {
    CHECK(runs_at_once(3));
    CHECK(before < 0 || threads_become(before + 2));
    shutdown_threads();
    shutdown_threads();
    CHECK(before < 0 || threads_become(before));
    CHECK(num_threads() == 3);
  }
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t)
    callers.emplace_back([] {
      for (int i = 0; i < 50; ++i) shutdown_threads();
    });
  for (auto& caller : callers) caller.join();
  CHECK(job_is_right(100));
}

// ThreadSanitizer's runtime does not support threads in the child of a process that had threads ("dup thread with used
// id"): the other builds run these.
#if defined(__SANITIZE_THREAD__)
#define NO_FORK_TESTS
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NO_FORK_TESTS
#endif
#endif
#if defined(__unix__) && !defined(NO_FORK_TESTS)

namespace {

// Runs f in a forked child; true when it returned true there. A child that hangs is ended after 60 s.
template <class F>
bool in_child(F&& f) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child < 0) return false;
  if (child == 0) {
    alarm(60);
    bool right = false;
    try {
      right = f();
    } catch (...) {
    }
    _exit(right ? 0 : 1);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

TEST(a_forked_child_has_a_pool_of_its_own) {
  set_num_threads(3);
  CHECK(runs_at_once(3));
  for (int repeat = 0; repeat < 5; ++repeat) {
    CHECK(in_child([] { return runs_at_once(3) && job_is_right(1000); }));
    CHECK(runs_at_once(3));  // the parent's is as it was
  }
  CHECK(in_child([] {
    const bool right = runs_at_once(3);
    return right && in_child([] {
             const bool grandchild = runs_at_once(3);
             shutdown_threads();
             return grandchild && job_is_right(100);
           });
  }));
  CHECK(in_child([] {
    set_num_threads(2);
    return num_threads() == 2 && runs_at_once(2);
  }));
  CHECK(in_child([] {
    shutdown_threads();
    return runs_at_once(3);
  }));
  CHECK(num_threads() == 3);
}

TEST(a_fork_while_other_threads_run_jobs) {
  set_num_threads(3);
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 2; ++t)
    callers.emplace_back([&] {
      while (!stop) wrong += !job_is_right(30);
    });
  for (int repeat = 0; repeat < 20; ++repeat) CHECK(in_child([] { return runs_at_once(3); }));
  stop = true;
  for (auto& caller : callers) caller.join();
  CHECK(wrong == 0);
}

TEST(refused_threads_leave_a_working_pool) {
  set_num_threads(4);
  shutdown_threads();
  CHECK(in_child([] {
    const rlimit none{0, 0};
    // Root is above the limit: become somebody else first (this is the child).
    if (geteuid() == 0 && (setgroups(0, nullptr) != 0 || setgid(65534) != 0 || setuid(65534) != 0)) return true;
    if (setrlimit(RLIMIT_NPROC, &none) != 0) return true;
    try {
      std::thread([] {}).join();
      return true;  // the limit does not hold here: nothing to see
    } catch (const std::system_error&) {
    }
    for (int repeat = 0; repeat < 100; ++repeat)
      if (!job_is_right(50)) return false;
    shutdown_threads();
    return job_is_right(50) && num_threads() == 4;
  }));
  CHECK(runs_at_once(4));
}

#endif

RUN_TESTS()
