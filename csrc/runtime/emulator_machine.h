// The emulator as a Machine: runs <module>.ptx, the file that the cubin was assembled from, on host memory.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "emulator/machine.h"
#include "machine.h"

namespace tkpy::runtime {

struct EmulatorOptions {
  std::uint64_t seed = 0;
  std::uint32_t checks = ~0u;  // bit per emulator::Check
  std::uint32_t threads = 1;   // host threads
  std::uint64_t budget = 0;    // warp instructions per CTA; 0: the emulator's own
  int multiprocessors = 132;   // what persistent kernels size their grids by
  bool counters = false;
  bool rough = false;  // as in emulator::LaunchConfig
  std::function<void()> poll;  // as in emulator::LaunchConfig
};

// What all launches of one kernel have counted.
struct KernelCount {
  std::string module;
  const emulator::Module* code = nullptr;
  std::uint64_t launches = 0, sectors_read = 0, sectors_written = 0;  // sectors: distinct ones of each launch
  std::vector<std::vector<emulator::InstrCount>> counters;            // [function][instr]
};

class EmulatorMachine final : public Machine {
 public:
  explicit EmulatorMachine(std::string kernels, EmulatorOptions options = {});
  ~EmulatorMachine() override;

  const char* name() const override { return "emulator"; }
  int multiprocessors(int) override { return options_.multiprocessors; }
  int resident_clusters(const Kernel& kernel, const LaunchSpec& spec) override;
  const Kernel& kernel(std::string_view module, std::string_view entry) override;
  void add_image(std::string_view module, std::string image) override;
  tk::tensor_map encode(const TensorMapSpec& spec) override;

  // Runs to the end. Throws MachineError when anything was found; last() has it all.
  void launch(const Kernel& kernel, const LaunchSpec& spec) override;
  const emulator::LaunchResult& last() const { return last_; }
  const std::map<std::string, KernelCount>& counted() const { return counted_; }  // by kernel
  EmulatorOptions& options() { return options_; }

 private:
  struct EmulatedKernel;
  const emulator::Module& module(const std::string& name);

  std::string kernels_;
  EmulatorOptions options_;
  std::mutex mutex_;  // guards the maps
  std::map<std::string, std::string, std::less<>> images_;
  std::map<std::string, std::unique_ptr<emulator::Module>, std::less<>> modules_;
  std::map<std::string, std::unique_ptr<EmulatedKernel>, std::less<>> found_;
  emulator::LaunchResult last_;
  std::map<std::string, KernelCount> counted_;
};

}  // namespace tkpy::runtime
