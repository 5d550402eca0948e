// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most: multiply-adds per second, and bytes read and written per second by working set.
//
//   limits THREADS BYTES...
//
// prints one JSON object: GFLOP/s by type, and [bytes, GB/s] pairs for reading and writing (10^9 throughout). Every
// figure is the best of several runs in which all threads start together. Compiled and run by limits.py, which also
// makes a shared library of it: limits_read() and limits_copy() stream once over a caller's arrays.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

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
typedef std::uint64_t Words __attribute__((vector_size(vector_bytes)));

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

// The exclusive or of all 64-bit words: takes no longer for denormals or NaN than for others, and says that every word
// was read. `data` is aligned to a vector; a last incomplete word counts with zeros behind it.
std::uint64_t read(const char* data, std::size_t bytes) {
  // Four streams are up to 6 % faster than one (88 and 107 GB/s, two threads of a Zen 5); prefetching adds nothing.
  constexpr int streams = 4, vectors = 4;
  constexpr std::size_t step = vectors * vector_bytes;
  const std::size_t part = bytes / (streams * step) * step;
  Words sums[vectors] = {};
  for (std::size_t i = 0; i < part; i += step) {
#pragma GCC unroll 4
    for (int stream = 0; stream < streams; ++stream) {
      const Words* from = reinterpret_cast<const Words*>(data + stream * part + i);
#pragma GCC unroll 4
      for (int j = 0; j < vectors; ++j) sums[j] ^= from[j];
    }
  }
  std::uint64_t result = 0;
  for (int j = 0; j < vectors; ++j)
    for (std::size_t i = 0; i < vector_bytes / sizeof(std::uint64_t); ++i) result ^= sums[j][i];
  for (std::size_t i = streams * part; i < bytes; i += sizeof(std::uint64_t)) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + i, std::min(sizeof word, bytes - i));
    result ^= word;
  }
  return result;
}

void copy(const char* from, char* to, std::size_t bytes) {
#if defined(__x86_64__)
  // Past the caches, so that the target is not read first: 180 MB take 3.4 ms with two threads of a Zen 5, where plain
  // stores and memcpy take 8.3.
  std::size_t i = 0;
  for (; i < bytes && reinterpret_cast<std::uintptr_t>(to + i) % vector_bytes != 0; ++i) to[i] = from[i];
  for (; i + vector_bytes <= bytes; i += vector_bytes) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
#elif defined(__AVX__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
#else
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
#endif
  }
  std::memcpy(to + i, from + i, bytes - i);
  _mm_sfence();
#else
  std::memcpy(to, from, bytes);
#endif
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

// f(offset, bytes) for every piece of [0, bytes) once; the threads take turns, so that a slow one does not decide.
// Seconds from the first thread's start to the last one's end: starting the threads does not count.
template <class F>
double one_pass(int threads, std::size_t bytes, F f) {
  constexpr std::size_t piece = std::size_t{1} << 19;
  std::atomic<std::size_t> next{0};
  std::vector<double> begin(threads), end(threads);
  Barrier barrier(threads);
  const auto work = [&](int thread) {
    barrier.wait();
    begin[thread] = now();
    for (std::size_t at; (at = next.fetch_add(piece)) < bytes;) f(at, std::min(piece, bytes - at));
    end[thread] = now();
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
  return *std::max_element(end.begin(), end.end()) - *std::min_element(begin.begin(), begin.end());
}

}  // namespace

extern "C" {

// Reads all bytes once with so many threads. `data` is aligned to 8 bytes. Returns seconds; `checksum` becomes the
// exclusive or of the 64-bit words.
double limits_read(int threads, const char* data, std::size_t bytes, std::uint64_t* checksum) {
  std::uint64_t head = 0;
  for (; bytes >= sizeof head && reinterpret_cast<std::uintptr_t>(data) % vector_bytes != 0;
       data += sizeof head, bytes -= sizeof head) {
    std::uint64_t word;
    std::memcpy(&word, data, sizeof word);
    head ^= word;
  }
  std::atomic<std::uint64_t> sum{head};
  const double seconds = one_pass(threads, bytes, [&](std::size_t at, std::size_t n) { sum ^= read(data + at, n); });
  *checksum = sum;
  return seconds;
}

// Copies all bytes once with so many threads; returns seconds.
double limits_copy(int threads, const char* from, char* to, std::size_t bytes) {
  return one_pass(threads, bytes, [&](std::size_t at, std::size_t n) { copy(from + at, to + at, n); });
}

}  // extern "C"

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  if (threads < 1 || argc < 3) {
    std::fprintf(stderr, "usage: limits THREADS BYTES...\n");
    return 2;
  }
  std::vector<std::size_t> sizes;
  for (int i = 2; i < argc; ++i) sizes.push_back(std::strtoull(argv[i], nullptr, 10));
  const std::size_t most = *std::max_element(sizes.begin(), sizes.end());
  constexpr std::size_t page = std::size_t{1} << 21;  // large pages where they can be had, as numpy asks for too
  char* data = static_cast<char*>(std::aligned_alloc(page, (most + page - 1) / page * page));
  if (data == nullptr) return 1;
#if defined(__linux__)
  madvise(data, most, MADV_HUGEPAGE);
#endif
  std::memset(data, 0, most);

  std::printf("{\"threads\": %d, \"vector_bytes\": %d, ", threads, vector_bytes);
  std::printf("\"float32\": %.2f, ", multiply_add_rate<Floats, float>(threads));
  std::printf("\"float64\": %.2f, ", multiply_add_rate<Doubles, double>(threads));
  std::string reads, writes;
  for (const std::size_t bytes : sizes) {
    char entry[64];
    const char* comma = reads.empty() ? "" : ", ";
    const auto read_all = [](const char* from, std::size_t n) { sink = static_cast<double>(read(from, n)); };
    std::snprintf(entry, sizeof entry, "%s[%zu, %.3f]", comma, bytes, bandwidth(threads, data, bytes, read_all));
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
