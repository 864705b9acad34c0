#include "findings.h"

namespace tkpy::emulator {

namespace {
constexpr const char* kNames[] = {
    "uninitialised-read", "out-of-bounds", "misaligned", "shared-race", "barrier-divergence", "barrier-count",
    "deadlock", "budget", "trap", "unmodelled", "invalid-instruction", "mbarrier-misuse", "stack-overflow", "bad-call",
    "wgmma-misuse", "tensor-map", "async-in-flight", "proxy-fence", "assertion", "uninitialised-register", "wgmma-in-flight", "wgmma-fence",
    "setmaxnreg", "global-race", "non-coherent-read"};
static_assert(sizeof kNames / sizeof *kNames == static_cast<std::size_t>(Check::count));
}  // namespace

const char* check_name(Check check) { return kNames[static_cast<u32>(check)]; }

u32 check_from_name(std::string_view name) {
  for (u32 i = 0; i < static_cast<u32>(Check::count); ++i) {
    if (name == kNames[i]) return i;
  }
  return kNone;
}

bool check_is_fatal(Check check) {
  switch (check) {
    case Check::deadlock:
    case Check::budget:
    case Check::trap:
    case Check::unmodelled:
    case Check::invalid_instruction:
    case Check::stack_overflow:
    case Check::bad_call:
    case Check::assertion: return true;
    default: return false;
  }
}

}  // namespace tkpy::emulator
