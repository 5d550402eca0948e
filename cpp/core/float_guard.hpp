// SPDX-License-Identifier: Apache-2.0
// The floating-point state that results are defined for: round to nearest, denormals as they are. Another library may
// have set the thread to flush them to zero (fast-math start-up code, torch.set_flush_denormal); scores would then
// compare differently from thread to thread.
#pragma once
#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace gossamer {

class FloatGuard {
 public:
  FloatGuard() : saved_(read()) { write(standard); }
  ~FloatGuard() { write(saved_); }
  FloatGuard(const FloatGuard&) = delete;
  FloatGuard& operator=(const FloatGuard&) = delete;

 private:
#if defined(__x86_64__) || defined(_M_X64)
  using State = unsigned;
  static constexpr State standard = 0x1F80;  // all exceptions masked, nearest, no FTZ, no DAZ
  static State read() { return _mm_getcsr(); }
  static void write(State state) { _mm_setcsr(state); }
#elif defined(__aarch64__)
  using State = std::uint64_t;
  static constexpr State standard = 0;
  static State read() {
    State state;
    asm volatile("mrs %0, fpcr" : "=r"(state));
    return state;
  }
  static void write(State state) { asm volatile("msr fpcr, %0" : : "r"(state)); }
#else
  using State = int;
  static constexpr State standard = 0;
  static State read() { return 0; }
  static void write(State) {}
#endif
  State saved_;
};

}  // namespace gossamer
