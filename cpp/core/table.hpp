// SPDX-License-Identifier: Apache-2.0
// What an instruction set fills in. Every entry is single-threaded, noexcept in effect, allocates nothing and checks
// nothing: ops/ has done that. Plain pointers and integers only, because each ISA file is compiled with its own flags.
//
// Keys: an integer whose order is the order of the scores (-0 equals +0). `key_excluded` can never be kept,
// `key_nan_low` and `key_nan_high` are the ranks of NaN under nan="prune" and nan="keep"; no number maps to these.
// Key tiles are padded with key_excluded to a multiple of 64, and masks are written in whole bytes from a byte border.
#pragma once
#include <cstddef>
#include <cstdint>

namespace gossamer {

// What the engines see of a criterion; methods share them (ops/score.cpp).
enum class Criterion : int { identity, magnitude, product, taylor, taylor2, wanda, square, ria, share, count };

// 16-bit floats as they are stored: bits only. Kernels widen them to float32 in registers.
struct Half {
  std::uint16_t bits;
};
struct BFloat {
  std::uint16_t bits;
};
enum class Storage : int { native, half, bfloat, count, int8 = count };  // T, Half or BFloat; of products, int8 too
enum class NanRank : int { low, high };
enum class Act : int { identity, relu, gelu, gelu_tanh, silu, sigmoid, tanh, count };

struct StreamCounts {
  std::int64_t open, nan;
};

// A sum in twice the precision: high + low. Added in one fixed order it is the same everywhere; rounded to float64 it
// is the exact sum but for cases made to break it.
struct Twofold {
  double high, low;
};

// A tile to score: w as it is stored, what goes with it element by element (a) and column by column (b), and a number
// of the row. What the criterion does not read may be null.
template <class T>
struct TileInputs {
  Criterion criterion;
  Storage storage;
  const void* w;
  const T *a, *b;
  T r;
};

// Four rows of a chunk in the panel format (ops/panel.hpp), and how many steps they take in a block: first with one
// column for all four, then with one for each two, then with one for each.
constexpr int panel_rows = 4;
struct Panel {
  std::uint8_t rows[panel_rows], together, in_pairs, alone;
  int steps() const { return together + in_pairs + alone; }
  int columns() const { return together + 2 * in_pairs + 4 * alone; }
};

template <class T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = std::int32_t;
  using unsigned_type = std::uint32_t;
};
template <>
struct KeyOf<double> {
  using type = std::int64_t;
  using unsigned_type = std::uint64_t;
};

template <class T>
struct Extent {
  T low, high;  // of the numbers among them; +inf, -inf when there are none
  bool has_nan;
};

template <class T>
struct TypedKernels {
  using Key = typename KeyOf<T>::type;
  using i64 = std::int64_t;

  // score.inl.hpp: out[i] = criterion(w[i], a[i], b[i], r); double has native storage only
  void (*score[static_cast<int>(Criterion::count)][static_cast<int>(Storage::count)])(const TileInputs<T>& in, T* out,
                                                                                      i64 n);
  void (*score_random)(std::uint64_t seed, std::uint64_t first_index, T* out, i64 n);
  void (*add_scores)(const T* scores, double* sums, i64 n);
  void (*add_lanes)(const T* scores, i64 n, double* lane);
  void (*add_twofold)(const T* scores, Twofold* sums, i64 n);
  void (*add_distances)(const T* row, const T* other, i64 n, double* lane);  // lane[j mod 8] += (row - other)^2

  // select.inl.hpp
  i64 (*keys)(const T* scores, i64 n, NanRank rank, Key* out);  // -> position of the first NaN, or n
  void (*exclude)(const std::uint8_t* allowed, i64 n, Key* keys);
  void (*histogram)(const Key* keys, i64 n, int shift, std::uint64_t prefix, std::uint32_t* bins);
  i64 (*mark)(const Key* keys, i64 n, Key top, Key bottom, std::uint8_t* bits, std::uint32_t* open, i64* open_count);
  i64 (*stream[static_cast<int>(Criterion::count)][static_cast<int>(Storage::count)])(
      const TileInputs<T>& in, const std::uint8_t* allowed, i64 n, T high, T low, bool keep_nan, std::uint8_t* bits,
      T* values, std::uint32_t* open, StreamCounts* counts);
  i64 (*mark_ties)(const Key* keys, i64 n, Key key, i64* quota, std::uint8_t* bits);
  i64 (*keep_n_of_m)(const Key* keys, i64 n, int keep, int of, std::uint8_t* bits);

  // mask.inl.hpp, adjust.inl.hpp, stats.inl.hpp
  void (*apply)(const T* w, const std::uint8_t* bits, T* out, i64 n);
  void (*nonzero)(const T* w, std::uint8_t* bits, i64 n);
  i64 (*compress)(const T* w, const std::uint8_t* bits, i64 n, T* values);  // -> how many were kept
  Extent<T> (*extent)(const T* x, i64 n);
  void (*adjust_sign)(const T* w, const T* scores, T rate, T* out, i64 n);
  void (*adjust_scale)(const T* w, const T* scores, T rate, T center, T spread, T* out, i64 n);
  void (*add_squares)(const T* x, double* sums, i64 n);
  void (*subtract_products)(const T* w, const T* g, double* sums, i64 n);

  // Products. Values are stored as T or, for float, as 16-bit floats or int8.
  // With a tile of X, [cols][shape * columns]; shape 0 is one column for CSR, half of shape 1 for panels.
  // spmm_csr.inl.hpp: y[r - first][0 .. width) = sum over the row of value * x[index][0 .. width)
  // spmm_panel.inl.hpp: the same for the panels of a block, added to y ([row within the chunk][width]) or put there
  using Spmm = void (*)(const i64* indptr, const void* indices, const void* values, i64 first, i64 last, const T* x,
                        T* y);
  using SpmmPanel = void (*)(const Panel* panels, i64 count, const std::uint8_t* cols, const void* values, const T* x,
                             bool add, T* y);
  static constexpr int max_shape = 4;
  static constexpr int storages = static_cast<int>(Storage::int8) + 1;
  int columns;                            // of a tile of shape 1
  Spmm spmm[storages][2][max_shape + 1];  // [..][32-bit, 64-bit indices][..]
  int panel_shapes;                       // the widest tile whose sums fit into the registers
  SpmmPanel panel[storages][max_shape + 1];
  // spmv_bitmask.inl.hpp: with n columns of X, [n][stride], padded with zeros to a multiple of `columns`
  using Spmv = void (*)(const std::uint8_t* mask, i64 mask_bytes, i64 cols, const i64* indptr, const void* values,
                        i64 end, i64 first, i64 last, const T* x, i64 stride, T* y);
  static constexpr int max_vectors = 4;
  Spmv bitmask[storages][2][max_vectors + 1];  // [..][whether X is finite][n]
  // sddmm.inl.hpp: x [n] times the rows y + indices[i] * stride, n elements of each (at most sddmm_part), put or added
  using Sddmm = void (*)(const T* x, const T* y, i64 stride, const void* indices, i64 count, i64 n, bool add, T* out);
  static constexpr i64 sddmm_part = 1024 / sizeof(T);
  Sddmm sddmm[2];                                                           // [32-bit, 64-bit indices]
  void (*epilogue)(T* y, i64 n, T bias, Act act);                           // y = act(y + bias)
  void (*activation_grad)(const T* z, const T* dy, T* dz, i64 n, Act act);  // dz = dy * act'(z)
};

// Values whose bits are only moved: 16-bit floats.
struct HalfKernels {
  void (*apply)(const Half* w, const std::uint8_t* bits, Half* out, std::int64_t n);
  void (*nonzero)(const Half* w, std::uint8_t* bits, std::int64_t n);
  std::int64_t (*compress)(const Half* w, const std::uint8_t* bits, std::int64_t n, Half* values);
  void (*widen)(const Half* x, float* out, std::int64_t n);
  void (*widen_bfloat)(const BFloat* x, float* out, std::int64_t n);
};

struct Kernels {
  HalfKernels half;
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  const HalfKernels& typed(Half) const { return half; }
  const TypedKernels<float>& typed(float) const { return f32; }
  const TypedKernels<double>& typed(double) const { return f64; }
};

}  // namespace gossamer
