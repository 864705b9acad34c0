// What the two sides of the merge_state kernels share.
#pragma once

#include "params.h"

namespace tkpy::rows {

constexpr int kMostMergeThreads = 256;                     // of a head
constexpr int kWidestMerge = kMostMergeThreads * kElements;

// What belongs to each sequence, token and head, so many elements apart; data is null where there is none.
struct PerHead {
  void* data;
  long long batch, token, head;
};

struct MergeParams {
  PerHead out[2], lse[2];        // the parts: rows of `size` elements, and a float each
  PerHead merged, merged_lse;    // forward
  PerHead dy, dlse;              // backward: gradients of what was merged, may be null
  PerHead dout[2], dpart_lse[2]; // and of the parts; null: not wanted
  unsigned blocks;               // of tokens, in a sequence: each CTA has one, of one head
  int length, heads, size, lanes, grain;
};

}  // namespace tkpy::rows
