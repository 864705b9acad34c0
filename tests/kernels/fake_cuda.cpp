// A libcuda that writes down what it is asked. FAKE_FAIL="cuLaunchKernelEx=1" makes one call fail with that code;
// FAKE_LACKS="cuLibraryLoadData" hides an entry point; FAKE_QUIET=1 records nothing (for timing); FAKE_CAPTURING=1: a
// graph is being captured, and calls that may load something are refused in a thread that has not relaxed its mode.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include "runtime/driver_api.h"

using namespace tkpy::runtime::driver;

namespace {

int current_device = 0;  // -1: no current context
int capture_mode = 0;    // of the one thread: 0 global, 2 relaxed
CUcontext contexts[4] = {};

bool quiet() {
  static const bool value = std::getenv("FAKE_QUIET") != nullptr;
  return value;
}

template <class... Args>
void record(const char* format, Args... args) {
  if (quiet()) return;
  std::printf(format, args...);
  std::printf("\n");
}

CUresult outcome(const char* call) {
  if (quiet()) return CUDA_SUCCESS;
  const char* fail = std::getenv("FAKE_FAIL");
  const std::string prefix = std::string(call) + "=";
  return fail && std::strncmp(fail, prefix.c_str(), prefix.size()) == 0 ? std::atoi(fail + prefix.size())
                                                                        : CUDA_SUCCESS;
}

// Of calls that may load something: the driver keeps them out of captures.
CUresult unless_captured(const char* call) {
  constexpr CUresult kCaptureUnsupported = 900;
  return std::getenv("FAKE_CAPTURING") && capture_mode != CU_STREAM_CAPTURE_MODE_RELAXED ? kCaptureUnsupported
                                                                                         : outcome(call);
}

CUresult init(unsigned flags) {
  record("cuInit %u", flags);
  return outcome("cuInit");
}
CUresult error_name(CUresult error, const char** text) {
  *text = error == 1 ? "CUDA_ERROR_INVALID_VALUE" : error == 100 ? "CUDA_ERROR_NO_DEVICE" : nullptr;
  return *text ? CUDA_SUCCESS : 1;
}
CUresult error_string(CUresult error, const char** text) {
  *text = error == 1 ? "invalid argument" : nullptr;
  return *text ? CUDA_SUCCESS : 1;
}
CUresult device_attribute(int* value, int attribute, CUdevice device) {
  record("cuDeviceGetAttribute %d device %d", attribute, device);
  *value = attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT       ? 132
           : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR ? 9
                                                                       : 0;
  return outcome("cuDeviceGetAttribute");
}
CUresult retain(CUcontext* context, CUdevice device) {
  record("cuDevicePrimaryCtxRetain %d", device);
  *context = reinterpret_cast<CUcontext>(static_cast<std::uintptr_t>(0x1000 + device));
  contexts[device] = *context;
  return outcome("cuDevicePrimaryCtxRetain");
}
CUresult get_current(CUcontext* context) {
  *context =
      current_device < 0 ? nullptr : reinterpret_cast<CUcontext>(static_cast<std::uintptr_t>(0x1000 + current_device));
  return CUDA_SUCCESS;
}
CUresult set_current(CUcontext context) {
  current_device = context ? static_cast<int>(reinterpret_cast<std::uintptr_t>(context) - 0x1000) : -1;
  record("cuCtxSetCurrent device %d", current_device);
  return CUDA_SUCCESS;
}
CUresult get_device(CUdevice* device) {
  if (current_device < 0) return CUDA_ERROR_INVALID_CONTEXT;
  *device = current_device;
  return CUDA_SUCCESS;
}
CUresult exchange_mode(int* mode) {
  std::swap(*mode, capture_mode);
  return outcome("cuThreadExchangeStreamCaptureMode");
}
CUresult load(CUlibrary* library, const void* code, int*, void**, unsigned jit, int*, void**, unsigned options) {
  record("cuLibraryLoadData \"%s\" options %u %u", static_cast<const char*>(code), jit, options);
  *library = reinterpret_cast<CUlibrary>(std::uintptr_t{0x77});
  return unless_captured("cuLibraryLoadData");
}
CUresult unload(CUlibrary) { return CUDA_SUCCESS; }
CUresult get_kernel(CUkernel* kernel, CUlibrary library, const char* name) {
  record("cuLibraryGetKernel %s library %d", name, library == reinterpret_cast<CUlibrary>(std::uintptr_t{0x77}));
  *kernel = reinterpret_cast<CUkernel>(std::uintptr_t{0x99});
  return outcome("cuLibraryGetKernel");
}
CUresult set_attribute(int attribute, int value, CUkernel, CUdevice device) {
  record("cuKernelSetAttribute %d = %d device %d", attribute, value, device);
  return unless_captured("cuKernelSetAttribute");
}
CUresult launch(const CUlaunchConfig* c, CUfunction function, void** params, void** extra) {
  if (quiet()) return CUDA_SUCCESS;
  std::printf("cuLaunchKernelEx grid %u %u %u block %u %u %u shared %u stream %lx device %d kernel %lx params %d\n",
              c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ, c->sharedMemBytes,
              reinterpret_cast<unsigned long>(c->hStream), current_device, reinterpret_cast<unsigned long>(function),
              params != nullptr);
  for (unsigned i = 0; i < c->numAttrs; ++i)
    std::printf("attribute %d %u %u %u\n", c->attrs[i].id, c->attrs[i].value.clusterDim.x,
                c->attrs[i].value.clusterDim.y, c->attrs[i].value.clusterDim.z);
  const bool shaped = extra[0] == CU_LAUNCH_PARAM_BUFFER_POINTER && extra[2] == CU_LAUNCH_PARAM_BUFFER_SIZE &&
                      extra[4] == CU_LAUNCH_PARAM_END;
  const std::size_t size = *static_cast<std::size_t*>(extra[3]);
  std::printf("parameters %d bytes %zu:", shaped, size);
  for (std::size_t i = 0; i < size && i < 64; ++i) std::printf(" %02x", static_cast<unsigned char*>(extra[1])[i]);
  std::printf("\n");
  return unless_captured("cuLaunchKernelEx");  // the first one loads the kernel
}
CUresult active_clusters(int* clusters, CUfunction function, const CUlaunchConfig* c) {
  record("cuOccupancyMaxActiveClusters grid %u %u %u block %u shared %u device %d kernel %lx cluster %u", c->gridDimX, c->gridDimY,
         c->gridDimZ, c->blockDimX, c->sharedMemBytes, current_device, reinterpret_cast<unsigned long>(function),
         c->numAttrs ? c->attrs[0].value.clusterDim.x : 1);
  const char* given = std::getenv("FAKE_CLUSTERS");
  *clusters = given ? std::atoi(given) : 15;
  return unless_captured("cuOccupancyMaxActiveClusters");
}
CUresult encode(CUtensorMap* map, CUtensorMapDataType type, std::uint32_t rank, void* address,
                const std::uint64_t* dims, const std::uint64_t* strides, const std::uint32_t* box,
                const std::uint32_t* steps, int interleave, int swizzle, int promotion, int fill) {
  if (!quiet()) {
    std::printf("cuTensorMapEncodeTiled type %d rank %u address %lx interleave %d swizzle %d promotion %d fill %d\n",
                type, rank, reinterpret_cast<unsigned long>(address), interleave, swizzle, promotion, fill);
    for (std::uint32_t d = 0; d < rank; ++d)
      std::printf("dim %lu box %u step %u stride %lu\n", static_cast<unsigned long>(dims[d]), box[d], steps[d],
                  d + 1 < rank ? static_cast<unsigned long>(strides[d]) : 0ul);
  }
  for (std::uint64_t i = 0; i < 16; ++i) map->opaque[i] = 0xabc0 + i;
  if (current_device < 0) return CUDA_ERROR_INVALID_CONTEXT;
  return outcome("cuTensorMapEncodeTiled");
}

}  // namespace

extern "C" CUresult cuGetProcAddress_v2(const char* name, void** address, int version, std::uint64_t, int* status) {
  struct Entry {
    const char* name;
    void* address;
  };
#define ENTRY(NAME, FUNCTION)                                                  \
  {                                                                            \
    #NAME, reinterpret_cast<void*>(static_cast<decltype(Api::NAME)>(FUNCTION)) \
  }
  static const Entry entries[] = {ENTRY(cuInit, init),
                                  ENTRY(cuGetErrorName, error_name),
                                  ENTRY(cuGetErrorString, error_string),
                                  ENTRY(cuDeviceGetAttribute, device_attribute),
                                  ENTRY(cuDevicePrimaryCtxRetain, retain),
                                  ENTRY(cuCtxGetCurrent, get_current),
                                  ENTRY(cuCtxSetCurrent, set_current),
                                  ENTRY(cuCtxGetDevice, get_device),
                                  ENTRY(cuThreadExchangeStreamCaptureMode, exchange_mode),
                                  ENTRY(cuLibraryLoadData, load),
                                  ENTRY(cuLibraryUnload, unload),
                                  ENTRY(cuLibraryGetKernel, get_kernel),
                                  ENTRY(cuKernelSetAttribute, set_attribute),
                                  ENTRY(cuLaunchKernelEx, launch),
                                  ENTRY(cuOccupancyMaxActiveClusters, active_clusters),
                                  ENTRY(cuTensorMapEncodeTiled, encode)};
#undef ENTRY
  const char* lacks = std::getenv("FAKE_LACKS");
  if (const char* start = std::getenv("FAKE_DEVICE")) current_device = std::atoi(start);
  *address = nullptr;
  *status = 1;
  for (const Entry& e : entries)
    if (std::strcmp(e.name, name) == 0 && version == 12000 && !(lacks && std::strcmp(lacks, name) == 0)) {
      *address = e.address;
      *status = 0;
      return CUDA_SUCCESS;
    }
  return 500;
}
