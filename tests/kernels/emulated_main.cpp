// The emulator as a Machine, for test_emulated.py: `emulated_main <scenario> <kernel folder> [arguments]`.
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
#include "runtime/emulator_machine.h"

using namespace tkpy::runtime;

namespace {

// `count` bf16 numbers with guard bands of NaN on both sides; 64-byte aligned.
class Buffer {
 public:
  explicit Buffer(std::int64_t count)
      : count_(static_cast<std::size_t>(count)), words_(count_ + 2 * kGuard + 32, 0x7fff) {
    const auto start = reinterpret_cast<std::uintptr_t>(words_.data() + kGuard);
    data_ = words_.data() + kGuard + ((64 - start % 64) % 64) / 2;
  }
  std::uint16_t* data() { return data_; }
  bool guarded() const {
    for (const std::uint16_t* w = words_.data(); w < words_.data() + words_.size(); ++w)
      if ((w < data_ || w >= data_ + count_) && *w != 0x7fff) return false;
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 64;
  std::size_t count_;
  std::vector<std::uint16_t> words_;
  std::uint16_t* data_;
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
    view.data = buffer.data();
    view.dtype = DType::bf16;
    view.rank = 2;
    view.shape[0] = rows, view.shape[1] = cols;
    view.stride[0] = transposed ? 1 : cols + pad;
    view.stride[1] = transposed ? rows + pad : 1;
    if (!fill) return;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) at(r, c) = to_bf16(uniform());
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

// gemm m k n transposed_a transposed_b pad activation extras: prints the relative error
void gemm(EmulatorMachine& machine, char** argument) {
  const auto number = [&](int i) { return std::atoll(argument[i]); };
  const std::int64_t m = number(0), k = number(1), n = number(2), pad = number(5);
  const bool extras = number(7) != 0;
  Matrix a(m, k, number(3) != 0, pad, true), b(k, n, number(4) != 0, pad, true), out(m, n, false, 0, false),
      residual(m, n, false, 1, true), bias(1, n, false, 0, true);
  tkpy::gemm::Arguments x;
  x.a = a.view, x.b = b.view, x.out = out.view;
  x.activation = tkpy::gemm::activation_from_name(argument[6]);
  if (extras) {
    x.residual = residual.view;
    x.bias = bias.view;
    x.bias.rank = 1, x.bias.shape[0] = n, x.bias.stride[0] = 1;
  }
  std::printf("kernel %s\n", tkpy::gemm::kernel_name(x).c_str());
  tkpy::gemm::launch(machine, x);
  double error = 0, norm = 0;
  for (std::int64_t r = 0; r < m; ++r)
    for (std::int64_t c = 0; c < n; ++c) {
      double sum = extras ? from_bf16(bias.at(0, c)) : 0;
      for (std::int64_t d = 0; d < k; ++d) sum += from_bf16(a.at(r, d)) * from_bf16(b.at(d, c));
      const double want = activate(x.activation, sum) + (extras ? from_bf16(residual.at(r, c)) : 0);
      const double got = from_bf16(out.at(r, c));
      error += (got - want) * (got - want);
      norm += want * want;
    }
  std::printf("error %.3e guards %d\n", std::sqrt(error) / (norm > 0 ? std::sqrt(norm) : 1), out.buffer.guarded());
}

struct ScaleParams {
  const float* x;
  float* y;
  float factor;
  int n;
};

// The kernel `scale` of the test: y = factor x.
void scale(EmulatorMachine& machine, int claimed) {
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

void misuse(EmulatorMachine& machine) {
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
  if (count < 3) return 2;
  const std::string scenario = values[1];
  EmulatorOptions options;
  options.multiprocessors = 4;
  if (const char* seed = std::getenv("SEED")) options.seed = static_cast<std::uint64_t>(std::atoll(seed));
  EmulatorMachine machine(values[2], options);
  try {
    if (scenario == "scale") scale(machine, std::atoi(values[3]));
    if (scenario == "misuse") misuse(machine);
    if (scenario == "gemm") gemm(machine, values + 3);
  } catch (const MachineError& error) {
    std::printf("error: %s\n", error.what());
  }
  return 0;
}
