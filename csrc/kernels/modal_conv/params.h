// What the two sides of modal_conv share: the parameter blocks, and the shared memory that a CTA asks for.
#pragma once

namespace tkpy::modal_conv {

constexpr int kChunk = 64;     // samples
constexpr int kBlock = 16;     // samples of one product: a chunk is four blocks
constexpr int kRows = 16;      // chunks of a tile: the rows of mma.sync
constexpr int kGroup = 8;      // modes of one product: its 16 columns are their real and imaginary parts
constexpr int kMostModes = 32;
constexpr int kFragment = 512;  // bytes of a 16 x 16 operand of 16 bits
constexpr int kStrides = 832;   // bytes of a group's factors and carried states

// Pieces of 16 bits that a float32 operand is cut into: two hold the product of two 16-bit samples, three a float32.
constexpr int parts_of(int sample_bytes) { return sample_bytes == 4 ? 3 : 2; }
constexpr int tile_bytes(int sample_bytes) { return kRows * kChunk * sample_bytes; }
constexpr int group_bytes(int sample_bytes) { return 2 * parts_of(sample_bytes) * kFragment + kStrides + 8 * kGroup; }
constexpr int table_bytes(int sample_bytes, int groups) {
  return parts_of(sample_bytes) * kFragment + groups * group_bytes(sample_bytes);
}
constexpr int conv_bytes(int sample_bytes, int groups) { return 3 * tile_bytes(sample_bytes) + table_bytes(sample_bytes, groups); }
constexpr int backward_group_bytes(int sample_bytes) {
  return (4 * parts_of(sample_bytes) * kFragment + 2 * kStrides + 128 + 2048 + 255) / 256 * 256;
}
constexpr int backward_bytes(int sample_bytes, int kept, int groups) {
  return (4 + 2 * kept) * tile_bytes(sample_bytes) + parts_of(sample_bytes) * kFragment + 256 + 1024 +
         groups * backward_group_bytes(sample_bytes);
}
// Tiles of two signals that a CTA of the backward keeps: a segment of up to so many is read once.
constexpr int kMostKept = 4, kLeastKept = 2;

struct Complex {
  float re, im;
};
struct WideComplex {
  double re, im;
};
// A signal [B, H, L] with neighbouring samples side by side; strides in elements. Null: absent.
struct Signal {
  void* data;
  long long batch, channel;
};

struct Params {
  Signal in[3];                     // x, gate, post: x gate goes in, y post comes out
  Signal out;                       // or states only
  const Complex *poles, *residues;  // [H, S]
  const float* skip;                // [H] or null
  const Complex* start;             // [B, H, S] state before the first chunk, or null
  WideComplex* local;               // [segments - 1, B, H, S] what each segment adds to the state at its end
  WideComplex* end;                 // [B, H, S] state after the last chunk, or null
  int batch, channels, modes, groups;  // at least one group
  int chunks, tiles;
  int segments, segment_tiles;      // a CTA takes a segment of this many tiles; 1 segment: all
  int only_local;                   // the first of two passes: write `local` and nothing else
};

struct BackwardParams {
  Signal in[4];                     // u, pre, dy, post
  Signal out[3];                    // du, dpre, dpost; without data: not asked for
  const Complex *poles, *residues;  // [H, S]
  const float* skip;                // [H] or null
  const Complex *start, *end;       // [B, H, S] the state before the first sample, the gradient of that after the last; or null
  Complex* starts;                  // [tiles, B, H, S] what each tile finds: written and read by the same CTA
  WideComplex* local;               // [2, segments, B, H, S] what each segment adds to the states at its end, at its start
  WideComplex* dstart;              // [B, H, S] or null
  Complex *dpoles, *dresidues;      // [segments, B, H, S]
  float* dskip;                     // [segments, B, H]
  int batch, channels, modes, groups;
  int length, chunks, tiles;        // the last chunk may not be whole
  int segments, segment_tiles, kept;
  int only_local;
  int forth, parameters;            // whether states of u are needed, and the parameters' gradients
};

struct StepParams {
  Signal u, pre, post, out;
  const Complex *poles, *residues;
  const float* skip;
  const Complex* start;             // [B, H, S], or
  const WideComplex* wide_start;    // as the chunks left it, or null: zero
  Complex* end;                     // [B, H, S] or null
  int batch, channels, modes, steps;
};

}  // namespace tkpy::modal_conv
