// SPDX-License-Identifier: Apache-2.0
#include "core/cpu.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(GOSSAMER_X86) && !defined(_MSC_VER)
#include <cpuid.h>
#endif

namespace gossamer {

extern const Kernels kernels_baseline;
#if defined(GOSSAMER_X86)
extern const Kernels kernels_avx2, kernels_avx512;

#if defined(_MSC_VER)
// MSVC has no __builtin_cpu_supports; until a cpuid reader is written and run there, it gets the baseline.
static bool has_avx2() { return false; }
static bool has_avx512() { return false; }
#else
// Every flag of the ISA's row in Isa.cmake. F16C and LZCNT are read by hand: clang 14 does not know their names.
static bool has_avx2() {
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  const bool lzcnt = __get_cpuid(0x80000001, &a, &b, &c, &d) != 0 && (c & bit_LZCNT) != 0;
  return f16c && lzcnt && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}
static bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
}
#endif
#elif defined(GOSSAMER_AARCH64)
extern const Kernels kernels_neon;
#endif

std::span<const Isa> isas() {
  static const Isa list[] = {
    {"baseline", &kernels_baseline, true},
#if defined(GOSSAMER_X86)
    {"avx2", &kernels_avx2, has_avx2()},
    {"avx512", &kernels_avx512, has_avx512()},
#elif defined(GOSSAMER_AARCH64)
    {"neon", &kernels_neon, true},  // part of every AArch64
#endif
  };
  return list;
}

#if defined(__linux__)
// "max 100000" or "150000 100000" (cgroup v2); no limit gives infinity.
static double quota_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  std::string quota;
  double period = 0;
  if (!(file >> quota >> period) || quota == "max" || !(period > 0)) return HUGE_VAL;
  return std::strtod(quota.c_str(), nullptr) / period;
}

static double quota_v1(const std::string& folder) {
  double quota = -1, period = 0;
  std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
  std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  return quota > 0 && period > 0 ? quota / period : HUGE_VAL;
}

// The tightest quota from this process's cgroup up to the root: a parent's limit binds its children.
static double cgroup_quota() {
  double quota = HUGE_VAL;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    std::istringstream fields(line);
    std::string id, controllers, path;
    std::getline(fields, id, ':');
    std::getline(fields, controllers, ':');
    std::getline(fields, path);
    const bool v2 = controllers.empty();
    if (!v2 && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
    const std::string root = v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controllers;
    for (;;) {
      quota = std::min(quota, v2 ? quota_v2(root + path) : quota_v1(root + path));
      const auto slash = path.find_last_of('/');
      if (path.empty() || slash == std::string::npos) break;
      path.resize(slash);
    }
  }
  return quota;
}
#endif

int usable_processors() {
  int count = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  // A machine with more than 1,024 processors needs a larger set than cpu_set_t: grow until the kernel accepts it.
  for (int limit = CPU_SETSIZE; limit <= 1 << 20; limit *= 2) {
    cpu_set_t* set = CPU_ALLOC(limit);
    if (set == nullptr) break;
    const std::size_t bytes = CPU_ALLOC_SIZE(limit);
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    if (known) count = CPU_COUNT_S(bytes, set);
    CPU_FREE(set);
    if (known) break;
  }
  const double quota = cgroup_quota();
  if (quota < count) count = static_cast<int>(std::ceil(quota));
#endif
  return std::max(1, count);
}

}  // namespace gossamer
