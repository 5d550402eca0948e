// SPDX-License-Identifier: Apache-2.0
// Safetensors files: 8 bytes with the header's length, the header (JSON, perhaps with spaces after it), the tensors'
// bytes without gaps. The entry "gossamer" in the metadata says which tensors belong together, as gossamer.save of
// Python writes it. Whoever made a file is not trusted.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "ops/matrix.hpp"

namespace gossamer {

class File {
 public:
  struct Entry {
    std::string name;
    gossamer_kind kind = GOSSAMER_KIND_ARRAY;
    std::int32_t dtype = -1;  // a gossamer_dtype; -1 for masks and others
    std::vector<std::int64_t> shape;
    std::string format;  // of a matrix
  };

  // Throws unless the whole header is in order.
  File(const char* function, const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::vector<Entry>& entries() const { return entries_; }
  const Entry& find(const char* function, std::string_view name) const;

  std::unique_ptr<Matrix> read_matrix(const char* function, std::string_view name, const char* format) const;
  void read_array(const char* function, std::string_view name, const Array& out) const;
  void read_mask(const char* function, std::string_view name, std::uint8_t* mask) const;

 private:
  struct Tensor {
    std::string dtype;
    std::vector<std::int64_t> shape;
    std::int64_t begin, end;
  };
  struct Header;
  void read_header(const std::string& text, std::int64_t size);
  void group_tensors(const Header& header);
  const Entry& find(const char* function, std::string_view name, gossamer_kind kind) const;
  const Tensor& part(const char* function, const std::string& name, const char* dtype, std::int64_t elements) const;
  void read(const char* function, const Tensor& tensor, void* to) const;
  std::unique_ptr<std::vector<std::uint8_t>> read_bits(const char* function, const Entry& entry) const;

  std::string path_;
  int handle_ = -1;
  std::int64_t data_ = 0;  // where the tensors' bytes begin
  std::map<std::string, Tensor, std::less<>> tensors_;
  std::vector<Entry> entries_;
  std::map<std::string, std::size_t, std::less<>> places_;  // among the entries
};

// What is to be saved: one of matrix, array and mask.
struct Saved {
  std::string name;
  const Matrix* matrix = nullptr;
  const Array* array = nullptr;
  const std::uint8_t* mask = nullptr;
  std::vector<std::int64_t> shape;  // of array or mask
};

// Writes beside the target and then replaces it: after a failure or a kill the old file, if any, is still there.
void save_file(const char* function, const std::string& path, const std::vector<Saved>& entries);

}  // namespace gossamer
