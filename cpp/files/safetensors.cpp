// SPDX-License-Identifier: Apache-2.0
#include "files/safetensors.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <random>
#include <set>
#include <system_error>

#include "files/json.hpp"
#include "ops/bits.hpp"
#include "ops/mask.hpp"
#include "ops/score.hpp"
#include "ops/tiles.hpp"

namespace gossamer {
namespace {

using json::Malformed;
using json::shown;
using json::Value;

constexpr std::int64_t max_header = 100'000'000;  // the format's own limit, in bytes
constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max();
constexpr std::int64_t most_extent = (std::int64_t{1} << 62) - 1;  // as gossamer_matrix_from_mask has it
constexpr std::int64_t most_empty_rows = 1 << 24;  // no byte of the file pays for them, and each takes eight here
constexpr const char* metadata_name = "__metadata__";

int bits_of(std::string_view dtype) {
  struct Known {
    std::string_view dtype;
    int bits;
  };
  static constexpr Known known[] = {
      {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"BOOL", 8},        {"U8", 8},   {"I8", 8},
      {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8},     {"I16", 16},        {"U16", 16}, {"F16", 16},
      {"BF16", 16},   {"I32", 32},    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"U32", 32}, {"F32", 32},
      {"C64", 64},    {"F64", 64},    {"I64", 64},        {"U64", 64}};
  for (const Known& k : known)
    if (k.dtype == dtype) return k.bits;
  return 0;
}

const char* file_dtype(DType dtype) {
  switch (dtype) {
    case DType::float32: return "F32";
    case DType::float64: return "F64";
    case DType::float16: return "F16";
    case DType::int8: return "I8";
    default: return "BF16";
  }
}

std::int32_t known_dtype(std::string_view dtype) {
  for (const DType known : {DType::float32, DType::float64, DType::float16, DType::bfloat16})
    if (dtype == file_dtype(known)) return static_cast<std::int32_t>(known);
  return -1;
}

// -1 where it, or a part of it, exceeds 63 bits.
std::int64_t product(const std::vector<std::int64_t>& shape) {
  std::int64_t size = 1;
  for (const std::int64_t n : shape) {
    if (n != 0 && size > largest / n) return -1;
    size *= n;
  }
  return size;
}

std::vector<std::int64_t> numbers(const Value* value, const char* what, std::string_view name) {
  std::vector<std::int64_t> result;
  if (value == nullptr || value->kind != Value::Kind::array)
    throw Malformed(std::string("no ") + what + " for " + shown(name));
  for (const Value& n : value->array) {
    if (n.kind != Value::Kind::integer || n.integer < 0)
      throw Malformed(std::string("a wrong number in ") + what + " for " + shown(name));
    result.push_back(n.integer);
  }
  return result;
}

// An error of the system, with its words.
[[noreturn]] void system_error(const char* function, const std::string& path, int code = errno) {
  throw Error(GOSSAMER_ERROR_RUNTIME,
              std::string(function) + ": " + path + ": " + std::generic_category().message(code));
}

[[noreturn]] void not_whole(const char* function, const std::string& path, std::string_view name, const char* what) {
  value_error(std::string(function) + ": " + path + ": " + shown(name) + " must be whole, got " + what);
}

void read_at(const char* function, const std::string& path, int handle, void* to, std::int64_t count,
             std::int64_t position) {
  char* next = static_cast<char*>(to);
  while (count > 0) {
    const auto step = static_cast<std::size_t>(std::min<std::int64_t>(count, 1 << 30));
    const ssize_t got = pread(handle, next, step, position);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) system_error(function, path);
    if (got == 0)
      value_error(std::string(function) + ": " + path + " must stay as it is, but became shorter while it was read");
    next += got, position += got, count -= got;
  }
}

// Shape and rows, columns of the matrix that it is read as.
std::pair<std::int64_t, std::int64_t> as_matrix(const std::vector<std::int64_t>& shape) {
  if (shape.size() < 2) return {1, product(shape)};
  return {shape[0], product({shape.begin() + 1, shape.end()})};
}

}  // namespace

// --- reading ---------------------------------------------------------------------------------------------------------

struct File::Header {
  std::vector<std::string> order;  // of the tensors, by their places
  Value groups;                    // what the metadata says of them; null: nothing
};

File::File(const char* function, const std::string& path) : path_(path) {
  // Not blocking: the open of a pipe would wait for its writer.
  handle_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (handle_ < 0) system_error(function, path);
  try {
    struct stat status;
    if (fstat(handle_, &status) != 0) system_error(function, path);
    if (!S_ISREG(status.st_mode)) system_error(function, path, S_ISDIR(status.st_mode) ? EISDIR : EINVAL);
    const std::int64_t size = status.st_size;
    const auto refuse = [&](const std::string& what) {
      value_error(std::string(function) + ": " + path + " must be a safetensors file, got " + what);
    };
    if (size < 8) refuse("a file of " + std::to_string(size) + " bytes");
    std::uint64_t length;
    read_at(function, path, handle_, &length, 8, 0);
    if (length > static_cast<std::uint64_t>(max_header))
      refuse("a header of " + std::to_string(length) + " bytes, more than " + std::to_string(max_header));
    if (length > static_cast<std::uint64_t>(size - 8))
      refuse("a header of " + std::to_string(length) + " bytes in a file of " + std::to_string(size));
    std::string text(static_cast<std::size_t>(length), '\0');
    read_at(function, path, handle_, text.data(), static_cast<std::int64_t>(length), 8);
    data_ = 8 + static_cast<std::int64_t>(length);
    try {
      read_header(text, size - data_);
    } catch (const Malformed& error) {
      refuse(error.what());
    }
  } catch (...) {
    close(handle_);
    throw;
  }
}

File::~File() { close(handle_); }

void File::read_header(const std::string& text, std::int64_t size) {
  if (!text.starts_with('{')) throw Malformed("a header that is no JSON object");
  const Value fields = json::parse(text);
  Header header;
  for (const auto& [name, field] : fields.object) {
    if (name == metadata_name) {
      if (field.kind != Value::Kind::object) throw Malformed("a __metadata__ that is no mapping of texts");
      for (const auto& [key, value] : field.object) {
        if (value.kind != Value::Kind::string) throw Malformed("a __metadata__ that is no mapping of texts");
        if (key != "gossamer") continue;
        Value known = json::parse(value.string);
        if (known.kind != Value::Kind::object) throw Malformed("metadata of gossamer that is no mapping");
        for (auto& [name_of_part, part] : known.object)
          if (name_of_part == "tensors") header.groups = std::move(part);
      }
      continue;
    }
    const Value* dtype = field.find("dtype");
    if (field.object.size() != 3 || dtype == nullptr)
      throw Malformed("other fields than dtype, shape and data_offsets for " + shown(name));
    const int bits = dtype->kind == Value::Kind::string ? bits_of(dtype->string) : 0;
    if (bits == 0) throw Malformed("an unknown dtype " + shown(dtype->string) + " for " + shown(name));
    const auto shape = numbers(field.find("shape"), "shape", name);
    const auto offsets = numbers(field.find("data_offsets"), "data_offsets", name);
    if (offsets.size() != 2 || offsets[0] > offsets[1]) throw Malformed("wrong data_offsets for " + shown(name));
    const std::int64_t count = product(shape);
    if (count < 0 || count > largest / bits) throw Malformed("a shape that overflows for " + shown(name));
    if (count * bits % 8 != 0 || count * bits / 8 != offsets[1] - offsets[0])
      throw Malformed(std::to_string(offsets[1] - offsets[0]) + " bytes for the shape and dtype of " + shown(name));
    tensors_.emplace(name, Tensor{dtype->string, shape, offsets[0], offsets[1]});
    header.order.push_back(name);
  }
  std::sort(header.order.begin(), header.order.end(), [&](const std::string& a, const std::string& b) {
    const Tensor &s = tensors_.at(a), &t = tensors_.at(b);
    return std::tie(s.begin, s.end, a) < std::tie(t.begin, t.end, b);
  });
  std::int64_t end = 0;
  for (const std::string& name : header.order) {
    const Tensor& tensor = tensors_.at(name);
    if (tensor.begin != end)
      throw Malformed("the place of " + shown(name) +
                      (tensor.begin < end ? ", which overlaps with another tensor" : ", which leaves a gap before it"));
    end = tensor.end;
  }
  if (end != size)
    throw Malformed(std::to_string(size) + " bytes of tensors where the header has " + std::to_string(end));
  group_tensors(header);
}

void File::group_tensors(const Header& header) {
  if (header.groups.kind != Value::Kind::object) {
    for (const std::string& name : header.order) {
      const Tensor& tensor = tensors_.at(name);
      entries_.push_back({name, GOSSAMER_KIND_ARRAY, known_dtype(tensor.dtype), tensor.shape, ""});
    }
  }
  for (const auto& [name, group] : header.groups.object) {
    Entry entry{name, GOSSAMER_KIND_ARRAY, -1, {}, ""};
    const Value* kind = group.find("kind");
    const std::string_view what = kind != nullptr ? std::string_view(kind->string) : "";
    const auto lacks = [&, &of = name](const std::string& part) {
      if (!tensors_.contains(part)) throw Malformed("no tensor " + shown(part) + " for the entry " + shown(of));
    };
    if (what == "array") {
      lacks(name);
      const Tensor& tensor = tensors_.at(name);
      entry.dtype = known_dtype(tensor.dtype);
      entry.shape = tensor.shape;
    } else if (what == "mask" || what == "matrix") {
      entry.kind = what == "mask" ? GOSSAMER_KIND_MASK : GOSSAMER_KIND_MATRIX;
      entry.shape = numbers(group.find("shape"), "shape", name);
      for (const std::int64_t n : entry.shape)
        if (n > most_extent) throw Malformed("a shape that overflows for " + shown(name));
      if (product(entry.shape) < 0) throw Malformed("a shape that overflows for " + shown(name));
      lacks(name + ".bitmask");
      const auto [rows, cols] = as_matrix(entry.shape);
      const Tensor& bits = tensors_.at(name + ".bitmask");
      if (cols < 0 || bits.dtype != "U8" || (rows > 0 && row_bytes(cols) > largest / rows) ||
          product(bits.shape) != rows * row_bytes(cols))
        throw Malformed("a bitmask of another size for " + shown(name));
      if (entry.kind == GOSSAMER_KIND_MATRIX) {
        if (entry.shape.size() != 2) throw Malformed("a matrix without two dimensions, " + shown(name));
        if (cols == 0 && rows > most_empty_rows)
          throw Malformed(std::to_string(rows) + " rows without columns for " + shown(name));
        lacks(name + ".values");
        const Tensor& values = tensors_.at(name + ".values");
        entry.dtype = values.dtype == "I8" ? GOSSAMER_INT8 : known_dtype(values.dtype);
        if (entry.dtype < 0 || values.shape.size() != 1) throw Malformed("wrong values for " + shown(name));
        if (entry.dtype == GOSSAMER_INT8) {
          lacks(name + ".scales");
          const Tensor& scales = tensors_.at(name + ".scales");
          if (scales.dtype != "F32" || scales.shape != std::vector<std::int64_t>{rows})
            throw Malformed("wrong scales for " + shown(name));
        }
        const Value* format_field = group.find("format");
        entry.format = format_field != nullptr ? format_field->string : "";
      }
    } else {
      throw Malformed("an unknown kind of the entry " + shown(name));
    }
    entries_.push_back(std::move(entry));
  }
  for (const Entry& entry : entries_)
    if (entry.name.find('\0') != std::string::npos)  // which gossamer_entry would show as another name
      throw Malformed("a zero byte in the name " + shown(entry.name));
  for (std::size_t i = 0; i < entries_.size(); ++i) places_.emplace(entries_[i].name, i);
}

const File::Entry& File::find(const char* function, std::string_view name) const {
  const auto found = places_.find(name);
  if (found == places_.end())
    value_error(std::string(function) + ": " + path_ + " must have " + shown(name) + ", got none");
  return entries_[found->second];
}

const File::Entry& File::find(const char* function, std::string_view name, gossamer_kind kind) const {
  static constexpr const char* kinds[] = {"an array", "a mask", "a matrix"};
  const Entry& entry = find(function, name);
  if (entry.kind != kind)
    type_error(std::string(function) + ": " + shown(name) + " must be " + kinds[kind] + ", got " + kinds[entry.kind]);
  return entry;
}

void File::read(const char* function, const Tensor& tensor, void* to) const {
  read_at(function, path_, handle_, to, tensor.end - tensor.begin, data_ + tensor.begin);
}

std::unique_ptr<std::vector<std::uint8_t>> File::read_bits(const char* function, const Entry& entry) const {
  const auto [rows, cols] = as_matrix(entry.shape);
  auto bits = std::make_unique<std::vector<std::uint8_t>>(static_cast<std::size_t>(packed_size(rows, cols)));
  read(function, tensors_.at(entry.name + ".bitmask"), bits->data());
  if (!padding_is_zero(bits->data(), rows, cols)) not_whole(function, path_, entry.name, "padding bits that are not 0");
  return bits;
}

std::unique_ptr<Matrix> File::read_matrix(const char* function, std::string_view name, const char* format) const {
  const Entry& entry = find(function, name, GOSSAMER_KIND_MATRIX);
  const Tensor& stored = tensors_.at(entry.name + ".values");
  const std::int64_t rows = entry.shape[0], cols = entry.shape[1], count = stored.shape[0];
  auto bits = read_bits(function, entry);
  if (count_mask(bits->data(), rows, cols) != count)
    not_whole(function, path_, name, "another number of values than its mask keeps");
  auto structure = std::make_shared<const Structure>(rows, cols, std::move(bits));
  const auto dtype = static_cast<DType>(entry.dtype);
  Lines<std::byte> values(static_cast<std::size_t>(stored.end - stored.begin));
  read(function, stored, values.data());
  std::vector<float> scales;
  if (dtype == DType::int8) {
    scales.resize(static_cast<std::size_t>(rows));
    read(function, tensors_.at(entry.name + ".scales"), scales.data());
  }
  const Array view(values.data(), dtype, 1, &count, nullptr, "values");
  return std::make_unique<Matrix>(function, "values", structure, view, dtype, scales.data(),
                                  format != nullptr ? format : entry.format);
}

void File::read_array(const char* function, std::string_view name, const Array& out) const {
  const Entry& entry = find(function, name, GOSSAMER_KIND_ARRAY);
  const Tensor& tensor = tensors_.at(entry.name);
  if (entry.dtype < 0)
    throw Error(GOSSAMER_ERROR_NOT_IMPLEMENTED, std::string(function) + ": " + shown(name) +
                                                    " must be float32, float64, float16 or bfloat16 to be read, got " +
                                                    tensor.dtype);
  const auto [rows, cols] = as_matrix(entry.shape);
  const auto dtype = static_cast<DType>(entry.dtype);
  check_out(function, out, rows, cols, dtype, {});
  if (out.contiguous()) {
    read(function, tensor, out.data());
    return;
  }
  Lines<std::byte> whole(static_cast<std::size_t>(tensor.end - tensor.begin));
  read(function, tensor, whole.data());
  copy_rows(whole.data(), out);
}

void File::read_mask(const char* function, std::string_view name, std::uint8_t* mask) const {
  const auto bits = read_bits(function, find(function, name, GOSSAMER_KIND_MASK));
  std::copy(bits->begin(), bits->end(), mask);
}

// --- writing ---------------------------------------------------------------------------------------------------------

namespace {

struct Part {
  std::string name;
  const char* dtype;
  std::vector<std::int64_t> shape;
  std::int64_t element;  // bytes
  std::vector<std::byte> made;
  const void* data;  // `made`, or memory of the caller

  std::int64_t size() const { return product(shape) * element; }
};

std::string list(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t n : shape) text.append(text.empty() ? "[" : ",").append(std::to_string(n));
  return text.empty() ? "[]" : text.append("]");
}

std::vector<std::byte> contiguous(const Array& array) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(array.size() * size_of(array.dtype())));
  const Array from = array.moved();
  dispatch_moved(from.dtype(), [&](auto zero) {
    using T = decltype(zero);
    T* to = reinterpret_cast<T*>(bytes.data());
    for (std::int64_t r = 0; r < from.rows(); ++r, to += from.cols())
      if (const T* row = from.load(r, 0, from.cols(), to); row != to) std::copy(row, row + from.cols(), to);
  });
  return bytes;
}

// The tensors of the entries, and what the metadata says of them.
std::vector<Part> parts_of(const char* function, const std::vector<Saved>& entries, std::string& groups) {
  std::vector<Part> parts;
  std::set<std::string> names, entry_names;
  const auto add = [&](Part part) {
    if (part.name == metadata_name)
      value_error(std::string(function) + ": names must differ from the reserved '__metadata__', got it");
    if (!names.insert(part.name).second)
      value_error(std::string(function) + ": names must stay different with their endings, got " + shown(part.name) +
                  " twice");
    parts.push_back(std::move(part));
    if (!parts.back().made.empty()) parts.back().data = parts.back().made.data();
  };
  for (const Saved& saved : entries) {
    if (!json::is_utf8(saved.name))
      value_error(std::string(function) + ": names must be UTF-8, got " + shown(saved.name));
    if (!entry_names.insert(saved.name).second)
      value_error(std::string(function) + ": names must be different, got " + shown(saved.name) + " twice");
    if (!groups.empty()) groups += ',';
    groups.append(json::quoted(saved.name)).append(":{\"kind\":");
    if (saved.matrix != nullptr) {
      const Matrix& a = *saved.matrix;
      add({saved.name + ".bitmask", "U8", {a.rows(), row_bytes(a.cols())}, 1, {}, a.structure().mask()});
      std::vector<std::byte> values(static_cast<std::size_t>(a.nnz() * size_of(a.dtype())));
      a.copy_values(values.data());
      add({saved.name + ".values", file_dtype(a.dtype()), {a.nnz()}, size_of(a.dtype()), std::move(values), nullptr});
      if (a.dtype() == DType::int8) add({saved.name + ".scales", "F32", {a.rows()}, 4, {}, a.scales()});
      groups += "\"matrix\",\"shape\":" + list({a.rows(), a.cols()}) + ",\"format\":" + json::quoted(a.asked()) + "}";
    } else if (saved.mask != nullptr) {
      const auto [rows, cols] = as_matrix(saved.shape);
      add({saved.name + ".bitmask", "U8", {rows, row_bytes(cols)}, 1, {}, saved.mask});
      groups += "\"mask\",\"shape\":" + list(saved.shape) + "}";
    } else {
      const Array& a = *saved.array;
      const std::int64_t element = size_of(a.dtype());
      if (a.contiguous())
        add({saved.name, file_dtype(a.dtype()), saved.shape, element, {}, a.data()});
      else
        add({saved.name, file_dtype(a.dtype()), saved.shape, element, contiguous(a), nullptr});
      groups += "\"array\"}";
    }
  }
  // Wide elements first: each tensor is then aligned to its own.
  std::stable_sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) { return a.element > b.element; });
  return parts;
}

std::string header_of(const std::vector<Part>& parts, const std::string& groups) {
  std::string text =
      std::string("{\"") + metadata_name + "\":{\"gossamer\":" + json::quoted("{\"tensors\":{" + groups + "}}") + "}";
  std::int64_t end = 0;
  for (const Part& part : parts) {
    text.append(",").append(json::quoted(part.name)).append(":{\"dtype\":\"").append(part.dtype);
    text.append("\",\"shape\":").append(list(part.shape));
    text.append(",\"data_offsets\":").append(list({end, end + part.size()})).append("}");
    end += part.size();
  }
  text += "}";
  return text + std::string((8 - text.size() % 8) % 8, ' ');
}

// A file under a name of its own, which is gone again unless it gets its final one.
class NewFile {
 public:
  NewFile(const char* function, const std::filesystem::path& target) : function_(function), target_(target) {
    std::random_device random;
    name_ = target.parent_path() / format(".%.200s.%08x%08x", target.filename().c_str(),
                                          static_cast<unsigned>(random()), static_cast<unsigned>(random()));
    handle_ = open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (handle_ < 0) system_error(function, target.string());
  }
  ~NewFile() {
    if (handle_ >= 0) close(handle_);
    if (!name_.empty()) unlink(name_.c_str());
  }
  void write(const void* data, std::int64_t count) {
    const char* next = static_cast<const char*>(data);
    while (count > 0) {
      const ssize_t done = ::write(handle_, next, static_cast<std::size_t>(std::min<std::int64_t>(count, 1 << 30)));
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) system_error(function_, target_.string());
      next += done, count -= done;
    }
  }
  void publish() {
    if (fsync(handle_) != 0) system_error(function_, target_.string());
    const int handle = std::exchange(handle_, -1);
    if (close(handle) != 0) system_error(function_, target_.string());
    if (rename(name_.c_str(), target_.c_str()) != 0) system_error(function_, target_.string());
    name_.clear();
  }

 private:
  const char* function_;
  std::filesystem::path target_, name_;
  int handle_ = -1;
};

}  // namespace

void save_file(const char* function, const std::string& path, const std::vector<Saved>& entries) {
  std::string groups;
  const std::vector<Part> parts = parts_of(function, entries, groups);
  const std::string header = header_of(parts, groups);
  if (static_cast<std::int64_t>(header.size()) > max_header)
    value_error(format("%s: the names must fit into a header of %lld bytes, got %lld", function, ll(max_header),
                       ll(static_cast<std::int64_t>(header.size()))));
  std::error_code error;
  std::filesystem::path target = path;
  // A link stays a link, also one to a file that is not there yet.
  for (int links = 0; std::filesystem::is_symlink(std::filesystem::symlink_status(target, error)); ++links) {
    if (links == 40) system_error(function, path, ELOOP);  // Linux's own limit
    const std::filesystem::path next = std::filesystem::read_symlink(target, error);
    if (error) system_error(function, path, error.value());
    target = target.parent_path() / next;
  }
  const auto status = std::filesystem::status(target, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
    system_error(function, path, std::filesystem::is_directory(status) ? EISDIR : EINVAL);
  NewFile file(function, target);
  const auto length = static_cast<std::uint64_t>(header.size());
  file.write(&length, 8);
  file.write(header.data(), static_cast<std::int64_t>(header.size()));
  for (const Part& part : parts) file.write(part.data, part.size());
  file.publish();
}

}  // namespace gossamer
