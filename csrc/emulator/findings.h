// What a run reports. Codes are stable names; docs/findings.md explains each.
#pragma once

#include "common.h"

namespace tkpy::emulator {

enum class Check : u32 {
  uninitialised_read, out_of_bounds, misaligned, shared_race, barrier_divergence, barrier_count, deadlock, budget, trap,
  unmodelled, invalid_instruction, mbarrier_misuse, stack_overflow, bad_call, wgmma_misuse, tensor_map, async_in_flight,
  proxy_fence, assertion, uninitialised_register, wgmma_in_flight, wgmma_fence, setmaxnreg, global_race, non_coherent_read, count
};

const char* check_name(Check check);
// kNone when the name is unknown.
u32 check_from_name(std::string_view name);
// A finding of this kind ends the run.
bool check_is_fatal(Check check);

struct Site {
  std::string function;
  u32 ptx_line = 0;
  std::string text;
  std::string file;
  u32 source_line = 0;
  u32 cta = 0;
  u32 warp = 0;
  u32 lane = 0;
};

struct Finding {
  Check check = Check::trap;
  std::string message;
  Site site;
  bool has_other = false;
  Site other;
  u64 times = 1;  // how often the same pair of instructions did it
};

}  // namespace tkpy::emulator
