// Fuzz target: any bytes are loaded as PTX, and every kernel in them is linked and run for a few instructions on buffers
// that belong to it alone. Whatever the bytes are, this ends, touches nothing else and leaks nothing.
//
// libFuzzer calls LLVMFuzzerTestOneInput (make fuzz); with FUZZ_MAIN it is a program that runs the files it is given,
// for AFL++ and for the inputs of old faults (test_fuzz_target.py).
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "machine.h"

using namespace tkpy::emulator;

namespace {

constexpr u64 kBuffer = 4096;

// A pointer where one may be meant, a tensor map where there is room for one, odd numbers elsewhere.
std::vector<u8> parameters(const FunctionAst& function, u64 bytes, u64 address) {
  std::vector<u8> block(bytes);
  for (u64 i = 0; i < bytes; ++i) block[i] = static_cast<u8>(i * 37 + 1);
  u64 at = 0;
  for (const Param& p : function.params) {
    at = align_up(at, p.align);
    if (p.bytes() >= tensor::kTensorMapBytes) {
      tensor::TensorMap map;
      map.type = tensor::MapType::u16;
      map.rank = 2, map.address = address;
      map.dim[0] = 16, map.dim[1] = 32, map.stride[0] = 32;
      map.box[0] = 16, map.box[1] = 8, map.element_stride[0] = map.element_stride[1] = 1;
      tensor::encode_tensor_map(map, block.data() + at);
    } else if (p.bytes() == 8) {
      std::memcpy(block.data() + at, &address, 8);
    }
    at += p.bytes();
  }
  return block;
}

void run(const Module& module, u32 kernel, std::size_t variety) {
  alignas(128) static u8 buffer[kBuffer];
  std::memset(buffer, 0, sizeof buffer);
  const u64 address = reinterpret_cast<u64>(buffer);
  const FunctionAst& function = module.ast->functions[kernel];
  if (module.param_bytes(kernel) > 32764) return;  // refused by the layer above
  const auto linked = link_kernel(module, kernel);
  LaunchConfig config;
  config.kernel = kernel;
  config.cluster = {1 + static_cast<u32>(variety % 2), 1, 1};
  config.grid = {config.cluster.x * (1 + static_cast<u32>(variety / 2 % 2)), 1, 1};
  config.block = {variety % 3 == 0 ? 128u : variety % 3 == 1 ? 33u : 64u, 1, 1};
  config.dynamic_shared = linked->static_shared < kMaxShared - 8192 ? 4096 : 0;
  config.params = parameters(function, module.param_bytes(kernel), address);
  config.regions = {{address, address + kBuffer / 2, true}, {address + kBuffer / 2, address + kBuffer, false}};
  config.seed = variety;
  config.checks = ~0u;
  config.budget = 400;
  config.threads = 1;
  run_launch(*linked, config);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const u8* data, std::size_t size) {
  try {
    const auto module = load_module(std::string(reinterpret_cast<const char*>(data), size));
    u32 kernels = 0;
    for (u32 i = 0; i < module->ast->functions.size() && kernels < 3; ++i) {
      if (!module->ast->functions[i].is_entry || !module->ast->functions[i].has_body) continue;
      ++kernels;
      run(*module, i, size);
    }
  } catch (const PtxError&) {
  }
  return 0;
}

#ifdef FUZZ_MAIN
#include <cstdio>
#include <fstream>
#include <sstream>

int main(int count, char** paths) {
  for (int i = 1; i < count; ++i) {
    std::ifstream file(paths[i], std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    const std::string bytes = text.str();
    std::printf("%s\n", paths[i]);
    std::fflush(stdout);
    LLVMFuzzerTestOneInput(reinterpret_cast<const u8*>(bytes.data()), bytes.size());
  }
}
#endif
