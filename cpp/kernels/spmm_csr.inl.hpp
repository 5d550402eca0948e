// SPDX-License-Identifier: Apache-2.0
// CSR times a packed tile of X ([cols][width]), and the epilogue. Kernel text.
namespace gossamer {
namespace {

// Rows are summed in runs of this many products and the runs then added: the rounding error of a long row grows with
// sqrt(run) + sqrt(runs) instead of sqrt(row).
constexpr std::int64_t sum_run = 256;

template <class T, class S, class Index, int vectors>
void spmm(const std::int64_t* indptr, const void* indices_, const void* values_, std::int64_t first, std::int64_t last,
          const T* x, T* y) {
  using V = typename Simd<T>::V;
  constexpr std::int64_t width = vectors * V::lanes;
  const Index* indices = static_cast<const Index*>(indices_);
  const S* values = static_cast<const S*>(values_);
  for (std::int64_t row = first; row < last; ++row, y += width) {
    V total[vectors];
    GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) total[v] = Set<V>(T{0});
    const std::int64_t end = indptr[row + 1];
    for (std::int64_t i = indptr[row]; i < end;) {
      const std::int64_t stop = end - i < sum_run ? end : i + sum_run;
      V sum[vectors];
      GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[v] = Set<V>(T{0});
      for (; i < stop; ++i) {
        const V value = Set<V>(Widen(values[i]));
        const T* from = x + static_cast<std::int64_t>(indices[i]) * width;
        GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[v] = MulAdd(value, Load<V>(from + v * V::lanes), sum[v]);
      }
      GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) total[v] = Add(total[v], sum[v]);
    }
    GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) Store(total[v], y + v * V::lanes);
  }
}

// One column of X: four independent sums hide the latency of the addition.
template <class T, class S, class Index>
void spmv(const std::int64_t* indptr, const void* indices_, const void* values_, std::int64_t first, std::int64_t last,
          const T* x, T* y) {
  const Index* indices = static_cast<const Index*>(indices_);
  const S* values = static_cast<const S*>(values_);
  for (std::int64_t row = first; row < last; ++row) {
    T total{0};
    const std::int64_t end = indptr[row + 1];
    for (std::int64_t i = indptr[row]; i < end;) {
      const std::int64_t stop = end - i < sum_run ? end : i + sum_run;
      T s0{0}, s1{0}, s2{0}, s3{0};
      for (; i + 4 <= stop; i += 4) {
        s0 += Widen(values[i]) * x[indices[i]];
        s1 += Widen(values[i + 1]) * x[indices[i + 1]];
        s2 += Widen(values[i + 2]) * x[indices[i + 2]];
        s3 += Widen(values[i + 3]) * x[indices[i + 3]];
      }
      for (; i < stop; ++i) s0 += Widen(values[i]) * x[indices[i]];
      total += (s0 + s1) + (s2 + s3);
    }
    *y++ = total;
  }
}

inline float Exp(float x) { return __builtin_expf(x); }
inline double Exp(double x) { return __builtin_exp(x); }
inline float Erf(float x) { return __builtin_erff(x); }
inline double Erf(double x) { return __builtin_erf(x); }
inline float Tanh(float x) { return __builtin_tanhf(x); }
inline double Tanh(double x) { return __builtin_tanh(x); }

constexpr double sqrt_half = 0.70710678118654752440;            // 1 / sqrt(2)
constexpr double sqrt_two_over_pi = 0.79788456080286535588;     // sqrt(2 / pi)
constexpr double inverse_sqrt_two_pi = 0.39894228040143267794;  // 1 / sqrt(2 pi)
constexpr double gelu_cubic = 0.044715;                         // Hendrycks & Gimpel 2016, arXiv 1606.08415

// exp is taken of a negative number only, so that it never overflows.
template <class T>
inline T sigmoid(T x) {
  const T e = Exp(x < T{0} ? x : -x);
  return x < T{0} ? e / (T{1} + e) : T{1} / (T{1} + e);
}

template <class T>
inline T activate(T x, Act act) {
  switch (act) {
    case Act::relu: return x < T{0} ? T{0} : x;  // NaN stays NaN
    case Act::gelu: return T{0.5} * x * (T{1} + Erf(x * T(sqrt_half)));
    case Act::gelu_tanh: return T{0.5} * x * (T{1} + Tanh(T(sqrt_two_over_pi) * (x + T(gelu_cubic) * x * x * x)));
    case Act::silu: return x * sigmoid(x);
    case Act::sigmoid: return sigmoid(x);
    case Act::tanh: return Tanh(x);
    default: return x;
  }
}

template <class T>
inline T activation_slope(T z, Act act) {
  switch (act) {
    case Act::relu: return z > T{0} ? T{1} : T{0};
    case Act::gelu: return T{0.5} * (T{1} + Erf(z * T(sqrt_half))) + z * T(inverse_sqrt_two_pi) * Exp(T{-0.5} * z * z);
    case Act::gelu_tanh: {
      const T t = Tanh(T(sqrt_two_over_pi) * (z + T(gelu_cubic) * z * z * z));
      const T inner = T(sqrt_two_over_pi) * (T{1} + T{3} * T(gelu_cubic) * z * z);
      return T{0.5} * (T{1} + t) + T{0.5} * z * (T{1} - t * t) * inner;
    }
    case Act::silu: {
      const T s = sigmoid(z);
      return s * (T{1} + z * (T{1} - s));
    }
    case Act::sigmoid: {
      const T s = sigmoid(z);
      return s * (T{1} - s);
    }
    case Act::tanh: {
      const T t = Tanh(z);
      return T{1} - t * t;
    }
    default: return T{1};
  }
}

template <class T>
void epilogue(T* y, std::int64_t n, T bias, Act act) {
  if (act == Act::identity) {
    for (std::int64_t i = 0; i < n; ++i) y[i] += bias;
  } else if (act == Act::relu) {
    for (std::int64_t i = 0; i < n; ++i) y[i] = y[i] + bias < T{0} ? T{0} : y[i] + bias;
  } else {
    for (std::int64_t i = 0; i < n; ++i) y[i] = activate(y[i] + bias, act);
  }
}

template <class T>
void activation_grad(const T* z, const T* dy, T* dz, std::int64_t n, Act act) {
  if (act == Act::relu) {  // a loop of its own, which becomes vectors
    for (std::int64_t i = 0; i < n; ++i) dz[i] = dy[i] * (z[i] > T{0} ? T{1} : T{0});
  } else {
    for (std::int64_t i = 0; i < n; ++i) dz[i] = dy[i] * activation_slope(z[i], act);
  }
}

}  // namespace
}  // namespace gossamer
