// Host side of the GEMM: which of its kernels serves a call, and the call itself. Written once for every Machine.
// blocks.cpp has the call of many products at once.
#pragma once

#include "params.h"
#include "runtime/machine.h"

namespace tkpy::gemm {

struct Arguments {
  runtime::View a, b, out;       // [m, k], [k, n], [m, n]
  runtime::View bias, residual;  // [n], [m, n]; undefined when there is none
  Activation activation = Activation::none;
  void* stream = nullptr;
};

// An operand as it is stored: [groups, rows, cols], columns contiguous where the kernels by TMA are to read it.
struct Stored {
  Blocks blocks{};
  std::int64_t groups = 1, rows = 0, cols = 0;
  bool transposed = false;  // the first of a group's two dimensions is that of the columns
  bool tma = false;         // a tensor map can describe it
};

// What a problem reads and writes beside a, b and out (gemm.cuh): a gated product of one block of a's channels, or of two;
// the first product of its backward; or a sum of two products.
enum class Gating { none, shared, two, slopes, pair };

// What is left to say: `params` has sizes, shares and the epilogue; operands, maps and grid are added here.
struct Problem {
  Params params{};
  Stored a, b, b2;  // b2: of gated products and of pairs
  Gating gating = Gating::none;
  runtime::DType dtype = runtime::DType::bf16;
  std::span<const runtime::View> views;
  void* stream = nullptr;
  int device = -1;
};

bool contiguous(const runtime::View& v, int d);
Stored stored(const runtime::View& v);                      // [.., ..], one dimension contiguous
Stored matrices(const char* what, const runtime::View& v);  // [groups, .., ..], one dimension contiguous
Stored channels(const char* what, const runtime::View& v, int along, std::int64_t groups, std::int64_t width,
                std::string_view order);  // blocks of `width` of the columns (along: their dimension) of a matrix
bool aligned_for_tma(const void* data, std::int64_t pitch);
std::string kernel_name(const Problem& problem);
void launch(runtime::Machine& machine, const Problem& problem);

// Why these arguments cannot be served; empty when they can.
std::string refusal(const Arguments& arguments);

// The kernel that serves them, such as gemm_bf16_mk_nk_tma; they must not be refused.
std::string kernel_name(const Arguments& arguments);

// Throws std::invalid_argument with the refusal. Empty outputs launch nothing.
void launch(runtime::Machine& machine, const Arguments& arguments);

// From "none", "gelu", "gelu_tanh", "silu", "relu", "relu_squared"; throws std::invalid_argument.
Activation activation_from_name(std::string_view name);

}  // namespace tkpy::gemm
