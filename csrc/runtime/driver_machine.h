// The CUDA driver as a Machine. libcuda is opened when a DriverMachine is made, never before.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "driver_api.h"
#include "machine.h"

namespace tkpy::runtime {

class DriverMachine final : public Machine {
 public:
  // `kernels`: the folder of the cubins. Throws MachineUnavailable when there is no driver or no device.
  explicit DriverMachine(std::string kernels, const std::string& library = "libcuda.so.1");
  ~DriverMachine() override;
  DriverMachine(const DriverMachine&) = delete;
  DriverMachine& operator=(const DriverMachine&) = delete;

  const char* name() const override { return "cuda"; }
  int multiprocessors(int device) override;
  const Kernel& kernel(std::string_view module, std::string_view entry) override;
  void add_image(std::string_view module, std::string image) override;
  tk::tensor_map encode(const TensorMapSpec& spec) override;
  int resident_clusters(const Kernel& kernel, const LaunchSpec& spec) override;
  void launch(const Kernel& kernel, const LaunchSpec& spec) override;

  // Compute capability as major * 10 + minor.
  int capability(int device);

 private:
  struct DriverKernel;
  class CurrentDevice;
  class RelaxedCapture;
  struct Config;

  void open(const std::string& library);
  int attribute(int which, int device);
  void check(driver::CUresult result, const char* call, const std::string& about = "") const;
  driver::CUcontext primary(int device);
  driver::CUlibrary module(const std::string& name);
  void allow(DriverKernel& kernel, const LaunchSpec& spec);

  std::string kernels_;
  driver::Api api_{};
  std::mutex mutex_;  // guards everything below
  std::map<std::string, std::string, std::less<>> images_;
  std::map<std::string, driver::CUlibrary, std::less<>> modules_;
  std::map<std::string, std::unique_ptr<DriverKernel>, std::less<>> found_;
  std::map<int, driver::CUcontext> primaries_;
  std::map<int, int> multiprocessors_;
};

}  // namespace tkpy::runtime
