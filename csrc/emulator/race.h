// Checks of accesses to shared memory against what came before them.
#pragma once

#include <span>

#include "machine.h"

namespace tkpy::emulator {

// Checks an access by a lane or an agent to a range of a CTA's shared memory, and records it.
void touch_shared(const Accessor& a, Cta& cta, u32 offset, u32 bytes, AccessKind kind, bool strong, bool same_value);
// The same for whole words that the async proxy reads for several warps, each with what comes before the read there; the
// last is recorded. `all`: what comes before it in every one of them, which settles most words at once.
struct Reader {
  const Warp* warp;
  const Clock* clock;
};
Clock common_to(std::span<const Reader> readers);
void read_for_warps(Accessor a, std::span<const Reader> readers, const Clock& all, Cta& cta, u32 offset, u32 bytes);
// What would have ordered an access after `before`, in words.
std::string remedy(const Accessor& a, const Access& before, bool global);
// Remembers that `a` used the CTA's shared memory, which must come before the CTA ends.
void visit(Cta& cta, const Accessor& a);
// The CTA's last thread has exited: is anything left that may still use its shared memory?
void end_cta(Cluster& c, Cta& cta);

}  // namespace tkpy::emulator
