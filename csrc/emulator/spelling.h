// Combinations of modifiers and types that the ISA does not have, though each part is known to the decoder.
#pragma once

#include "ast.h"

namespace tkpy::emulator {

// Why sm_90 has no such instruction; empty when it may.
std::string spelling_reason(const Instr& in);

}  // namespace tkpy::emulator
