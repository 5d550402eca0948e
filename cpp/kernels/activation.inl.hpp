// SPDX-License-Identifier: Apache-2.0
// Activations and their slopes. Kernel text.
//
// In float, everything is made of exp of a number that is not positive, and of polynomials without a branch, so that
// loops become vectors; in double, of the C library's functions. gelu: Hendrycks & Gimpel 2016, arXiv 1606.08415.
namespace gossamer {
namespace {

template <class T, std::size_t n>
inline T polynomial(T x, const T (&coefficients)[n]) {
  T sum = coefficients[n - 1];
  for (std::size_t i = n - 1; i-- > 0;) sum = sum * x + coefficients[i];
  return sum;
}

// exp(x), x <= 0, within 2 units in the last place; 0 below -87, where denormals would begin soon.
// x = n log(2) + r; the fraction of `shifted` is n. Minimax on |r| <= log(2) / 2: 5e-9.
inline float Exp(float x) {
  constexpr float shift = 0x1.8p23f, log2_e = 1.44269504f, high = 0x1.62e4p-1f, low = 1.42860677e-6f;
  const float shifted = x * log2_e + shift, n = shifted - shift, r = (x - n * high) - n * low;
  const float fraction =
      r + r * r * polynomial(r, {0.499999934f, 0.166665206f, 0.0416683879f, 0.00836871541f, 0.00138145999f});
  const float power = std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) << 23) + 0x3F800000u);
  return x < -87.0f ? 0.0f : power + power * fraction;
}
inline double Exp(double x) { return __builtin_exp(x); }

inline float magnitude(float x) { return __builtin_fabsf(x); }
inline double magnitude(double x) { return __builtin_fabs(x); }

template <class T>
inline T Sigmoid(T x) {
  const T e = Exp(-magnitude(x));
  return (x < T{0} ? e : T{1}) / (T{1} + e);
}

// tanh; below 0.625 by a polynomial in x^2, minimax 7e-9, where 1 - exp(-2x) would cancel.
inline float Tanh(float x) {
  const float a = magnitude(x), e = Exp(-2.0f * a), square = a * a;
  const float large = (1.0f - e) / (1.0f + e);
  const float small =
      a + a * square * polynomial(square, {-0.333332783f, 0.133313289f, -0.053729227f, 0.020601999f, -0.00566078046f});
  return __builtin_copysignf(a < 0.625f ? small : large, x);
}
inline double Tanh(double x) { return __builtin_tanh(x); }

// The normal distribution function. Half of erfc(a) = exp(-a^2) erfcx(a), erfcx as a polynomial in 1 / (1 + 0.35 a),
// minimax 3e-8 for a in [0, 10.5], beyond which exp is 0.
inline float Phi(float x) {
  const float a = magnitude(x) * 0.707106781f, t = 1.0f / (1.0f + 0.35f * a);
  const float erfcx = polynomial(t, {-4.38760906e-5f, 0.198479381f, 0.187299346f, 0.243657061f, -0.0494847787f,
                                     0.625667036f, -0.684662824f, 0.798565626f, -0.382801892f, 0.063324898f});
  const float half = 0.5f * Exp(-a * a) * erfcx;
  return x < 0.0f ? half : 1.0f - half;
}
inline double Phi(double x) { return 0.5 * __builtin_erfc(x * -0.70710678118654752440); }

constexpr double sqrt_two_over_pi = 0.79788456080286535588;     // sqrt(2 / pi)
constexpr double inverse_sqrt_two_pi = 0.39894228040143267794;  // 1 / sqrt(2 pi)
constexpr double gelu_cubic = 0.044715;

// gelu_tanh is x (1 + tanh(u)) / 2 = x sigmoid(2 u); this is 2 u.
template <class T>
inline T twice_inner(T x) {
  return T(2 * sqrt_two_over_pi) * (x + T(gelu_cubic) * x * x * x);
}

// f(a function of one number: the activation, or its slope with `slope`).
template <class T, bool slope, class F>
inline void with_activation(Act act, F&& f) {
  constexpr T one{1};
  switch (act) {
    case Act::relu:  // NaN stays NaN
      return f([](T x) { return slope ? (x > T{0} ? one : T{0}) : x < T{0} ? T{0} : x; });
    case Act::gelu:
      return f([](T x) { return slope ? Phi(x) + x * T(inverse_sqrt_two_pi) * Exp(T(-0.5) * x * x) : x * Phi(x); });
    case Act::gelu_tanh:
      return f([](T x) {
        const T s = Sigmoid(twice_inner(x));
        const T near = magnitude(x) < T{100} ? x : T{0};  // beyond, s (1 - s) is 0, and x^3 may be infinite
        const T inner = T(2 * sqrt_two_over_pi) * (one + T(3 * gelu_cubic) * near * near);
        return slope ? s + near * s * (one - s) * inner : x * s;
      });
    case Act::silu:
      return f([](T x) {
        const T s = Sigmoid(x);
        return slope ? s * (one + x * (one - s)) : x * s;
      });
    case Act::sigmoid:
      return f([](T x) {
        const T s = Sigmoid(x);
        return slope ? s * (one - s) : s;
      });
    case Act::tanh:
      return f([](T x) {
        const T t = Tanh(x);
        return slope ? one - t * t : t;
      });
    default: return f([](T x) { return slope ? one : x; });
  }
}

template <class T>
void epilogue(T* y, std::int64_t n, T bias, Act act) {
  with_activation<T, false>(act, [=](auto activate) {
    for (std::int64_t i = 0; i < n; ++i) y[i] = activate(y[i] + bias);
  });
}

template <class T>
void activation_grad(const T* z, const T* dy, T* dz, std::int64_t n, Act act) {
  with_activation<T, true>(act, [=](auto slope) {
    for (std::int64_t i = 0; i < n; ++i) dz[i] = dy[i] * slope(z[i]);
  });
}

}  // namespace
}  // namespace gossamer
