// Programs on a Machine: `machine_main <emulator|cuda> <scenario> <kernel folder> [arguments]`, for test_emulated.py and
// test_gpu.py. The same programs and the same references on both machines.
#include <dlfcn.h>

#include <chrono>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/gemm/launch.h"
#include "runtime/driver_machine.h"
#include "runtime/emulator_machine.h"

using namespace tkpy::runtime;

namespace {

// Where a machine's kernels find their data. For the emulator: where the host has it.
struct Memory {
  virtual ~Memory() = default;
  virtual void* place(void* host, std::size_t) { return host; }
  virtual void upload(void*, const void*, std::size_t) {}
  virtual void download(void*, const void*, std::size_t) {}
  virtual void finish() {}
};

// Device 0, through libcuda, for as long as the program runs.
class DeviceMemory final : public Memory {
 public:
  DeviceMemory() : library_(dlopen("libcuda.so.1", RTLD_NOW)) {
    if (!library_) throw MachineUnavailable("the CUDA driver is not installed");
    void* context = nullptr;
    call("cuInit", 0u);
    call("cuDevicePrimaryCtxRetain", &context, 0);
    call("cuCtxSetCurrent", context);
  }
  void* place(void*, std::size_t bytes) override {
    std::uint64_t device = 0;
    call("cuMemAlloc_v2", &device, bytes);
    return reinterpret_cast<void*>(device);
  }
  void upload(void* device, const void* host, std::size_t bytes) override {
    call("cuMemcpyHtoD_v2", reinterpret_cast<std::uint64_t>(device), host, bytes);
  }
  void download(void* host, const void* device, std::size_t bytes) override {
    call("cuMemcpyDtoH_v2", host, reinterpret_cast<std::uint64_t>(device), bytes);
  }
  void finish() override { call("cuCtxSynchronize"); }

 private:
  template <class... Args>
  void call(const char* name, Args... args) {
    const auto function = reinterpret_cast<int (*)(Args...)>(dlsym(library_, name));
    const int result = function ? function(args...) : -1;
    if (result != 0) throw MachineError(std::string(name) + " failed with " + std::to_string(result));
  }
  void* library_;
};

std::unique_ptr<Memory> memory;

// `count` bf16 numbers with guard bands of NaN on both sides; 64-byte aligned.
class Buffer {
 public:
  explicit Buffer(std::int64_t count)
      : count_(static_cast<std::size_t>(count)), words_(count_ + 2 * kGuard + 32, 0x7fff) {
    const auto start = reinterpret_cast<std::uintptr_t>(words_.data() + kGuard);
    first_ = kGuard + ((64 - start % 64) % 64) / 2;
    device_ = memory->place(words_.data(), bytes());
    // The device's allocation is aligned by itself, the host's vector is not.
    if (device_ != words_.data()) first_ = kGuard;
  }
  std::uint16_t* data() { return words_.data() + first_; }
  void* device() { return static_cast<std::uint16_t*>(device_) + first_; }
  void upload() { memory->upload(device_, words_.data(), bytes()); }
  void download() { memory->download(words_.data(), device_, bytes()); }
  bool guarded() const {
    for (std::size_t i = 0; i < words_.size(); ++i)
      if ((i < first_ || i >= first_ + count_) && words_[i] != 0x7fff) return false;
    return true;
  }

 private:
  std::size_t bytes() const { return words_.size() * sizeof words_[0]; }
  static constexpr std::size_t kGuard = 64;
  std::size_t count_, first_ = 0;
  std::vector<std::uint16_t> words_;
  void* device_;
};

std::uint16_t to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
double from_bf16(std::uint16_t half) {
  const std::uint32_t bits = std::uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

std::uint32_t rng = 12345;
float uniform() {
  rng = rng * 1664525u + 1013904223u;
  return static_cast<float>(rng >> 8) / 8388608.0f - 1.0f;
}

struct Matrix {
  Buffer buffer;
  View view;
  // Stored with `transposed` dimensions, rows `pad` elements apart beyond their length.
  Matrix(std::int64_t rows, std::int64_t cols, bool transposed, std::int64_t pad, bool fill)
      : buffer((transposed ? cols : rows) * ((transposed ? rows : cols) + pad)) {
    view.data = buffer.device();
    view.device = 0;
    view.dtype = DType::bf16;
    view.rank = 2;
    view.shape[0] = rows, view.shape[1] = cols;
    view.stride[0] = transposed ? 1 : cols + pad;
    view.stride[1] = transposed ? rows + pad : 1;
    for (std::int64_t r = 0; fill && r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) at(r, c) = to_bf16(uniform());
    buffer.upload();
  }
  std::uint16_t& at(std::int64_t r, std::int64_t c) { return buffer.data()[r * view.stride[0] + c * view.stride[1]]; }
};

double activate(tkpy::gemm::Activation activation, double x) {
  using tkpy::gemm::Activation;
  switch (activation) {
    case Activation::gelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::relu:
      return x < 0 ? 0 : x;
    case Activation::relu_squared:
      return x < 0 ? 0 : x * x;
    default:
      return x;
  }
}

// One GEMM of random numbers: m k n transposed_a transposed_b pad activation extras
struct Problem {
  std::int64_t m, k, n;
  bool extras;
  Matrix a, b, out, residual, bias;
  tkpy::gemm::Arguments arguments;

  explicit Problem(char** text)
      : m(std::atoll(text[0])),
        k(std::atoll(text[1])),
        n(std::atoll(text[2])),
        extras(std::atoi(text[7]) != 0),
        a(m, k, std::atoi(text[3]) != 0, std::atoll(text[5]), true),
        b(k, n, std::atoi(text[4]) != 0, std::atoll(text[5]), true),
        out(m, n, false, 0, false),
        residual(m, n, false, 1, true),
        bias(1, n, false, 0, true) {
    arguments.a = a.view, arguments.b = b.view, arguments.out = out.view;
    arguments.activation = tkpy::gemm::activation_from_name(text[6]);
    if (!extras) return;
    arguments.residual = residual.view;
    arguments.bias = bias.view;
    arguments.bias.rank = 1, arguments.bias.shape[0] = n, arguments.bias.stride[0] = 1;
  }

  double want(std::int64_t r, std::int64_t c) {
    double sum = extras ? from_bf16(bias.at(0, c)) : 0;
    for (std::int64_t d = 0; d < k; ++d) sum += from_bf16(a.at(r, d)) * from_bf16(b.at(d, c));
    return activate(arguments.activation, sum) + (extras ? from_bf16(residual.at(r, c)) : 0);
  }
};

void gemm(Machine& machine, char** text) {
  Problem x(text);
  std::printf("kernel %s\n", tkpy::gemm::kernel_name(x.arguments).c_str());
  tkpy::gemm::launch(machine, x.arguments);
  memory->finish();
  x.out.buffer.download();
  double error = 0, norm = 0;
  for (std::int64_t r = 0; r < x.m; ++r)
    for (std::int64_t c = 0; c < x.n; ++c) {
      const double want = x.want(r, c), got = from_bf16(x.out.at(r, c));
      error += (got - want) * (got - want);
      norm += want * want;
    }
  std::printf("relative %.3e guards %d\n", std::sqrt(error) / (norm > 0 ? std::sqrt(norm) : 1), x.out.buffer.guarded());
}

// The same, many times: for a device.
void speed(Machine& machine, char** text) {
  Problem x(text);
  constexpr int kLaunches = 50;
  double best = 1e30;
  for (int round = 0; round < 5; ++round) {
    memory->finish();
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kLaunches; ++i) tkpy::gemm::launch(machine, x.arguments);
    memory->finish();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    if (round > 0) best = std::min(best, spent.count() / kLaunches);
  }
  std::printf("microseconds %.2f tflops %.1f\n", best * 1e6,
              2e-12 * static_cast<double>(x.m) * static_cast<double>(x.n) * static_cast<double>(x.k) / best);
}

struct ScaleParams {
  const float* x;
  float* y;
  float factor;
  int n;
};

// The kernel `scale` of the test: y = factor x.
void scale(Machine& machine, int claimed) {
  std::vector<float> x(100), y(100, -1.0f);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  const ScaleParams params{x.data(), y.data(), 2.0f, 100};
  View in, out;
  in.data = x.data(), out.data = y.data();
  in.rank = out.rank = 1;
  in.shape[0] = 100, out.shape[0] = claimed;
  in.stride[0] = out.stride[0] = 1;
  const View views[] = {in, out};
  LaunchSpec spec;
  spec.grid = {4, 1, 1};
  spec.block = {32, 1, 1};
  spec.params = bytes_of(params);
  spec.views = views;
  machine.launch(machine.kernel("scale", "scale"), spec);
  int wrong = 0;
  for (std::size_t i = 0; i < x.size(); ++i) wrong += y[i] != 2 * x[i];
  std::printf("wrong %d\n", wrong);
}

void misuse(Machine& machine) {
  const auto attempt = [](const std::function<void()>& call) {
    try {
      call();
      std::printf("accepted\n");
    } catch (const MachineError& error) {
      std::printf("%s\n", error.what());
    }
  };
  attempt([&] { machine.kernel("scale", "absent"); });
  attempt([&] { machine.kernel("absent", "scale"); });
  const Kernel& kernel = machine.kernel("scale", "scale");
  const std::uint64_t params[3] = {};
  LaunchSpec spec;
  spec.params = bytes_of(params[0]);
  attempt([&] { machine.launch(kernel, spec); });
  spec.params = std::as_bytes(std::span(params));
  spec.grid = {3, 1, 1};
  spec.cluster = {2, 1, 1};
  attempt([&] { machine.launch(kernel, spec); });
  spec.cluster = {1, 1, 1};
  spec.block = {2048, 1, 1};
  attempt([&] { machine.launch(kernel, spec); });
  spec.block = {32, 1, 1};
  spec.shared = 300000;
  attempt([&] { machine.launch(kernel, spec); });
  machine.add_image("broken", "this is no PTX");
  attempt([&] { machine.kernel("broken", "x"); });
}

}  // namespace

int main(int count, char** values) {
  if (count < 4) return 2;
  const std::string where = values[1], scenario = values[2];
  try {
    std::unique_ptr<Machine> machine;
    if (where == "cuda") {
      memory = std::make_unique<DeviceMemory>();
      machine = std::make_unique<DriverMachine>(values[3]);
    } else {
      EmulatorOptions options;
      options.multiprocessors = 4;
      if (const char* seed = std::getenv("SEED")) options.seed = static_cast<std::uint64_t>(std::atoll(seed));
      memory = std::make_unique<Memory>();
      machine = std::make_unique<EmulatorMachine>(values[3], options);
    }
    if (scenario == "scale") scale(*machine, std::atoi(values[4]));
    if (scenario == "misuse") misuse(*machine);
    if (scenario == "gemm") gemm(*machine, values + 4);
    if (scenario == "speed") speed(*machine, values + 4);
  } catch (const MachineUnavailable& error) {
    std::printf("unavailable: %s\n", error.what());
  } catch (const MachineError& error) {
    std::printf("error: %s\n", error.what());
  }
  return 0;
}
