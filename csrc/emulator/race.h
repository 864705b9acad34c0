// Checks of accesses to shared memory against what came before them.
#pragma once

#include "machine.h"

namespace tkpy::emulator {

// Checks an access by a lane or an agent to a range of a CTA's shared memory, and records it.
void touch_shared(const Accessor& a, Cta& cta, u32 offset, u32 bytes, AccessKind kind, bool strong, bool same_value);
// The check of a read alone.
void check_read(const Accessor& a, Cta& cta, u32 offset, u32 bytes);
// What would have ordered an access after `before`, in words.
std::string remedy(const Accessor& a, const Access& before, bool global);
// Remembers that `a` used the CTA's shared memory, which must come before the CTA ends.
void visit(Cta& cta, const Accessor& a);
// The CTA's last thread has exited: is anything left that may still use its shared memory?
void end_cta(Cluster& c, Cta& cta);

}  // namespace tkpy::emulator
