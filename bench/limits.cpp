// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most: multiply-adds per second, and bytes read and written per second by working set.
//
//   limits THREADS BYTES...
//
// prints one JSON object: GFLOP/s by type, and [bytes, GB/s] pairs for reading and writing (10^9 throughout). Every
// figure is the best of several runs in which all threads start together. Compiled and run by limits.py.
#include <atomic>
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

constexpr int repetitions = 25;  // short ones: other programs will hardly meet every single one
constexpr int chains =
    12;  // independent multiply-adds in flight: at least latency x units (4 x 2), at most the registers

typedef float Floats __attribute__((vector_size(vector_bytes)));
typedef double Doubles __attribute__((vector_size(vector_bytes)));

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Results go here, so that no loop is dropped.
volatile double sink;

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait() {
    const int round = round_.load();
    if (arrived_.fetch_add(1) + 1 == threads_) {
      arrived_.store(0);
      round_.fetch_add(1);
    } else {
      while (round_.load() == round) std::this_thread::yield();
    }
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0}, round_{0};
};

// Seconds from the first thread's start to the last one's end: the best of several runs of f(thread).
template <class F>
double best_time(int threads, F f) {
  Barrier barrier(threads);
  std::vector<double> begin(threads), end(threads);
  double best = std::numeric_limits<double>::infinity();
  const auto work = [&](int thread) {
    for (int i = 0; i < repetitions; ++i) {
      barrier.wait();
      begin[thread] = now();
      f(thread);
      end[thread] = now();
      barrier.wait();
      if (thread == 0) {
        const double first = *std::min_element(begin.begin(), begin.end());
        best = std::min(best, *std::max_element(end.begin(), end.end()) - first);
      }
      barrier.wait();
    }
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
  return best;
}

template <class Vector, class T>
double multiply_add_rate(int threads) {
  constexpr long steps = 400000;  // about a millisecond
  const double seconds = best_time(threads, [](int thread) {
    Vector sums[chains];
    for (int i = 0; i < chains; ++i) sums[i] = Vector{} + static_cast<T>(0.001 * (i + thread));
    const Vector x = Vector{} + static_cast<T>(0.999), y = Vector{} + static_cast<T>(0.001);
    for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 12
      for (int i = 0; i < chains; ++i) sums[i] = sums[i] * x + y;
    }
    for (int i = 1; i < chains; ++i) sums[0] += sums[i];
    sink = static_cast<double>(sums[0][0]);
  });
  return 2.0 * threads * steps * chains * (vector_bytes / sizeof(T)) / seconds / 1e9;
}

void read(const char* data, std::size_t bytes) {
  const Floats* from = reinterpret_cast<const Floats*>(data);
  Floats sums[8] = {};
  for (std::size_t i = 0; i + 8 <= bytes / sizeof(Floats); i += 8) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sums[j] += from[i + j];
  }
  for (int j = 1; j < 8; ++j) sums[0] += sums[j];
  sink = static_cast<double>(sums[0][0]);
}

// GB/s over a working set that all threads share out; it is walked through again and again, as long as it is small.
template <class F>
double bandwidth(int threads, char* data, std::size_t bytes, F f) {
  const std::size_t part = bytes / threads / 4096 * 4096;
  const std::size_t rounds = std::max<std::size_t>(1, (std::size_t{16} << 20) / bytes);
  const double seconds = best_time(threads, [&](int thread) {
    for (std::size_t i = 0; i < rounds; ++i) f(data + part * thread, part);
  });
  return static_cast<double>(part) * threads * rounds / seconds / 1e9;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  if (threads < 1 || argc < 3) {
    std::fprintf(stderr, "usage: limits THREADS BYTES...\n");
    return 2;
  }
  std::vector<std::size_t> sizes;
  for (int i = 2; i < argc; ++i) sizes.push_back(std::strtoull(argv[i], nullptr, 10));
  const std::size_t most = *std::max_element(sizes.begin(), sizes.end());
  char* data = static_cast<char*>(std::aligned_alloc(4096, (most + 4095) / 4096 * 4096));
  if (data == nullptr) return 1;
  std::memset(data, 0, most);

  std::printf("{\"threads\": %d, \"vector_bytes\": %d, ", threads, vector_bytes);
  std::printf("\"float32\": %.2f, ", multiply_add_rate<Floats, float>(threads));
  std::printf("\"float64\": %.2f, ", multiply_add_rate<Doubles, double>(threads));
  std::string reads, writes;
  for (const std::size_t bytes : sizes) {
    char entry[64];
    const char* comma = reads.empty() ? "" : ", ";
    std::snprintf(entry, sizeof entry, "%s[%zu, %.3f]", comma, bytes, bandwidth(threads, data, bytes, read));
    reads += entry;
    const auto write = [](char* to, std::size_t n) {
      std::memset(to, 0, n);
      asm volatile("" : : "r"(to) : "memory");
    };
    std::snprintf(entry, sizeof entry, "%s[%zu, %.3f]", comma, bytes, bandwidth(threads, data, bytes, write));
    writes += entry;
  }
  std::printf("\"read\": [%s], \"write\": [%s]}\n", reads.c_str(), writes.c_str());
  std::free(data);
  return 0;
}
