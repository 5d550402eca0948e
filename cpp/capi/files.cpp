// SPDX-License-Identifier: Apache-2.0
// The C ABI: files.
#include <vector>

#include "capi/matrix_handle.hpp"
#include "files/safetensors.hpp"

using namespace gossamer;
using namespace gossamer::capi;

struct gossamer_file {
  File file;
};

namespace {

gossamer_entry describe(const File::Entry& e) {
  return {e.name.c_str(), e.kind, e.dtype, static_cast<std::int32_t>(e.shape.size()), e.shape.data()};
}

}  // namespace

extern "C" {

gossamer_status gossamer_file_open(const char* path, gossamer_file** result) {
  constexpr const char* f = "file_open";
  return guarded([&] {
    given(f, "result", result);
    *result = new gossamer_file{File(f, given(f, "path", path))};
  });
}

void gossamer_file_free(gossamer_file* file) { delete file; }

std::int64_t gossamer_file_count(const gossamer_file* file) {
  std::int64_t count = -1;
  guarded([&] { count = static_cast<std::int64_t>(given("file_count", "file", file)->file.entries().size()); });
  return count;
}

gossamer_status gossamer_file_get_entry(const gossamer_file* file, std::int64_t index, gossamer_entry* entry) {
  constexpr const char* f = "file_get_entry";
  return guarded([&] {
    const auto& entries = given(f, "file", file)->file.entries();
    const auto count = static_cast<std::int64_t>(entries.size());
    if (index < 0 || index >= count)
      value_error(format("%s: index must be in [0, %lld), got %lld", f, ll(count), ll(index)));
    *given(f, "entry", entry) = describe(entries[static_cast<std::size_t>(index)]);
  });
}

gossamer_status gossamer_file_find(const gossamer_file* file, const char* name, gossamer_entry* entry) {
  constexpr const char* f = "file_find";
  return guarded([&] {
    const File::Entry& found = given(f, "file", file)->file.find(f, given(f, "name", name));
    *given(f, "entry", entry) = describe(found);
  });
}

gossamer_status gossamer_file_read_matrix(const gossamer_file* file, const char* name, const char* format,
                                          gossamer_matrix** result) {
  constexpr const char* f = "file_read_matrix";
  return guarded([&] {
    given(f, "result", result);
    *result = hold(given(f, "file", file)->file.read_matrix(f, given(f, "name", name), format));
  });
}

gossamer_status gossamer_file_read_array(const gossamer_file* file, const char* name, const gossamer_array* out) {
  constexpr const char* f = "file_read_array";
  return guarded([&] { given(f, "file", file)->file.read_array(f, given(f, "name", name), view(f, "out", out)); });
}

gossamer_status gossamer_file_read_mask(const gossamer_file* file, const char* name, std::uint8_t* mask) {
  constexpr const char* f = "file_read_mask";
  return guarded([&] { given(f, "file", file)->file.read_mask(f, given(f, "name", name), given(f, "mask", mask)); });
}

gossamer_status gossamer_save(const char* path, const gossamer_saved* entries, std::int64_t count) {
  constexpr const char* f = "save";
  return guarded([&] {
    given(f, "path", path);
    if (count < 0) value_error(format("%s: count must be at least 0, got %lld", f, ll(count)));
    if (count > 0) given(f, "entries", entries);
    std::vector<Array> arrays;
    arrays.reserve(static_cast<std::size_t>(count));
    std::vector<Saved> saved;
    for (std::int64_t i = 0; i < count; ++i) {
      const gossamer_saved& entry = entries[i];
      Saved to;
      to.name = given(f, "name", entry.name);
      if ((entry.matrix != nullptr) + (entry.array != nullptr) + (entry.mask != nullptr) != 1)
        value_error(format("%s: an entry must have one of matrix, array and mask, got another number for %.99s", f,
                           entry.name));
      if (entry.matrix != nullptr) {
        to.matrix = &of(f, "matrix", entry.matrix);
      } else if (entry.array != nullptr) {
        to.array = &arrays.emplace_back(view(f, "array", entry.array));
        to.shape.assign(entry.array->shape, entry.array->shape + entry.array->ndim);
      } else {
        if (entry.ndim > 0) given(f, "shape", entry.shape);
        const Array masked(nullptr, DType::float32, entry.ndim, entry.shape, nullptr, "save: the mask");
        to.mask = check_mask(f, entry.mask, masked.rows(), masked.cols());
        if (entry.ndim > 0) to.shape.assign(entry.shape, entry.shape + entry.ndim);
      }
      saved.push_back(std::move(to));
    }
    save_file(f, path, saved);
  });
}

}  // extern "C"
