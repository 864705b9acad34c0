// Drives the runtime for tests/kernels/test_runtime.py: `runtime_main <scenario> <library> [arguments]`. What the fake
// driver records and what is thrown both go to stdout.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>

#include "kernels/gemm/launch.h"
#include "runtime/driver_machine.h"

using namespace tkpy::runtime;

namespace {

View matrix(void* data, DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t s0, std::int64_t s1) {
  View v;
  v.data = data;
  v.dtype = dtype;
  v.rank = 2;
  v.shape[0] = rows, v.shape[1] = cols;
  v.stride[0] = s0, v.stride[1] = s1;
  v.device = 0;
  return v;
}

void* at(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

struct TwoInts {
  int a, b;
};

LaunchSpec spec_of(const TwoInts& params) {
  LaunchSpec spec;
  spec.grid = {6, 2, 1};
  spec.block = {384, 1, 1};
  spec.cluster = {2, 1, 1};
  spec.shared = 100000;
  spec.params = bytes_of(params);
  spec.stream = at(0x5000);
  spec.device = 0;
  return spec;
}

void launch(DriverMachine& machine) {
  machine.add_image("mod", "the image");
  const TwoInts params{1, 0x01020304};
  LaunchSpec spec = spec_of(params);
  machine.launch(machine.kernel("mod", "entry"), spec);
  machine.launch(machine.kernel("mod", "entry"), spec);  // nothing is loaded or allowed twice
  spec.cluster = {1, 1, 1};
  spec.shared = 0;
  spec.device = 1;  // not the current device
  machine.launch(machine.kernel("mod", "entry"), spec);
  spec.cluster = {16, 1, 1};
  spec.grid = {16, 1, 1};
  spec.device = 0;
  spec.dependent = true;
  machine.launch(machine.kernel("mod", "entry"), spec);
  spec.cooperative = true;
  machine.launch(machine.kernel("mod", "entry"), spec);
  std::printf("capability %d\n", machine.capability(0));
}

void clusters(DriverMachine& machine) {
  machine.add_image("mod", "the image");
  const TwoInts params{1, 2};
  LaunchSpec spec = spec_of(params);
  const Kernel& kernel = machine.kernel("mod", "entry");
  std::printf("clusters %d\n", machine.resident_clusters(kernel, spec));
  std::printf("clusters %d\n", machine.resident_clusters(kernel, spec));  // asked once
  spec.cluster = {16, 1, 1};
  spec.device = 1;
  std::printf("clusters %d\n", machine.resident_clusters(kernel, spec));
}

void encode(DriverMachine& machine) {
  const View v = matrix(at(0x10000), DType::bf16, 100, 72, 80, 1);
  const std::uint32_t box[] = {64, 32};
  const tk::tensor_map map = machine.encode(tensor_map_of(v, box, 64));
  std::printf("opaque %llx %llx\n", map.opaque[0], map.opaque[15]);
}

void rules(DriverMachine& machine) {
  const View good = matrix(at(0x10000), DType::bf16, 100, 72, 80, 1);
  const std::uint32_t box[] = {64, 32};
  const auto attempt = [&](const std::function<void(TensorMapSpec&)>& change) {
    TensorMapSpec spec = tensor_map_of(good, box, 64);
    change(spec);
    try {
      machine.encode(spec);
      std::printf("accepted\n");
    } catch (const MachineError& error) {
      std::printf("%s\n", error.what());
    }
  };
  attempt([](auto& s) { s.rank = 6; });
  attempt([](auto& s) { s.address = at(0x10008); });
  attempt([](auto& s) { s.dims[1] = 0; });
  attempt([](auto& s) { s.box[1] = 257; });
  attempt([](auto& s) { s.strides[1] = 150; });
  attempt([](auto& s) { s.box[0] = 4; });
  attempt([](auto& s) { s.box[0] = 64; });
  attempt([](auto& s) { s.element_strides[0] = 9; });
  attempt([](auto& s) { s.swizzle = 16; });
  try {
    tensor_map_of(matrix(at(0x10000), DType::bf16, 100, 72, 1, 100), box, 64);
  } catch (const MachineError& error) {
    std::printf("%s\n", error.what());
  }
}

// gemm m k n a_stride0 a_stride1 b_stride0 b_stride1
void gemm(DriverMachine& machine, char** argument) {
  const auto number = [&](int i) { return std::atoll(argument[i]); };
  const std::int64_t m = number(0), k = number(1), n = number(2);
  tkpy::gemm::Arguments x;
  x.a = matrix(at(0x10000), DType::bf16, m, k, number(3), number(4));
  x.b = matrix(at(0x20000), DType::bf16, k, n, number(5), number(6));
  x.out = matrix(at(0x30000), DType::bf16, m, n, n, 1);
  x.activation = tkpy::gemm::activation_from_name("silu");
  machine.add_image("gemm", "gemm image");
  if (const std::string why = tkpy::gemm::refusal(x); !why.empty()) std::printf("refused %s\n", why.c_str());
  tkpy::gemm::launch(machine, x);
}

void refusals() {
  const View a = matrix(at(0x10000), DType::bf16, 8, 16, 16, 1), b = matrix(at(0x20000), DType::bf16, 16, 24, 24, 1),
             out = matrix(at(0x30000), DType::bf16, 8, 24, 24, 1);
  const auto say = [&](const std::function<void(tkpy::gemm::Arguments&)>& change) {
    tkpy::gemm::Arguments x;
    x.a = a, x.b = b, x.out = out;
    change(x);
    std::printf("%s\n", tkpy::gemm::refusal(x).c_str());
  };
  say([](auto&) {});
  say([](auto& x) { x.a.rank = 1; });
  say([](auto& x) { x.a.dtype = DType::f32; });
  say([](auto& x) { x.b.shape[0] = 15; });
  say([](auto& x) { x.b.dtype = DType::f16; });
  say([](auto& x) { x.out.device = 1; });
  say([](auto& x) { x.out.stride[1] = 2; });
  say([](auto& x) { x.a.stride[0] = 32, x.a.stride[1] = 2; });
  say([](auto& x) { x.bias = x.a; });
  say([](auto& x) { x.residual = x.a; });
  try {
    tkpy::gemm::activation_from_name("mish");
  } catch (const std::invalid_argument& error) {
    std::printf("%s\n", error.what());
  }
}

void timing(DriverMachine& machine) {
  machine.add_image("gemm", "gemm image");
  tkpy::gemm::Arguments x;
  x.a = matrix(at(0x10000), DType::bf16, 512, 512, 512, 1);
  x.b = matrix(at(0x20000), DType::bf16, 512, 512, 512, 1);
  x.out = matrix(at(0x30000), DType::bf16, 512, 512, 512, 1);
  tkpy::gemm::launch(machine, x);
  constexpr int kLaunches = 20000;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kLaunches; ++i) tkpy::gemm::launch(machine, x);
  const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - start;
  std::printf("microseconds %.3f\n", spent.count() / kLaunches);
}

}  // namespace

int main(int count, char** values) {
  const std::string scenario = count > 1 ? values[1] : "";
  try {
    if (scenario == "refusals") return refusals(), 0;
    DriverMachine machine("/nonexistent", values[2]);
    if (scenario == "launch") launch(machine);
    if (scenario == "clusters") clusters(machine);
    if (scenario == "encode") encode(machine);
    if (scenario == "rules") rules(machine);
    if (scenario == "gemm") gemm(machine, values + 3);
    if (scenario == "timing") timing(machine);
    if (scenario == "missing_image") machine.kernel("absent", "entry");
  } catch (const MachineUnavailable& error) {
    std::printf("unavailable: %s\n", error.what());
  } catch (const MachineError& error) {
    std::printf("error: %s\n", error.what());
  } catch (const std::invalid_argument& error) {
    std::printf("invalid: %s\n", error.what());
  }
  return 0;
}
