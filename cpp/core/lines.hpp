// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <memory>
#include <new>

namespace gossamer {

// Room for vectors, from the border of a cache line: a 64-byte load that crosses one costs two.
template <class T>
class Lines {
 public:
  Lines() = default;
  explicit Lines(std::size_t size) { at_least(size); }

  // The room, of size or more. What was in it is lost when it grows.
  T* at_least(std::size_t size) {
    if (size > size_) {
      room_.reset();
      size_ = 0;
      if (size > (~std::size_t{0} >> 1) / sizeof(T)) throw std::bad_alloc();
      room_.reset(static_cast<T*>(::operator new(size * sizeof(T), border)));
      size_ = size;
    }
    return room_.get();
  }
  T* data() const { return room_.get(); }

 private:
  static constexpr std::align_val_t border{64};
  struct Free {
    void operator()(T* room) const { ::operator delete(room, border); }
  };
  std::unique_ptr<T, Free> room_;
  std::size_t size_ = 0;
};

}  // namespace gossamer
