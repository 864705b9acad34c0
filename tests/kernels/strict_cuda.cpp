// A libcuda that does nothing and writes down what it is asked, a line of JSON a call, to the file STRICT_CUDA_LOG; what the
// driver's documentation forbids is for test_driver_rules.py to see. Every kernel has a handle of its own.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>

#include "runtime/driver_api.h"

using namespace tkpy::runtime::driver;

namespace {

constexpr int kMultiprocessors = 132, kClustersAtOnce = 14;
std::deque<std::string> kernels;  // a handle is the address of a name

template <class... Args>
CUresult say(const char* format, Args... args) {
  static std::FILE* const log = std::fopen(std::getenv("STRICT_CUDA_LOG"), "a");
  std::fprintf(log, format, args...);
  std::fflush(log);
  return CUDA_SUCCESS;
}
const char* name_of(const void* kernel) { return static_cast<const std::string*>(kernel)->c_str(); }

CUresult init(unsigned) { return CUDA_SUCCESS; }
CUresult text(CUresult, const char** words) { return *words = "none", CUDA_SUCCESS; }
CUresult attribute(int* value, int which, CUdevice) {
  *value = which == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT       ? kMultiprocessors
           : which == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 9
                                                                   : 0;
  return CUDA_SUCCESS;
}
CUresult retain(CUcontext* context, CUdevice) { return *context = nullptr, CUDA_SUCCESS; }
CUresult get_current(CUcontext* context) { return *context = nullptr, CUDA_SUCCESS; }
CUresult set_current(CUcontext) { return CUDA_SUCCESS; }
CUresult get_device(CUdevice* device) { return *device = 0, CUDA_SUCCESS; }
CUresult exchange(int*) { return CUDA_SUCCESS; }
CUresult load(CUlibrary* library, const void*, int*, void**, unsigned, int*, void**, unsigned) {
  return *library = nullptr, CUDA_SUCCESS;
}
CUresult unload(CUlibrary) { return CUDA_SUCCESS; }
CUresult get_kernel(CUkernel* kernel, CUlibrary, const char* name) {
  kernels.emplace_back(name);
  *kernel = reinterpret_cast<CUkernel>(&kernels.back());
  return CUDA_SUCCESS;
}
CUresult set_attribute(int which, int value, CUkernel kernel, CUdevice) {
  return say("{\"allow\": %d, \"value\": %d, \"kernel\": \"%s\"}\n", which, value, name_of(kernel));
}
void attributes(const CUlaunchConfig* c) {
  for (unsigned i = 0; i < c->numAttrs; ++i)
    say("%s[%d, %u, %u, %u]", i ? ", " : "", c->attrs[i].id, c->attrs[i].value.clusterDim.x,
        c->attrs[i].value.clusterDim.y, c->attrs[i].value.clusterDim.z);
}
CUresult launch(const CUlaunchConfig* c, CUfunction kernel, void**, void** extra) {
  say("{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"shared\": %u, \"bytes\": %zu, \"attributes\": [",
      name_of(kernel), c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ,
      c->sharedMemBytes, *static_cast<std::size_t*>(extra[3]));
  attributes(c);
  return say("]}\n");
}
CUresult active_clusters(int* clusters, CUfunction, const CUlaunchConfig*) {
  return *clusters = kClustersAtOnce, CUDA_SUCCESS;
}
CUresult encode(CUtensorMap* map, CUtensorMapDataType type, std::uint32_t rank, void* address,
                const std::uint64_t* dims, const std::uint64_t* strides, const std::uint32_t* box,
                const std::uint32_t* steps, int interleave, int swizzle, int promotion, int fill) {
  say("{\"map\": %d, \"type\": %d, \"address\": %lu, \"modes\": [%d, %d, %d, %d], \"dims\": [",
      static_cast<int>(reinterpret_cast<std::uintptr_t>(map) % 64), type, reinterpret_cast<std::uintptr_t>(address),
      interleave, swizzle, promotion, fill);
  for (std::uint32_t d = 0; d < rank; ++d)
    say("%s[%lu, %lu, %u, %u]", d ? ", " : "", dims[d], d ? strides[d - 1] : 0ul, box[d], steps[d]);
  std::memset(map, 0, sizeof *map);
  return say("]}\n");
}

}  // namespace

extern "C" CUresult cuGetProcAddress_v2(const char* name, void** address, int, std::uint64_t, int*) {
  struct Entry {
    const char* name;
    void* address;
  };
#define ENTRY(NAME, FUNCTION) {#NAME, reinterpret_cast<void*>(static_cast<decltype(Api::NAME)>(FUNCTION))}
  static const Entry entries[] = {
      ENTRY(cuInit, init), ENTRY(cuGetErrorName, text), ENTRY(cuGetErrorString, text),
      ENTRY(cuDeviceGetAttribute, attribute), ENTRY(cuDevicePrimaryCtxRetain, retain),
      ENTRY(cuCtxGetCurrent, get_current), ENTRY(cuCtxSetCurrent, set_current), ENTRY(cuCtxGetDevice, get_device),
      ENTRY(cuThreadExchangeStreamCaptureMode, exchange), ENTRY(cuLibraryLoadData, load),
      ENTRY(cuLibraryUnload, unload), ENTRY(cuLibraryGetKernel, get_kernel),
      ENTRY(cuKernelSetAttribute, set_attribute), ENTRY(cuLaunchKernelEx, launch),
      ENTRY(cuOccupancyMaxActiveClusters, active_clusters), ENTRY(cuTensorMapEncodeTiled, encode)};
#undef ENTRY
  for (const Entry& entry : entries)
    if (std::strcmp(entry.name, name) == 0) return *address = entry.address, CUDA_SUCCESS;
  return 500;
}
