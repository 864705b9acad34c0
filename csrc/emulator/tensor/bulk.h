// cp.async.bulk and cp.reduce.async.bulk (PTX ISA 9.7.9.25.4): alignment rules and the element operations, which the
// tensor forms share.
#pragma once

#include "../common.h"

namespace tkpy::emulator::tensor {

enum class ReduceOp : u8 { add, min, max, inc, dec, and_, or_, xor_ };

const char* reduce_name(ReduceOp op);
// False for text that names no operation.
bool reduce_from_name(std::string_view name, ReduceOp* op);

// Both addresses and the size must be multiples of 16. Text names the one that is not; empty: all are.
std::string bulk_reason(u64 destination, u64 source, u64 bytes);

// Whether the operation exists on this type (as ptxas 13.0 has it for sm_90a); shared: the destination is
// shared::cluster rather than global. Text when not. The tensor forms follow the column of global memory.
std::string reduce_reason(ReduceOp op, Type type, bool shared);

// to[i] = op(to[i], from[i]) over `bytes` bytes. One rounding to nearest even an element, subnormals kept. min and max
// of floats prefer the number to a NaN and order -0 below +0, as min and max do (9.7.4).
void reduce_elements(ReduceOp op, Type type, const u8* from, u8* to, u32 bytes);

}  // namespace tkpy::emulator::tensor
