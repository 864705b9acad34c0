// Host side of the GEMM: which of its kernels serves a call, and the call itself. Written once for every Machine.
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

// Why these arguments cannot be served; empty when they can.
std::string refusal(const Arguments& arguments);

// The kernel that serves them, such as gemm_bf16_mk_nk_tma; they must not be refused.
std::string kernel_name(const Arguments& arguments);

// Throws std::invalid_argument with the refusal. Empty outputs launch nothing.
void launch(runtime::Machine& machine, const Arguments& arguments);

// From "none", "gelu", "gelu_tanh", "silu", "relu", "relu_squared"; throws std::invalid_argument.
Activation activation_from_name(std::string_view name);

}  // namespace tkpy::gemm
