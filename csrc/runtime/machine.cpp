#include "machine.h"

#include <fstream>
#include <sstream>

#include "gunzip.h"

namespace tkpy::runtime {

const char* dtype_name(DType dtype) {
  constexpr const char* names[] = {"u8", "i8", "i16", "i32", "i64", "f16", "bf16", "f32", "f64", "e4m3", "e5m2"};
  return names[static_cast<int>(dtype)];
}

std::int64_t View::elements() const {
  std::int64_t count = 1;
  for (int d = 0; d < rank; ++d) count *= shape[d];
  return count;
}

std::int64_t View::extent() const {
  if (elements() == 0) return 0;
  std::int64_t last = 0;
  for (int d = 0; d < rank; ++d) last += (shape[d] - 1) * stride[d];
  return (last + 1) * dtype_bytes(dtype);
}

std::string View::describe() const {
  std::ostringstream text;
  text << dtype_name(dtype) << '[';
  for (int d = 0; d < rank; ++d) text << (d ? ", " : "") << shape[d];
  text << "] stride [";
  for (int d = 0; d < rank; ++d) text << (d ? ", " : "") << stride[d];
  text << ']';
  return text.str();
}

std::string Dim3::text() const {
  return '(' + std::to_string(x) + ", " + std::to_string(y) + ", " + std::to_string(z) + ')';
}

std::string describe(const Kernel& kernel, const LaunchSpec& spec) {
  return "kernel " + kernel.name + ", grid " + spec.grid.text() + ", block " + spec.block.text() + ", cluster " +
         spec.cluster.text() + ", dynamic shared memory " + std::to_string(spec.shared) + " bytes";
}

std::string read_image(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const bool packed = !file;
  if (packed) file.open(path + ".gz", std::ios::binary);
  if (!file) throw MachineError(path + ": no such kernel image; was the package built without nvcc?");
  std::ostringstream bytes;
  bytes << file.rdbuf();
  if (!packed) return bytes.str();
  try {
    return Gunzip(bytes.view()).run();
  } catch (const std::runtime_error& error) {
    throw MachineError(path + ".gz: " + error.what());
  }
}

namespace {

std::string dimension(int d) { return " of dimension " + std::to_string(d) + " (innermost is 0)"; }

std::string broken_shape_rule(const TensorMapSpec& s) {
  for (int d = 0; d < s.rank; ++d) {
    if (s.dims[d] == 0 || s.dims[d] > (std::uint64_t{1} << 32))
      return "the size" + dimension(d) + " must be 1 .. 2^32, got " + std::to_string(s.dims[d]);
    if (s.box[d] == 0 || s.box[d] > 256)
      return "the box" + dimension(d) + " must be 1 .. 256, got " + std::to_string(s.box[d]);
    if (s.element_strides[d] == 0 || s.element_strides[d] > 8)
      return "the element stride" + dimension(d) + " must be 1 .. 8, got " + std::to_string(s.element_strides[d]);
    if (d == 0) continue;
    if (s.strides[d] % 16 || s.strides[d] >= (std::uint64_t{1} << 40))
      return "the stride" + dimension(d) + " must be a multiple of 16 bytes below 2^40, got " +
             std::to_string(s.strides[d]);
  }
  return "";
}

}  // namespace

std::string broken_rule(const TensorMapSpec& s) {
  if (s.rank < 1 || s.rank > 5) return "a tensor map has 1 to 5 dimensions, got " + std::to_string(s.rank);
  if (reinterpret_cast<std::uintptr_t>(s.address) % 16) return "the address must be a multiple of 16 bytes";
  if (s.swizzle != 0 && s.swizzle != 32 && s.swizzle != 64 && s.swizzle != 128)
    return "the swizzle must be 0, 32, 64 or 128 bytes, got " + std::to_string(s.swizzle);
  if (s.l2_promotion != 0 && s.l2_promotion != 64 && s.l2_promotion != 128 && s.l2_promotion != 256)
    return "the L2 promotion must be 0, 64, 128 or 256 bytes, got " + std::to_string(s.l2_promotion);
  if (std::string rule = broken_shape_rule(s); !rule.empty()) return rule;
  const std::uint64_t inner = std::uint64_t{s.box[0]} * static_cast<std::uint64_t>(dtype_bytes(s.dtype));
  if (inner % 16) return "the innermost box must be a multiple of 16 bytes, got " + std::to_string(inner);
  if (s.swizzle && inner > static_cast<std::uint64_t>(s.swizzle))
    return "the innermost box of " + std::to_string(inner) + " bytes must not exceed the swizzle of " +
           std::to_string(s.swizzle);
  return "";
}

TensorMapSpec tensor_map_of(const View& view, std::span<const std::uint32_t> box, int swizzle) {
  TensorMapSpec spec;
  spec.dtype = view.dtype;
  spec.rank = static_cast<int>(box.size());
  if (spec.rank < 1 || spec.rank > 5 || spec.rank > view.rank)
    throw MachineError("a box of " + std::to_string(box.size()) + " dimensions does not fit " + view.describe());
  spec.address = view.data;
  spec.device = view.device;
  spec.swizzle = swizzle;
  for (int d = 0; d < spec.rank; ++d) {
    const int from = view.rank - 1 - d;
    spec.dims[d] = static_cast<std::uint64_t>(view.shape[from]);
    spec.strides[d] = static_cast<std::uint64_t>(view.stride[from] * dtype_bytes(view.dtype));
    spec.box[d] = box[box.size() - 1 - static_cast<std::size_t>(d)];
  }
  if (view.stride[view.rank - 1] != 1 && view.shape[view.rank - 1] > 1)
    throw MachineError("the last dimension must be contiguous for TMA: " + view.describe());
  return spec;
}

}  // namespace tkpy::runtime
