// SPDX-License-Identifier: Apache-2.0
// Scores of a contiguous tile. Kernel text, included once by each isa/*.cpp after its simd/*.hpp.
namespace gossamer {
namespace {

// Inputs that a criterion does not read may be null.
template <class V, bool read>
inline V load_input(const typename V::Scalar* x, std::int64_t i) {
  if constexpr (read)
    return Load<V>(x + i);
  else
    return Set<V>(0);
}

// W: how the weights are stored, T or, for float, Half or BFloat.
template <class C, class T, class W>
void score(const TileInputs<T>& in, T* out, std::int64_t n) {
  using V = typename Simd<T>::V;
  constexpr bool reads_a = C::inputs > 1, reads_b = C::inputs > 2;
  const W* w = static_cast<const W*>(in.w);
  const V r = Set<V>(in.r);
  std::int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes)
    Store(C::apply(LoadAs<V>(w + i), load_input<V, reads_a>(in.a, i), load_input<V, reads_b>(in.b, i), r), out + i);
  if (i == n) return;
  W tail_w[V::lanes] = {};
  T tail_a[V::lanes] = {}, tail_b[V::lanes] = {}, tail_out[V::lanes];
  for (std::int64_t j = i; j < n; ++j) {
    tail_w[j - i] = w[j];
    if constexpr (reads_a) tail_a[j - i] = in.a[j];
    if constexpr (reads_b) tail_b[j - i] = in.b[j];
  }
  Store(C::apply(LoadAs<V>(tail_w), Load<V>(tail_a), Load<V>(tail_b), r), tail_out);
  for (std::int64_t j = i; j < n; ++j) out[j] = tail_out[j - i];
}

// splitmix64 (Steele, Lea, Flood 2014) of seed and index: any element's score without the ones before it.
template <class T>
void score_random(std::uint64_t seed, std::uint64_t first_index, T* out, std::int64_t n) {
  constexpr bool single = sizeof(T) == 4;
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint64_t z = seed + (first_index + static_cast<std::uint64_t>(i) + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    out[i] = single ? static_cast<T>(static_cast<float>(static_cast<std::int32_t>(z >> 40)) * 0x1p-24f)
                    : static_cast<T>(static_cast<double>(static_cast<std::int64_t>(z >> 11)) * 0x1p-53);
  }
}

// sums[i] += scores[i]: units of one column.
template <class T>
void add_scores(const T* scores, double* sums, std::int64_t n) {
  GOSSAMER_INDEPENDENT
  for (std::int64_t i = 0; i < n; ++i) sums[i] += static_cast<double>(scores[i]);
}

// Adds a run of scores to 8 lanes, element j to lane j mod 8: the one order in which structured units are summed.
template <class T>
void add_lanes(const T* scores, std::int64_t n, double* lane) {
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) lane[j] += static_cast<double>(scores[i + j]);
  for (int j = 0; i + j < n; ++j) lane[j] += static_cast<double>(scores[i + j]);
}

// Every sum takes one term more (two-sum: Knuth, TAOCP 2, 4.2.2). Once infinite or NaN, `high` is the sum.
template <class T>
void add_twofold(const T* scores, Twofold* sums, std::int64_t n) {
  GOSSAMER_INDEPENDENT
  for (std::int64_t i = 0; i < n; ++i) {
    const double x = static_cast<double>(scores[i]), high = sums[i].high, sum = high + x, part = sum - high;
    sums[i].low += (high - (sum - part)) + (x - part);
    sums[i].high = sum;
  }
}

// lane[j mod 8] += (row[j] - other[j])^2.
template <class T>
void add_distances(const T* row, const T* other, std::int64_t n, double* lane) {
  double sums[8];
  for (int j = 0; j < 8; ++j) sums[j] = lane[j];
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; ++j) {
      const double d = static_cast<double>(row[i + j]) - static_cast<double>(other[i + j]);
      sums[j] += d * d;
    }
  for (int j = 0; i + j < n; ++j) {
    const double d = static_cast<double>(row[i + j]) - static_cast<double>(other[i + j]);
    sums[j] += d * d;
  }
  for (int j = 0; j < 8; ++j) lane[j] = sums[j];
}

template <class W>
void widen(const W* x, float* out, std::int64_t n) {
  using V = typename Simd<float>::V;
  std::int64_t i = 0;
  for (; i + V::lanes <= n; i += V::lanes) Store(LoadAs<V>(x + i), out + i);
  if (i == n) return;
  W tail[V::lanes] = {};
  float tail_out[V::lanes];
  for (std::int64_t j = i; j < n; ++j) tail[j - i] = x[j];
  Store(LoadAs<V>(tail), tail_out);
  for (std::int64_t j = i; j < n; ++j) out[j] = tail_out[j - i];
}

}  // namespace
}  // namespace gossamer
