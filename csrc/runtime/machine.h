// The one interface that kernels are launched through. A kernel's launch.cpp is written once against Machine; the CUDA
// driver and the emulator are two of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "tk/tensor_map.h"
#include "view.h"

namespace tkpy::runtime {

struct Dim3 {
  std::uint32_t x = 1, y = 1, z = 1;
  bool operator==(const Dim3&) const = default;
  std::uint64_t count() const { return std::uint64_t{x} * y * z; }
  std::string text() const;  // "(4, 1, 1)"
};

// There is no such machine here: no driver, no device. The message says what is missing.
class MachineUnavailable : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The machine refused or failed; the message names the call, the error and the kernel.
class MachineError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A tensor map of tiled mode; dimensions innermost first, as the driver has them.
struct TensorMapSpec {
  DType dtype = DType::bf16;
  int rank = 0;
  void* address = nullptr;
  std::uint64_t dims[5] = {};
  std::uint64_t strides[5] = {};  // bytes, of dimensions 1 .. rank - 1; strides[0] is not used
  std::uint32_t box[5] = {};
  std::uint32_t element_strides[5] = {1, 1, 1, 1, 1};
  int swizzle = 0;         // bytes: 0, 32, 64, 128
  int l2_promotion = 128;  // bytes: 0, 64, 128, 256
  int device = 0;          // where the tensor is
};

// Which rule of the driver (CUDA driver API, cuTensorMapEncodeTiled) the spec breaks; empty when none.
std::string broken_rule(const TensorMapSpec& spec);

// The map of a view's last `rank` dimensions in torch's order, box in the same order.
TensorMapSpec tensor_map_of(const View& view, std::span<const std::uint32_t> box, int swizzle);

struct LaunchSpec {
  Dim3 grid, block, cluster;
  std::uint32_t shared = 0;           // dynamic shared memory, bytes
  std::span<const std::byte> params;  // laid out as the kernel's own parameter block
  std::span<const View> views;        // every tensor the kernel may touch: bounds for the emulator
  void* stream = nullptr;
  int device = 0;
  bool dependent = false;  // programmatic dependent launch: may begin before the kernel before it has ended
  bool cooperative = false;  // all CTAs are resident at once, as a barrier of the grid needs, or the launch is refused
};

// A kernel found in a module; lives as long as its machine.
struct Kernel {
  std::string name;
};

class Machine {
 public:
  virtual ~Machine() = default;
  virtual const char* name() const = 0;
  virtual int multiprocessors(int device) = 0;

  // Kernel `entry` of module `module`: an image given to add_image, else <folder>/<module>.cubin or .ptx, whichever
  // this machine runs. Looked up once.
  virtual const Kernel& kernel(std::string_view module, std::string_view entry) = 0;
  virtual void add_image(std::string_view module, std::string image) = 0;

  virtual tk::tensor_map encode(const TensorMapSpec& spec) = 0;

  // How many clusters of a launch of this block, cluster and shared memory run at once; its grid does not matter. What
  // a kernel cuts its work by: one cluster more would run alone, after all others.
  virtual int resident_clusters(const Kernel& kernel, const LaunchSpec& spec) = 0;

  // Asynchronous on the driver; nothing here synchronises.
  virtual void launch(const Kernel& kernel, const LaunchSpec& spec) = 0;
};

template <class Params>
std::span<const std::byte> bytes_of(const Params& params) {
  return std::as_bytes(std::span<const Params, 1>(&params, 1));
}

// Text for messages: "kernel gemm, grid (4, 1, 1), block .."
std::string describe(const Kernel& kernel, const LaunchSpec& spec);
std::string read_image(const std::string& path);  // or of <path>.gz, where only that is

}  // namespace tkpy::runtime
