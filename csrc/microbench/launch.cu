// What a launch costs, and what lies between one kernel and the next.
// out  stamps[index], by CTA 0: nanoseconds at its first instruction, when it may go on, and at its end; sink[index] = index
// kernels  empty                    nothing at all: time per launch from the host's side, with and without a cluster
//          stamp                    busy for `clocks` cycles
//          stamp_dependent          the same under programmatic dependent launch: lets the next grid start at once, then
//                                   waits for the one before to end (griddepcontrol)
// precision  that of %globaltimer       limits  index below the length of stamps       cost  32 bytes written
#include "record.cuh"

namespace microbench {

struct Stamp {
  u64 first, released, last;
};

TK_DEVICE void busy(u32 clocks) {
  const u64 begin = ptx::clock64();
  while (ptx::clock64() - begin < clocks) {
  }
}

MICROBENCH(1024) empty() {}

MICROBENCH(1024) stamp(Stamp* stamps, u32* sink, u32 index, u32 clocks) {
  const u64 first = ptx::globaltimer();
  busy(clocks);
  if (blockIdx.x || threadIdx.x) return;
  sink[index] = index;
  stamps[index] = {first, first, ptx::globaltimer()};
}

MICROBENCH(1024) stamp_dependent(Stamp* stamps, u32* sink, u32 index, u32 clocks) {
  const u64 first = ptx::globaltimer();
  launch_next_grid();
  wait_for_previous_grid();
  const u64 released = ptx::globaltimer();
  busy(clocks);
  if (blockIdx.x || threadIdx.x) return;
  sink[index] = index;
  stamps[index] = {first, released, ptx::globaltimer()};
}

}  // namespace microbench
