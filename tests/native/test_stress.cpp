// SPDX-License-Identifier: Apache-2.0
// Sixty-four threads at once, through the C ABI: one matrix that all share (its packs and transposes are made while
// others use it), pruning, files, failures, and one thread that changes the number of threads. Every result is compared
// with the one that a single thread got. GOSSAMER_STRESS_SECONDS: 2 unless told.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "gossamer/gossamer.hpp"

namespace {

using gossamer::Matrix;

constexpr int thread_count = 64;
constexpr std::int64_t rows = 96, cols = 160, batch = 24;

struct Work {
  std::vector<float> w, x;
  std::vector<double> wide_x;

  Work() : w(rows * cols), x(batch * cols), wide_x(batch * cols) {
    std::uint32_t state = 7;
    const auto next = [&] { return static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) / 8e6f - 1; };
    for (float& v : w) v = next();
    for (float& v : w) v = next() < -0.2f ? 0 : v;
    for (std::size_t i = 0; i < x.size(); ++i) wide_x[i] = x[i] = next();
  }
  Matrix matrix() const { return Matrix::from_dense(gossamer::array(w.data(), {rows, cols})); }
};

struct Results {
  std::vector<float> one, many, transposed, gradient;
  std::vector<double> wide;
  gossamer::Pruned pruned;
  bool operator==(const Results& o) const {
    return one == o.one && many == o.many && transposed == o.transposed && gradient == o.gradient && wide == o.wide &&
           pruned.nnz == o.pruned.nnz && pruned.mask == o.pruned.mask;
  }
};

Results results(const Work& work, const Matrix& a) {
  Results r;
  r.one.resize(rows);
  r.many.resize(batch * rows);
  r.wide.resize(batch * rows);
  r.transposed.resize(batch * cols);
  gossamer::linear(a, gossamer::array(work.x.data(), {cols}), gossamer::array(r.one.data(), {rows}));
  gossamer::linear(a, gossamer::array(work.x.data(), {batch, cols}), gossamer::array(r.many.data(), {batch, rows}),
                   {nullptr, GOSSAMER_GELU, nullptr});
  gossamer::linear(a, gossamer::array(work.wide_x.data(), {batch, cols}),
                   gossamer::array(r.wide.data(), {batch, rows}));
  r.gradient.resize(static_cast<std::size_t>(a.info().nnz));
  const gossamer::Array gradient = gossamer::array(r.gradient.data(), {a.info().nnz});
  gossamer::linear_backward(a, gossamer::array(work.x.data(), {batch, cols}),
                            gossamer::array(r.many.data(), {batch, rows}), nullptr, &gradient, nullptr);
  const Matrix t = a.transposed();
  gossamer::linear(t, gossamer::array(r.many.data(), {batch, rows}),
                   gossamer::array(r.transposed.data(), {batch, cols}));
  gossamer_selection how{};
  how.sparsity = 0.7;
  r.pruned = gossamer::prune("magnitude", gossamer::array(work.w.data(), {rows, cols}), how);
  return r;
}

}  // namespace

TEST(many_threads_share_a_matrix) {
  const char* wanted = std::getenv("GOSSAMER_STRESS_SECONDS");
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(wanted != nullptr ? std::atoi(wanted) : 2);
  const Work work;
  CHECK(gossamer_set_num_threads(4) == GOSSAMER_OK);
  const Results expected = results(work, work.matrix());
  const std::string path = std::filesystem::temp_directory_path() / ("stress" + std::to_string(std::rand()));
  {
    const Matrix a = work.matrix();
    gossamer_saved entry{};
    entry.name = "w";
    entry.matrix = a.c();
    gossamer::check(gossamer_save(path.c_str(), &entry, 1));
  }
  std::atomic<std::int64_t> rounds{0}, wrong{0};
  // Changing the number of threads while others work is allowed, too.
  std::thread changes([&] {
    for (int n = 1; std::chrono::steady_clock::now() < end; n = n % 5 + 1) {
      if (gossamer_set_num_threads(n) != GOSSAMER_OK) ++wrong;
      std::this_thread::sleep_for(std::chrono::milliseconds(3));
    }
  });
  do {  // a new matrix each time, of which nothing is packed yet
    const Matrix shared = work.matrix();
    std::vector<std::thread> threads;
    for (int i = 0; i < thread_count; ++i)
      threads.emplace_back([&, i] {
        for (int round = 0; round < 3; ++round) {
          try {
            if (!(results(work, shared) == expected)) ++wrong;
            if (i % 8 == 0 && !(results(work, gossamer::File(path).matrix("w")) == expected)) ++wrong;
          } catch (const std::exception& error) {
            std::fprintf(stderr, "%s\n", error.what());
            ++wrong;
          }
          const std::string value = std::to_string(-1 - i);
          if (gossamer_set_num_threads(-1 - i) != GOSSAMER_ERROR_VALUE ||
              std::string(gossamer_last_error()).find("got " + value) == std::string::npos)
            ++wrong;
          ++rounds;
        }
      });
    for (std::thread& thread : threads) thread.join();
  } while (std::chrono::steady_clock::now() < end);
  changes.join();
  std::filesystem::remove(path);
  gossamer_shutdown();
  CHECK(wrong == 0, "%lld of %lld rounds", static_cast<long long>(wrong), static_cast<long long>(rounds));
  std::printf("%lld rounds in %d threads\n", static_cast<long long>(rounds), thread_count);
}

RUN_TESTS()
