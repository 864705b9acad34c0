// A libcuda whose device is the emulator, for testing cuda_device.py: memory of its own, PTX as images, launches that are
// checked and run when they are waited for. What the driver refuses is refused: unknown handles, clusters that do not
// divide, more shared memory than the function was allowed, maps that break a rule.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "emulator/machine.h"
#include "emulator/tensor/tensor_map.h"
#include "runtime/driver_api.h"

using namespace tkpy::emulator;
using namespace tkpy::runtime::driver;

namespace {

constexpr CUresult kInvalidValue = 1, kInvalidImage = 200, kNotFound = 500, kIllegalAddress = 700;
constexpr u32 kSharedWithoutAsking = 48 << 10;

struct FunctionHandle {
  std::unique_ptr<Linked> linked;
  u32 index = 0, shared = kSharedWithoutAsking, largest_cluster = 8;
};
struct ModuleHandle {
  std::unique_ptr<Module> module;
  std::map<std::string, FunctionHandle> functions;
};

std::map<u64, u64> allocations;  // start -> end
std::vector<std::unique_ptr<ModuleHandle>> modules;
CUresult pending = CUDA_SUCCESS;  // a launch's outcome shows when it is waited for

bool within(u64 address, u64 bytes) {
  const auto next = allocations.upper_bound(address);
  return next != allocations.begin() && address + bytes <= std::prev(next)->second;
}

Dim3 cluster_of(const CUlaunchConfig& c) {
  for (unsigned i = 0; i < c.numAttrs; ++i)
    if (c.attrs[i].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
      return {c.attrs[i].value.clusterDim.x, c.attrs[i].value.clusterDim.y, c.attrs[i].value.clusterDim.z};
  return {};
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult error, const char** text) {
  *text = error == kInvalidValue     ? "CUDA_ERROR_INVALID_VALUE"
          : error == kInvalidImage   ? "CUDA_ERROR_INVALID_IMAGE"
          : error == kNotFound       ? "CUDA_ERROR_NOT_FOUND"
          : error == kIllegalAddress ? "CUDA_ERROR_ILLEGAL_ADDRESS"
                                     : nullptr;
  return *text ? CUDA_SUCCESS : kInvalidValue;
}
CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? CUDA_SUCCESS : kInvalidValue;
}
CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 9 : 0;
  return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) {
  *context = reinterpret_cast<CUcontext>(std::uintptr_t{0x1000});
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) { return context ? CUDA_SUCCESS : kInvalidValue; }

CUresult cuMemAlloc_v2(u64* address, std::size_t bytes) {
  const std::size_t rounded = align_up(bytes, 256);
  void* memory = bytes ? std::aligned_alloc(256, rounded) : nullptr;
  if (!memory) return kInvalidValue;
  std::memset(memory, 0xcd, rounded);
  *address = reinterpret_cast<u64>(memory);
  allocations[*address] = *address + bytes;
  return CUDA_SUCCESS;
}
CUresult cuMemFree_v2(u64 address) {
  if (!allocations.erase(address)) return kInvalidValue;
  std::free(reinterpret_cast<void*>(address));
  return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoD_v2(u64 to, const void* from, std::size_t bytes) {
  if (!within(to, bytes)) return kInvalidValue;
  std::memcpy(reinterpret_cast<void*>(to), from, bytes);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoH_v2(void* to, u64 from, std::size_t bytes) {
  if (!within(from, bytes)) return kInvalidValue;
  std::memcpy(to, reinterpret_cast<const void*>(from), bytes);
  return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(void** module, const void* image) {
  try {
    auto loaded = std::make_unique<ModuleHandle>();
    loaded->module = load_module(static_cast<const char*>(image));
    *module = modules.emplace_back(std::move(loaded)).get();
    return CUDA_SUCCESS;
  } catch (const PtxError& error) {
    std::fprintf(stderr, "cuModuleLoadData: %s\n", error.what());
    return kInvalidImage;
  }
}
CUresult cuModuleGetFunction(void** function, void* module, const char* name) {
  auto& m = *static_cast<ModuleHandle*>(module);
  for (u32 i = 0; i < m.module->ast->functions.size(); ++i) {
    const FunctionAst& f = m.module->ast->functions[i];
    if (f.name != name || !f.is_entry || !f.has_body) continue;
    FunctionHandle& handle = m.functions[name];
    if (!handle.linked) handle.linked = link_kernel(*m.module, i);
    handle.index = i;
    *function = &handle;
    return CUDA_SUCCESS;
  }
  return kNotFound;
}
CUresult cuFuncSetAttribute(void* function, int attribute, int value) {
  auto& f = *static_cast<FunctionHandle*>(function);
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) f.shared = static_cast<u32>(value);
  else if (attribute == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) f.largest_cluster = value ? 16 : 8;
  else return kInvalidValue;
  return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* c, void* function, void** params, void** extra) {
  auto& f = *static_cast<FunctionHandle*>(function);
  LaunchConfig config;
  config.kernel = f.index;
  config.grid = {c->gridDimX, c->gridDimY, c->gridDimZ};
  config.block = {c->blockDimX, c->blockDimY, c->blockDimZ};
  config.cluster = cluster_of(*c);
  config.dynamic_shared = c->sharedMemBytes;
  const u64 threads = config.block.count(), size = config.cluster.count();
  const bool divides = size && config.grid.x % config.cluster.x == 0 && config.grid.y % config.cluster.y == 0 &&
                       config.grid.z % config.cluster.z == 0;
  if (params || !extra || extra[0] != CU_LAUNCH_PARAM_BUFFER_POINTER || extra[2] != CU_LAUNCH_PARAM_BUFFER_SIZE ||
      extra[4] != CU_LAUNCH_PARAM_END || !divides || size > f.largest_cluster || !threads || threads > 1024 ||
      !config.grid.count() || config.dynamic_shared > f.shared)
    return kInvalidValue;
  const auto* bytes = static_cast<const u8*>(extra[1]);
  config.params.assign(bytes, bytes + *static_cast<const std::size_t*>(extra[3]));
  if (config.params.size() != f.linked->module->param_bytes(f.index)) return kInvalidValue;
  for (const auto& [start, end] : allocations) config.regions.push_back({start, end, true});
  config.seed = 0x5eed;
  config.checks = ~0u;
  config.counters = false;
  const LaunchResult result = run_launch(*f.linked, config);
  for (const Finding& finding : result.findings)
    std::fprintf(stderr, "cuLaunchKernelEx: %s: %s\n", check_name(finding.check), finding.message.c_str());
  if (result.fatal || !result.findings.empty()) pending = kIllegalAddress;
  return CUDA_SUCCESS;
}
CUresult cuCtxSynchronize() { return std::exchange(pending, CUDA_SUCCESS); }

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, u32 rank, void* address, const u64* dims,
                                const u64* strides, const u32* box, const u32* steps, int interleave, int swizzle, int, int fill) {
  tensor::TensorMap m;
  if (rank < 1 || rank > 5 || interleave || fill || !tensor::map_type_from_driver(static_cast<u32>(type), &m.type)) return kInvalidValue;
  if (reinterpret_cast<u64>(map) % 64 || !within(reinterpret_cast<u64>(address), 1)) return kInvalidValue;
  m.rank = rank;
  m.address = reinterpret_cast<u64>(address);
  for (u32 d = 0; d < rank; ++d) {
    m.dim[d] = dims[d];
    m.box[d] = box[d];
    m.element_stride[d] = steps[d];
    if (d) m.stride[d - 1] = strides[d - 1];
  }
  constexpr tensor::Swizzle kinds[] = {tensor::Swizzle::none, tensor::Swizzle::b32, tensor::Swizzle::b64, tensor::Swizzle::b128};
  if (swizzle < 0 || swizzle > 3) return kInvalidValue;
  m.swizzle = kinds[swizzle];
  if (!tensor::tensor_map_reason(m).empty()) return kInvalidValue;
  tensor::encode_tensor_map(m, reinterpret_cast<u8*>(map->opaque));
  return CUDA_SUCCESS;
}

}  // extern "C"
