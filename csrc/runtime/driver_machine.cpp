#include "driver_machine.h"

#include <dlfcn.h>

#include <array>

namespace tkpy::runtime {

using namespace driver;

// A kernel, and what has been allowed for it on each device so far.
struct DriverMachine::DriverKernel : Kernel {
  CUkernel handle = nullptr;
  std::map<int, std::uint32_t> shared;  // device -> largest dynamic shared memory
  std::map<int, bool> large_clusters;
  std::map<std::array<std::uint64_t, 4>, int> clusters;  // at once: by device, threads, CTAs, shared memory
};

// Makes `device` current where it is not: a kernel on the null stream runs in the current context, a tensor map is made
// in one, and a thread of autograd's need not have any.
class DriverMachine::CurrentDevice {
 public:
  CurrentDevice(DriverMachine& machine, int device) : machine_(machine) {
    CUdevice current = -1;
    const CUresult result = machine.api_.cuCtxGetDevice(&current);
    if (result == CUDA_SUCCESS && current == device) return;
    if (result != CUDA_SUCCESS && result != CUDA_ERROR_INVALID_CONTEXT) machine.check(result, "cuCtxGetDevice");
    machine.check(machine.api_.cuCtxGetCurrent(&previous_), "cuCtxGetCurrent");
    machine.check(machine.api_.cuCtxSetCurrent(machine.primary(device)), "cuCtxSetCurrent");
    changed_ = true;
  }
  ~CurrentDevice() {
    if (changed_) machine_.api_.cuCtxSetCurrent(previous_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  DriverMachine& machine_;
  CUcontext previous_ = nullptr;
  bool changed_ = false;
};

// While a CUDA graph is captured, the driver refuses calls that no graph can hold, from every thread: loading a kernel is
// one, at its first launch too, where loading is lazy. What is loaded here is no part of the graph and stays: it may.
class DriverMachine::RelaxedCapture {
 public:
  explicit RelaxedCapture(DriverMachine& machine) : machine_(machine) {
    machine.check(machine.api_.cuThreadExchangeStreamCaptureMode(&mode_), "cuThreadExchangeStreamCaptureMode");
  }
  ~RelaxedCapture() { machine_.api_.cuThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  DriverMachine& machine_;
  int mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

DriverMachine::DriverMachine(std::string kernels, const std::string& library) : kernels_(std::move(kernels)) {
  open(library);
  if (const CUresult result = api_.cuInit(0); result != CUDA_SUCCESS) {
    const char* name = nullptr;
    if (api_.cuGetErrorName(result, &name) != CUDA_SUCCESS || !name) name = "an unknown error";
    throw MachineUnavailable("the CUDA driver cannot start: cuInit failed with " + std::string(name));
  }
}

DriverMachine::~DriverMachine() = default;  // modules stay loaded: at process exit the driver may be gone already

void DriverMachine::open(const std::string& library) {
  void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* why = dlerror();
    throw MachineUnavailable("the CUDA driver is not installed: " + std::string(why ? why : library.c_str()));
  }
  using GetProcAddress = CUresult (*)(const char*, void**, int, std::uint64_t, int*);
  const auto get = reinterpret_cast<GetProcAddress>(dlsym(handle, "cuGetProcAddress_v2"));
  if (!get) throw MachineUnavailable(library + " has no cuGetProcAddress_v2: a driver of CUDA 12.0 or newer is needed");
  const auto find = [&](auto& entry, const char* name) {
    constexpr int kVersion = 12000;  // the signatures of driver_api.h are those of CUDA 12.0
    void* address = nullptr;
    int status = 0;
    if (get(name, &address, kVersion, 0, &status) != CUDA_SUCCESS || !address)
      throw MachineUnavailable(library + " has no " + name + ": a driver of CUDA 12.0 or newer is needed");
    entry = reinterpret_cast<std::remove_reference_t<decltype(entry)>>(address);
  };
#define TKPY_FIND(NAME) find(api_.NAME, #NAME)
  TKPY_FIND(cuInit);
  TKPY_FIND(cuGetErrorName);
  TKPY_FIND(cuGetErrorString);
  TKPY_FIND(cuDeviceGetAttribute);
  TKPY_FIND(cuDevicePrimaryCtxRetain);
  TKPY_FIND(cuCtxGetCurrent);
  TKPY_FIND(cuCtxSetCurrent);
  TKPY_FIND(cuCtxGetDevice);
  TKPY_FIND(cuThreadExchangeStreamCaptureMode);
  TKPY_FIND(cuLibraryLoadData);
  TKPY_FIND(cuLibraryUnload);
  TKPY_FIND(cuLibraryGetKernel);
  TKPY_FIND(cuKernelSetAttribute);
  TKPY_FIND(cuLaunchKernelEx);
  TKPY_FIND(cuOccupancyMaxActiveClusters);
  TKPY_FIND(cuTensorMapEncodeTiled);
#undef TKPY_FIND
}

void DriverMachine::check(CUresult result, const char* call, const std::string& about) const {
  if (result == CUDA_SUCCESS) return;
  const char* name = nullptr;
  const char* text = nullptr;
  if (api_.cuGetErrorName(result, &name) != CUDA_SUCCESS || !name) name = "unknown error";
  if (api_.cuGetErrorString(result, &text) != CUDA_SUCCESS || !text) text = "no description";
  throw MachineError(std::string(call) + " failed: " + name + " (" + text + ')' + (about.empty() ? "" : ": " + about));
}

int DriverMachine::attribute(int which, int device) {
  int value = 0;
  check(api_.cuDeviceGetAttribute(&value, which, device), "cuDeviceGetAttribute", "device " + std::to_string(device));
  return value;
}

int DriverMachine::multiprocessors(int device) {
  const std::lock_guard lock(mutex_);
  auto [entry, fresh] = multiprocessors_.try_emplace(device, 0);
  if (fresh) entry->second = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);
  return entry->second;
}

int DriverMachine::capability(int device) {
  return attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device) * 10 +
         attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
}

CUcontext DriverMachine::primary(int device) {
  const std::lock_guard lock(mutex_);
  CUcontext& context = primaries_[device];
  if (!context)
    check(api_.cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain",
          "device " + std::to_string(device));
  return context;
}

void DriverMachine::add_image(std::string_view module, std::string image) {
  const std::lock_guard lock(mutex_);
  if (modules_.find(module) != modules_.end()) throw MachineError(std::string(module) + " has been loaded already");
  images_.insert_or_assign(std::string(module), std::move(image));
}

// Libraries, unlike modules, belong to no context: one load serves every device.
CUlibrary DriverMachine::module(const std::string& name) {
  if (const auto entry = modules_.find(name); entry != modules_.end()) return entry->second;
  auto image = images_.find(name);
  if (image == images_.end()) image = images_.emplace(name, read_image(kernels_ + "/" + name + ".cubin")).first;
  CUlibrary library = nullptr;
  check(api_.cuLibraryLoadData(&library, image->second.c_str(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        "cuLibraryLoadData", "module " + name);
  modules_.emplace(name, library);
  images_.erase(image);  // the driver keeps its own copy
  return library;
}

const Kernel& DriverMachine::kernel(std::string_view module_name, std::string_view entry) {
  const std::string key = std::string(module_name) + '\n' + std::string(entry);
  const std::lock_guard lock(mutex_);
  if (const auto known = found_.find(key); known != found_.end()) return *known->second;
  const RelaxedCapture relaxed(*this);
  auto made = std::make_unique<DriverKernel>();
  made->name = entry;
  check(api_.cuLibraryGetKernel(&made->handle, module(std::string(module_name)), made->name.c_str()),
        "cuLibraryGetKernel", "kernel " + made->name + " of module " + std::string(module_name));
  return *found_.emplace(key, std::move(made)).first->second;
}

tk::tensor_map DriverMachine::encode(const TensorMapSpec& spec) {
  if (const std::string rule = broken_rule(spec); !rule.empty()) throw MachineError("tensor map: " + rule);
  constexpr CUtensorMapDataType types[] = {
      CU_TENSOR_MAP_DATA_TYPE_UINT8,    CU_TENSOR_MAP_DATA_TYPE_UINT8,   CU_TENSOR_MAP_DATA_TYPE_UINT16,
      CU_TENSOR_MAP_DATA_TYPE_INT32,    CU_TENSOR_MAP_DATA_TYPE_INT64,   CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
      CU_TENSOR_MAP_DATA_TYPE_UINT8,    CU_TENSOR_MAP_DATA_TYPE_UINT8};
  const int swizzle = spec.swizzle == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                      : spec.swizzle == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                      : spec.swizzle == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                           : CU_TENSOR_MAP_SWIZZLE_NONE;
  const int promotion = spec.l2_promotion == 256   ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B
                        : spec.l2_promotion == 128 ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B
                        : spec.l2_promotion == 64  ? CU_TENSOR_MAP_L2_PROMOTION_L2_64B
                                                   : CU_TENSOR_MAP_L2_PROMOTION_NONE;
  const CurrentDevice current(*this, spec.device);
  CUtensorMap map{};
  check(
      api_.cuTensorMapEncodeTiled(&map, types[static_cast<int>(spec.dtype)], static_cast<std::uint32_t>(spec.rank),
                                  spec.address, spec.dims, spec.strides + 1, spec.box, spec.element_strides,
                                  CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
      "cuTensorMapEncodeTiled");
  tk::tensor_map result;
  static_assert(sizeof result == sizeof map);
  for (int i = 0; i < 16; ++i) result.opaque[i] = map.opaque[i];
  return result;
}

// More than 48 KiB of dynamic shared memory, and clusters of more than 8, must be allowed once per kernel and device.
void DriverMachine::allow(DriverKernel& kernel, const LaunchSpec& spec) {
  const std::lock_guard lock(mutex_);
  std::uint32_t& shared = kernel.shared.try_emplace(spec.device, 48u * 1024).first->second;
  if (spec.shared > shared) {
    check(api_.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, static_cast<int>(spec.shared),
                                    kernel.handle, spec.device),
          "cuKernelSetAttribute(MAX_DYNAMIC_SHARED_SIZE_BYTES)", describe(kernel, spec));
    shared = spec.shared;
  }
  bool& large = kernel.large_clusters[spec.device];
  if (spec.cluster.count() > 8 && !large) {
    check(api_.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1, kernel.handle, spec.device),
          "cuKernelSetAttribute(NON_PORTABLE_CLUSTER_SIZE_ALLOWED)", describe(kernel, spec));
    large = true;
  }
}

// A launch as the driver takes it. The configuration points to the attributes beside it.
struct DriverMachine::Config {
  CUlaunchAttribute attributes[3] = {};
  CUlaunchConfig config{};

  Config(const LaunchSpec& spec, bool of_clusters);
  Config(const Config&) = delete;
  Config& operator=(const Config&) = delete;
};

DriverMachine::Config::Config(const LaunchSpec& spec, bool of_clusters) {
  unsigned int count = 0;
  if (of_clusters) {
    CUlaunchAttribute& cluster = attributes[count++];
    cluster.id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    cluster.value.clusterDim = {spec.cluster.x, spec.cluster.y, spec.cluster.z};
  }
  if (spec.dependent) {
    CUlaunchAttribute& dependent = attributes[count++];
    dependent.id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    dependent.value.programmaticStreamSerializationAllowed = 1;
  }
  if (spec.cooperative) {
    CUlaunchAttribute& cooperative = attributes[count++];
    cooperative.id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
    cooperative.value.cooperative = 1;
  }
  config.gridDimX = spec.grid.x, config.gridDimY = spec.grid.y, config.gridDimZ = spec.grid.z;
  config.blockDimX = spec.block.x, config.blockDimY = spec.block.y, config.blockDimZ = spec.block.z;
  config.sharedMemBytes = spec.shared;
  config.hStream = static_cast<CUstream>(spec.stream);
  config.attrs = count ? attributes : nullptr;
  config.numAttrs = count;
}

int DriverMachine::resident_clusters(const Kernel& kernel, const LaunchSpec& spec) {
  auto& found = const_cast<DriverKernel&>(static_cast<const DriverKernel&>(kernel));  // made by this machine
  const std::array<std::uint64_t, 4> key = {static_cast<std::uint64_t>(spec.device), spec.block.count(),
                                            spec.cluster.count(), spec.shared};
  {
    const std::lock_guard lock(mutex_);
    if (const auto known = found.clusters.find(key); known != found.clusters.end()) return known->second;
  }
  const CurrentDevice current(*this, spec.device);
  const RelaxedCapture relaxed(*this);
  allow(found, spec);
  LaunchSpec one = spec;
  one.grid = spec.cluster;  // the driver wants whole clusters
  const Config of_one(one, true);
  int clusters = 0;
  check(api_.cuOccupancyMaxActiveClusters(&clusters, reinterpret_cast<CUfunction>(found.handle), &of_one.config),
        "cuOccupancyMaxActiveClusters", describe(kernel, one));
  if (clusters < 1) throw MachineError("the device holds no cluster of this launch: " + describe(kernel, one));
  const std::lock_guard lock(mutex_);
  return found.clusters.emplace(key, clusters).first->second;
}

void DriverMachine::launch(const Kernel& kernel, const LaunchSpec& spec) {
  auto& found = const_cast<DriverKernel&>(static_cast<const DriverKernel&>(kernel));  // made by this machine
  const CurrentDevice current(*this, spec.device);
  const RelaxedCapture relaxed(*this);
  allow(found, spec);
  const Config launch(spec, spec.cluster.count() > 1);

  std::size_t bytes = spec.params.size();
  void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, const_cast<std::byte*>(spec.params.data()),
                   CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes, CU_LAUNCH_PARAM_END};
  // A CUkernel stands for a CUfunction here (CUDA driver API, cuLaunchKernelEx).
  check(api_.cuLaunchKernelEx(&launch.config, reinterpret_cast<CUfunction>(found.handle), nullptr, extra), "cuLaunchKernelEx",
        describe(kernel, spec));
}

}  // namespace tkpy::runtime
