// Video instructions (PTX ISA 9.7.17 scalar, 9.7.18 SIMD): parts of 32-bit registers, extended, combined, perhaps clamped,
// and then put into, or added to, a third operand.
#pragma once

#include "common.h"

namespace tkpy::emulator {

enum class Video : u8 { add, sub, average, absolute_difference, min, max, set, shift_left, shift_right, multiply_add };
enum class Secondary : u8 { merge, add, min, max };  // merge is of the parts that the destination's mask names

struct VideoOp {
  Video what = Video::add;
  u8 ways = 1;                  // parts computed: 1, 2 (halves) or 4 (bytes)
  bool d_signed = false, a_signed = false, b_signed = false;
  bool saturate = false;
  bool clamp = false;           // shifts: .clamp rather than .wrap
  bool plus_one = false;        // vmad.po
  bool negate_a = false, negate_b = false, negate_c = false;
  u8 scale = 0;                 // vmad: 0, 7 or 15
  Cmp compare = Cmp::eq;
  Secondary secondary = Secondary::merge;
  u8 part_bits = 32;            // of the sources; scalar instructions have one width each
  u8 b_part_bits = 32;
  u8 select_a[4] = {0, 0, 0, 0};  // which part of a (SIMD: of a, then b) each way takes
  u8 select_b[4] = {0, 0, 0, 0};
  u8 d_bits = 32;               // width of a destination part
  u8 d_mask = 1;                // parts written; scalar: the one part that .dsel names
};

// One lane. c is read by every form but the plain scalar one.
u32 video(const VideoOp& op, u32 a, u32 b, u32 c);

}  // namespace tkpy::emulator
