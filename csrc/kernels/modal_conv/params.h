// What the two sides of modal_conv share: the parameter blocks, and the shared memory that a CTA asks for.
#pragma once

namespace tkpy::modal_conv {

constexpr int kChunk = 64;     // samples
constexpr int kRows = 16;      // chunks of a tile: the rows of mma.sync
constexpr int kGroup = 8;      // modes of one product: its 16 columns are their real and imaginary parts
constexpr int kMostModes = 32;
constexpr int kFragment = 512;  // bytes of a 16 x 16 operand of 16 bits
constexpr int kStrides = 1024;  // bytes of a group's factors and carried states

// Pieces of 16 bits that a float32 operand is cut into: two hold the product of two 16-bit samples, three a float32.
constexpr int parts_of(int sample_bytes) { return sample_bytes == 4 ? 3 : 2; }
constexpr int tile_bytes(int sample_bytes) { return kRows * kChunk * sample_bytes; }
constexpr int group_bytes(int sample_bytes) { return 8 * parts_of(sample_bytes) * kFragment + kStrides; }
constexpr int conv_bytes(int sample_bytes, int tiles, int groups) {
  return tiles * tile_bytes(sample_bytes) + 4 * parts_of(sample_bytes) * kFragment + 256 + groups * group_bytes(sample_bytes);
}
constexpr int gradient_bytes(int sample_bytes) {
  return 4 * tile_bytes(sample_bytes) + 16 * parts_of(sample_bytes) * kFragment + 2 * kStrides;
}

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
  Signal in[4];                     // x, gate: x gate goes in; post, post2: y post and y post2 come out
  Signal out[2];                    // without the first, states only
  const Complex *poles, *residues;  // [H, S]
  const float* skip;                // [H] or null
  const Complex* start;             // [B, H, S] state before the first chunk (of the reverse: after the last), or null
  WideComplex* local;               // [segments - 1, B, H, S] what each segment adds to the state at its end
  WideComplex* end;                 // [B, H, S] state after the last chunk in order, or null
  Complex* starts;                  // [tiles, B, H, S] the state that each tile finds, or null
  int batch, channels, modes, groups;
  int chunks, tiles;
  int segments, segment_tiles;      // a CTA takes a segment of this many tiles; 1 segment: all
  int only_local;                   // the first of two passes: write `local` and nothing else
};

struct GradientParams {
  Signal in[4];                     // u, pre, dy, post
  const Complex *poles, *residues;
  const Complex *starts, *ends;     // [tiles, B, H, S] as the forward and the reverse pass found them
  Complex *dpoles, *dresidues;      // [shares, H, S]
  float* dskip;                     // [shares, H]
  int batch, channels, modes, groups;
  int chunks, tiles;
  int shares, share_tiles;          // a share has this many of the batch * tiles tiles of a channel
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
