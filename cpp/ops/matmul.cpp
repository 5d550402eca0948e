// SPDX-License-Identifier: Apache-2.0
// X is packed, a block of columns at a time, into tiles [cols][width] whose rows are whole vectors; a kernel runs
// down the rows of A over one tile, and the epilogue is applied to the finished tile on its way out. Row-major
// activations (linear) only change how a tile is packed and written, so a format has one kernel for both.
#include "ops/matmul.hpp"

#include <algorithm>
#include <new>
#include <span>
#include <vector>

#include "core/dispatch.hpp"
#include "core/lines.hpp"
#include "core/parallel.hpp"
#include "ops/score.hpp"
#include "ops/tiles.hpp"
#include "ops/transpose.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t pack_rows = 128;           // of a packed tile that are written together
constexpr std::int64_t block_columns = 256;       // of X that are packed at a time
constexpr std::int64_t chunk_products = 1 << 14;  // non-zeros a thread claims at a time

// What a product sees of a format (T is computed in, values may be stored as 16-bit floats): chunks of rows; blocks of
// columns, each of which adds to the sums of the one before; and a kernel for every shape of tile.

template <class T>
class CsrRows {
 public:
  static constexpr bool job_is_one_tile = true;  // the rows are short work: a tile of X stays in the cache
  static constexpr std::int64_t depth = 0;       // a tile is not divided
  static constexpr bool takes_column = true;     // as it lies

  CsrRows(const CsrPattern& a, DType dtype, const void* values)
      : a_(a), values_(values), kernels_(kernels<T>().spmm[static_cast<int>(storage_of(dtype))][a.wide]) {
    for (std::int64_t row = 0; row < a.rows;) {
      const std::int64_t* first = a.indptr + row;
      const std::int64_t* beyond = a.indptr + std::min(a.rows, row + 512) + 1;
      row += std::max<std::int64_t>(1, std::upper_bound(first + 1, beyond, *first + chunk_products) - first - 1);
      starts_.push_back(row);
    }
  }
  static int shapes() { return TypedKernels<T>::max_shape; }
  static int width(int shape) { return shape == 0 ? 1 : shape * kernels<T>().columns; }
  std::int64_t rows() const { return a_.rows; }
  std::int64_t cols() const { return a_.cols; }
  std::int64_t chunks() const { return static_cast<std::int64_t>(starts_.size()) - 1; }
  std::int64_t first_row(std::int64_t chunk) const { return starts_[static_cast<std::size_t>(chunk)]; }
  std::int64_t blocks() const { return 1; }
  std::int64_t room(std::int64_t rows) const { return rows; }  // of y
  void multiply(std::int64_t chunk, std::int64_t, int shape, const T* x, T* y) const {
    kernels_[shape](a_.indptr, a_.indices, values_, first_row(chunk), first_row(chunk + 1), x, y);
  }

 private:
  const CsrPattern& a_;
  const void* values_;
  const typename TypedKernels<T>::Spmm* kernels_;  // by shape
  std::vector<std::int64_t> starts_{0};
};

template <class T>
class PanelRows {
 public:
  static constexpr bool job_is_one_tile = false;      // a block of the matrix stays in the cache, and tiles pass
  static constexpr std::int64_t depth = panel_depth;  // rows of a tile that a row of zeros follows
  static constexpr bool takes_column = false;

  PanelRows(const PanelPattern& a, DType dtype, const void* values)
      : a_(a),
        values_(static_cast<const char*>(values)),
        value_size_(size_of(dtype)),
        kernels_(kernels<T>().panel[static_cast<int>(storage_of(dtype))]) {}
  static int shapes() { return kernels<T>().panel_shapes; }
  static int width(int shape) { return shape == 0 ? kernels<T>().columns / 2 : shape * kernels<T>().columns; }
  std::int64_t rows() const { return a_.rows(); }
  std::int64_t cols() const { return a_.cols(); }
  std::int64_t chunks() const { return a_.chunks(); }
  std::int64_t first_row(std::int64_t chunk) const { return a_.first_row(chunk); }
  std::int64_t blocks() const { return std::max<std::int64_t>(1, a_.blocks()); }
  std::int64_t room(std::int64_t rows) const { return (rows + panel_rows - 1) / panel_rows * panel_rows; }
  void multiply(std::int64_t chunk, std::int64_t block, int shape, const T* x, T* y) const {
    if (a_.blocks() == 0) {
      std::fill(y, y + room(first_row(chunk + 1) - first_row(chunk)) * width(shape), T{0});
      return;
    }
    const PanelPattern::Block b = a_.block(chunk, block);
    kernels_[shape](b.panels, b.count, b.columns, values_ + b.place * value_size_,
                    x + block * (panel_depth + 1) * width(shape), block > 0, y);
  }

 private:
  const PanelPattern& a_;
  const char* values_;
  const std::int64_t value_size_;
  const typename TypedKernels<T>::SpmmPanel* kernels_;  // by shape
};

template <class T>
void add_row(const Array& array, std::int64_t row, std::int64_t col, std::int64_t n, T* values, T* buffer) {
  const T* more = array.load(row, col, n, buffer);
  for (std::int64_t i = 0; i < n; ++i) values[i] += more[i];
}

template <class T>
void store_row(const Array& array, std::int64_t row, std::int64_t col, std::int64_t n, const T* values) {
  if (T* direct = array.direct<T>(row, col)) {
    std::copy(values, values + n, direct);
  } else {
    array.store(row, col, n, values);
  }
}

template <class T, class Rows>
class Product {
 public:
  Product(const Rows& a, const Array& x, bool linear, const Epilogue& epilogue, const Array& out)
      : a_(a), x_(x), linear_(linear), epilogue_(epilogue), out_(out), n_(linear ? x.rows() : x.cols()) {}

  void run() {
    if (n_ == 0 || a_.rows() == 0) return;
    if (a_.cols() > std::int64_t{1} << 48) throw std::bad_alloc();
    const T* in_place = Rows::takes_column && n_ == 1 ? column() : nullptr;
    const auto room = in_place != nullptr ? 0 : tile_rows() * padded(std::min(n_, block_columns));
    const Lines<T> packed(static_cast<std::size_t>(room));
    PerWorker<Lines<T>> scratch;
    for (std::int64_t block = 0; block < n_; block += block_columns) {
      const std::vector<Tile> tiles = cut(block, std::min(n_, block + block_columns));
      if (in_place == nullptr) pack(tiles, packed.data());
      const auto count = static_cast<std::int64_t>(tiles.size());
      const std::int64_t jobs_a_chunk =
          Rows::job_is_one_tile ? count : std::clamp<std::int64_t>(4 * num_threads() / a_.chunks(), 1, count);
      parallel_for(a_.chunks() * jobs_a_chunk, scratch, [&](std::int64_t job, Lines<T>& y) {
        const std::int64_t part = job / a_.chunks();
        const std::span<const Tile> all(tiles);
        const auto first = static_cast<std::size_t>(part * count / jobs_a_chunk);
        const auto last = static_cast<std::size_t>((part + 1) * count / jobs_a_chunk);
        compute(all.subspan(first, last - first), in_place != nullptr ? in_place : packed.data(), job % a_.chunks(), y);
      });
    }
  }

 private:
  struct Tile {
    std::int64_t begin, end;  // columns of X
    int shape;                // index into the table's kernels
    std::int64_t offset;      // of the packed tile
    std::int64_t width() const { return Rows::width(shape); }
  };

  // The only column of X where it lies, if it is contiguous.
  const T* column() const {
    if (linear_) return x_.direct<T>(0, 0);
    return x_.can_transpose() ? x_.transposed().template direct<T>(0, 0) : nullptr;
  }

  std::int64_t tile_rows() const { return Rows::depth == 0 ? a_.cols() : a_.cols() + a_.blocks(); }

  // n columns as whole vectors; few of them may have a kernel of their own.
  static std::int64_t padded(std::int64_t n) {
    const std::int64_t columns = kernels<T>().columns;
    return n <= Rows::width(0) ? Rows::width(0) : (n + columns - 1) / columns * columns;
  }

  // As few tiles as there can be, and none much narrower than another. The last one is padded with zeros.
  std::vector<Tile> cut(std::int64_t begin, std::int64_t end) const {
    const std::int64_t columns = kernels<T>().columns, shapes = Rows::shapes();
    if (end - begin <= Rows::width(0)) return {{begin, end, 0, 0}};
    const std::int64_t vectors = (end - begin + columns - 1) / columns, count = (vectors + shapes - 1) / shapes;
    std::vector<Tile> tiles;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t first = i * vectors / count, last = (i + 1) * vectors / count;
      tiles.push_back({begin + first * columns, std::min(end, begin + last * columns), static_cast<int>(last - first),
                       tile_rows() * first * columns});
    }
    return tiles;
  }

  void pack(const std::vector<Tile>& tiles, T* packed) const {
    // About chunk_size elements a job, so that a small X is packed without waking a thread.
    const std::int64_t step = std::max<std::int64_t>(1, chunk_size / tiles[0].width() / pack_rows) * pack_rows;
    const std::int64_t parts = (a_.cols() + step - 1) / step;
    parallel_for(parts * static_cast<std::int64_t>(tiles.size()), [&](std::int64_t job) {
      const Tile& tile = tiles[static_cast<std::size_t>(job / parts)];
      const std::int64_t end = std::min(a_.cols(), (job % parts + 1) * step);
      for (std::int64_t first = job % parts * step; first < end; first += pack_rows)
        pack(tile, first, std::min(end, first + pack_rows), packed + tile.offset);
    });
  }

  // Rows [first, last) of X into a packed tile, at most pack_rows of them: 32 KiB that stay in the L1 cache.
  void pack(const Tile& tile, std::int64_t first, std::int64_t last, T* to) const {
    const std::int64_t width = tile.width(), n = tile.end - tile.begin;
    T buffer[square * pack_rows];
    if constexpr (Rows::depth != 0) {
      static_assert(Rows::depth % pack_rows == 0);
      to += first / Rows::depth * width;
      if (last % Rows::depth == 0 || last == a_.cols()) std::fill(to + last * width, to + (last + 1) * width, T{0});
    }
    if (!linear_) {
      for (std::int64_t c = first; c < last; ++c) {
        const T* from = x_.load(c, tile.begin, n, buffer);
        std::copy(from, from + n, to + c * width);
        std::fill(to + c * width + n, to + (c + 1) * width, T{0});
      }
      return;
    }
    for (std::int64_t j = 0; j < n; j += square) {
      const std::int64_t here = std::min(square, n - j);
      const T* from = x_.direct<T>(tile.begin + j, first);
      std::int64_t stride = x_.row_stride() / static_cast<std::int64_t>(sizeof(T));
      if (from == nullptr) {
        from = buffer;
        stride = pack_rows;
        for (std::int64_t i = 0; i < here; ++i) {
          T* const row = buffer + i * pack_rows;
          const T* loaded = x_.load(tile.begin + j + i, first, last - first, row);
          if (loaded != row) std::copy(loaded, loaded + (last - first), row);
        }
      }
      transpose(from, here, last - first, stride, to + first * width + j, width);
    }
    for (std::int64_t c = first; n < width && c < last; ++c) std::fill(to + c * width + n, to + (c + 1) * width, T{0});
  }

  void compute(std::span<const Tile> tiles, const T* packed, std::int64_t chunk, Lines<T>& scratch) const {
    const std::int64_t first = a_.first_row(chunk), rows = a_.first_row(chunk + 1) - first, room = a_.room(rows);
    std::int64_t width = 0;
    for (const Tile& tile : tiles) width += tile.width();
    T* const y = scratch.at_least(static_cast<std::size_t>(room * width + (square + 1) * std::max(rows, width)));
    T* const spare = y + room * width;
    for (std::int64_t block = 0; block < a_.blocks(); ++block) {
      T* to = y;
      for (const Tile& tile : tiles) {
        a_.multiply(chunk, block, tile.shape, packed + tile.offset, to);
        to += room * tile.width();
      }
    }
    T* from = y;
    for (const Tile& tile : tiles) {
      finish(tile, first, rows, from, spare, spare + square * std::max(rows, width));
      from += room * tile.width();
    }
  }

  // The epilogue of rows [first, first + rows) of a tile, and out with them.
  void finish(const Tile& tile, std::int64_t first, std::int64_t rows, T* y, T* lines, T* buffer) const {
    const std::int64_t width = tile.width(), n = tile.end - tile.begin;
    for (std::int64_t r = 0; r < rows; ++r) {
      T bias{0};
      for (std::int64_t j = 0; j < n && epilogue_.scales != nullptr; ++j)
        y[r * width + j] *= epilogue_.scales[first + r];
      if (epilogue_.bias) bias = *epilogue_.bias->load(0, first + r, 1, buffer);
      if (epilogue_.bias || epilogue_.activation != Act::identity)
        kernels<T>().epilogue(y + r * width, n, bias, epilogue_.activation);
      if (!linear_) put(first + r, tile.begin, n, y + r * width, buffer);
    }
    if (!linear_) return;
    for (std::int64_t j = 0; j < n; j += square) {
      const std::int64_t here = std::min(square, n - j);
      transpose(y + j, rows, here, width, lines, rows);
      for (std::int64_t i = 0; i < here; ++i) put(tile.begin + j + i, first, rows, lines + i * rows, buffer);
    }
  }

  void put(std::int64_t row, std::int64_t col, std::int64_t n, T* values, T* buffer) const {
    if (epilogue_.residual) add_row(*epilogue_.residual, row, col, n, values, buffer);
    store_row(out_, row, col, n, values);
  }

  const Rows& a_;
  const Array& x_;
  const bool linear_;
  const Epilogue& epilogue_;
  const Array& out_;
  const std::int64_t n_;
};

// A mask and its values, times a few columns of X: what counts is how fast the matrix is read, so the rows of A are
// split into long runs, and four columns go along with each reading.
template <class T>
class BitmaskProduct {
 public:
  BitmaskProduct(const BitmaskPattern& a, DType dtype, const void* values, const Array& x, bool linear,
                 const Epilogue& epilogue, const Array& out)
      : a_(a), values_(values), dtype_(dtype), x_(x), linear_(linear), epilogue_(epilogue), out_(out) {}

  void run() {
    const std::int64_t n = linear_ ? x_.rows() : x_.cols(), step = TypedKernels<T>::max_vectors;
    if (n == 0 || a_.rows == 0) return;
    const std::int64_t columns = kernels<T>().columns;
    if (a_.cols > std::int64_t{1} << 48) throw std::bad_alloc();
    stride_ = (a_.cols + columns - 1) / columns * columns;
    packed_.at_least(static_cast<std::size_t>(stride_ * std::min(n, step)));
    const std::int64_t rows = std::clamp<std::int64_t>(chunk_size / std::max<std::int64_t>(1, a_.cols), 1, 1 << 10);
    PerWorker<Lines<T>> scratch;
    for (std::int64_t first = 0; first < n; first += step) {
      const std::int64_t count = std::min(step, n - first);
      for (std::int64_t j = 0; j < count; ++j) pack(first + j, packed_.data() + j * stride_);
      finite_ = std::all_of(packed_.data(), packed_.data() + count * stride_, [](T x) { return x - x == T{0}; });
      parallel_for((a_.rows + rows - 1) / rows, scratch, [&](std::int64_t chunk, Lines<T>& y) {
        compute(first, count, chunk * rows, std::min(a_.rows, (chunk + 1) * rows), y);
      });
    }
  }

 private:
  void pack(std::int64_t column, T* to) const {
    const bool as_rows = linear_ || x_.can_transpose();
    const Array rows = linear_ || !as_rows ? x_ : x_.transposed();
    if (as_rows) {
      const T* from = rows.load(column, 0, a_.cols, to);
      if (from != to) std::copy(from, from + a_.cols, to);
    } else {
      for (std::int64_t c = 0; c < a_.cols; ++c) {
        T buffer;
        to[c] = *x_.load(c, column, 1, &buffer);
      }
    }
    std::fill(to + a_.cols, to + stride_, T{0});
  }

  void compute(std::int64_t column, std::int64_t n, std::int64_t first, std::int64_t last, Lines<T>& scratch) const {
    const std::int64_t rows = last - first;
    T* const y = scratch.at_least(static_cast<std::size_t>(rows * n + std::max(rows, n) + n));
    T *buffer = y + rows * n, *line = buffer + std::max(rows, n);
    const auto kernel = kernels<T>().bitmask[static_cast<int>(storage_of(dtype_))][finite_][n];
    kernel(a_.mask, row_bytes(a_.cols), a_.cols, a_.indptr, values_, a_.indptr[a_.rows], first, last, packed_.data(),
           stride_, y);
    for (std::int64_t j = 0; j < n; ++j) {
      T* values = y + j * rows;
      for (std::int64_t r = 0; r < rows && epilogue_.scales != nullptr; ++r) values[r] *= epilogue_.scales[first + r];
      if (epilogue_.bias) add_row(*epilogue_.bias, 0, first, rows, values, buffer);
      if (epilogue_.activation != Act::identity) kernels<T>().epilogue(values, rows, T{0}, epilogue_.activation);
      if (!linear_) continue;
      if (epilogue_.residual) add_row(*epilogue_.residual, column + j, first, rows, values, buffer);
      store_row(out_, column + j, first, rows, values);
    }
    for (std::int64_t r = 0; r < rows && !linear_; ++r) {
      for (std::int64_t j = 0; j < n; ++j) line[j] = y[j * rows + r];
      if (epilogue_.residual) add_row(*epilogue_.residual, first + r, column, n, line, buffer);
      store_row(out_, first + r, column, n, line);
    }
  }

  const BitmaskPattern& a_;
  const void* values_;
  const DType dtype_;
  const Array& x_;
  const bool linear_;
  const Epilogue& epilogue_;
  const Array& out_;
  std::int64_t stride_ = 0;
  Lines<T> packed_;      // columns of X
  bool finite_ = false;  // whether all of them are
};

void check_epilogue(const char* function, const Epilogue& e, std::int64_t features, const Array& out) {
  if (e.bias && (e.bias->rows() != 1 || e.bias->cols() != features))
    value_error(
        format("%s: bias must have the shape (%lld,), got %s", function, ll(features), e.bias->shape_text().c_str()));
  if (e.residual && (e.residual->rows() != out.rows() || e.residual->cols() != out.cols()))
    value_error(format("%s: residual must have the shape of the result %s, got %s", function, out.shape_text().c_str(),
                       e.residual->shape_text().c_str()));
  if (e.residual && !out.same_view(*e.residual) && out.overlaps(*e.residual))
    value_error(format("%s: out must be the residual itself or not overlap with it, got a part of it", function));
  if (e.bias && out.overlaps(*e.bias))
    value_error(format("%s: out must not overlap with bias, got one that does", function));
}

}  // namespace

Act parse_activation(const char* function, const std::string& name) {
  static const char* const names[] = {"identity", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"};
  for (int i = 0; i < static_cast<int>(Act::count); ++i)
    if (name == names[i]) return static_cast<Act>(i);
  value_error(format("%s: activation must be None, relu, gelu, gelu_tanh, silu, sigmoid or tanh, got '%.60s'", function,
                     name.c_str()));
}

void check_product(const char* function, std::int64_t rows, std::int64_t cols, const Array& x, bool linear,
                   const Epilogue& epilogue, const Array& out) {
  const std::int64_t inner = linear ? x.cols() : x.rows(), n = linear ? x.rows() : x.cols();
  if (inner != cols)
    value_error(format("%s: x must have %lld %s, got the shape %s", function, ll(cols), linear ? "columns" : "rows",
                       x.shape_text().c_str()));
  check_out(function, out, linear ? n : rows, linear ? rows : n, x.dtype(), {});
  if (out.overlaps(x)) value_error(format("%s: out must not overlap with x, got one that does", function));
  check_epilogue(function, epilogue, rows, out);
}

namespace {

// Calls f with a zero of the type that is computed in.
template <class F>
void product(const char* function, std::int64_t rows, std::int64_t cols, DType dtype, const Array& x, bool linear,
             const Epilogue& epilogue, const Array& out, F&& f) {
  check_product(function, rows, cols, x, linear, epilogue, out);
  if (x.dtype() == DType::float64 && dtype != DType::float64)
    type_error(format("%s: x must not be float64 where the values are %s", function, name_of(dtype)));
  dispatch(dtype, f);
}

}  // namespace

void matmul_csr(const char* function, const CsrPattern& a, DType dtype, const void* values, const Array& x, bool linear,
                const Epilogue& epilogue, const Array& out) {
  product(function, a.rows, a.cols, dtype, x, linear, epilogue, out, [&](auto zero) {
    using T = decltype(zero);
    const CsrRows<T> rows(a, dtype, values);
    Product<T, CsrRows<T>>(rows, x, linear, epilogue, out).run();
  });
}

void matmul_panel(const char* function, const PanelPattern& a, DType dtype, const void* values, const Array& x,
                  bool linear, const Epilogue& epilogue, const Array& out) {
  product(function, a.rows(), a.cols(), dtype, x, linear, epilogue, out, [&](auto zero) {
    using T = decltype(zero);
    const PanelRows<T> rows(a, dtype, values);
    Product<T, PanelRows<T>>(rows, x, linear, epilogue, out).run();
  });
}

void matmul_bitmask(const char* function, const BitmaskPattern& a, DType dtype, const void* values, const Array& x,
                    bool linear, const Epilogue& epilogue, const Array& out) {
  product(function, a.rows, a.cols, dtype, x, linear, epilogue, out,
          [&](auto zero) { BitmaskProduct<decltype(zero)>(a, dtype, values, x, linear, epilogue, out).run(); });
}

void apply_epilogue(const char* function, bool linear, const Epilogue& e, const Array& out) {
  check_epilogue(function, e, linear ? out.cols() : out.rows(), out);
  dispatch(out.dtype(), [&](auto zero) {
    using T = decltype(zero);
    struct Lines {
      T y[tile_size], other[tile_size];
    };
    PerWorker<Lines> scratch;
    for_all_tiles(out.rows(), out.cols(), scratch, [&](Lines& s, std::int64_t row, std::int64_t col, std::int64_t n) {
      const T* now = out.load(row, col, n, s.y);
      if (now != s.y) std::copy(now, now + n, s.y);
      T bias{0};
      if (e.bias && linear) add_row(*e.bias, 0, col, n, s.y, s.other);
      if (e.bias && !linear) bias = *e.bias->load(0, row, 1, s.other);
      if (e.bias || e.activation != Act::identity) kernels<T>().epilogue(s.y, n, bias, e.activation);
      if (e.residual) add_row(*e.residual, row, col, n, s.y, s.other);
      store_row(out, row, col, n, s.y);
    });
  });
}

void activation_grad(const char* function, const Array& z, const Array& dy, Act activation, const Array& out) {
  if (z.rows() != dy.rows() || z.cols() != dy.cols())
    value_error(format("%s: dy must have the shape of the output %s, got %s", function, z.shape_text().c_str(),
                       dy.shape_text().c_str()));
  const Array inputs[] = {z, dy};
  check_out(function, out, z.rows(), z.cols(), z.dtype(), inputs);
  dispatch(z.dtype(), [&](auto zero) {
    using T = decltype(zero);
    struct Lines {
      T z[tile_size], dy[tile_size], out[tile_size];
    };
    PerWorker<Lines> scratch;
    for_all_tiles(z.rows(), z.cols(), scratch, [&](Lines& s, std::int64_t row, std::int64_t col, std::int64_t n) {
      kernels<T>().activation_grad(z.load(row, col, n, s.z), dy.load(row, col, n, s.dy), s.out, n, activation);
      store_row(out, row, col, n, s.out);
    });
  });
}

}  // namespace gossamer
