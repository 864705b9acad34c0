// The gradient of a factor of monarch_multiply: dw[block, i, j] = sum over rows of a[row, block, i] b[row, block, j],
// a = dy, b = h of the second factor, whose blocks are strided; a = dh, b = x of the first, whose blocks are consecutive.
//
// A CTA takes eight blocks, one a warp, 64 x 64 of each, and a share of the rows in steps of 32. 16 bytes of a row hold one
// channel of eight strided blocks, or eight channels of a consecutive one: either way a lane loads them of eight rows and
// turns them, and has eight rows of one channel, as products over rows want them.
//
//   global --8 x 16 bytes a lane and operand--> registers --turned--> shared [stage][operand][block][rows / 8][channel]
//   --> fragments, 16 bytes a lane (monarch.cuh) --> 64 x 64 sums a warp in registers --> sums [share, blocks, out, in] fp32
//
// unit      16 bytes of shared memory, eight rows of a channel: channel c of rows chunk t is number c ^ 2t ^ (c / 8) % 8
//           of its 64: neither side has bank conflicts
// barriers  __syncthreads once a step: the next stage is written and the last one read
// precision products exact, sums fp32      limits  channels multiples of 8; 16-byte aligned rows
// cost      flops 2 rows blocks out in; bytes: a and b once (again for every 64 columns or rows of a block beyond the
//           first 64), sums once a share. Strided blocks take 16 bytes of each sector: the neighbour's CTA is next in the grid
//           and finds the other half in L2
#include "monarch.cuh"

namespace tkpy::monarch {

TK_DEVICE u32 unit(u32 memory, int stage, int side, int block, int chunk, int channel) {
  const int turned = channel ^ 2 * chunk ^ (channel / 8 & 7);
  return memory + 16u * static_cast<u32>((((stage * 2 + side) * kWarps + block) * (kStepRows / 8) + chunk) * kSide + turned);
}

// What a thread brings of one operand: 16 bytes of eight rows, and where they go.
template <class T, bool Strided>
struct Piece {
  const T* at;  // in row 0
  long long pitch;
  bool there;
  TK_DEVICE static int place() { return static_cast<int>(threadIdx.x) % kSide; }  // of the tile's 64 units a row
  TK_DEVICE Piece(const Gradient& p, int side, int group, int first) {
    const int extent = side == 0 ? p.out : p.in;
    const int channel = first + (Strided ? place() : place() % 8 * 8), block = 8 * group + (Strided ? 0 : place() / 8);
    at = static_cast<const T*>(side == 0 ? p.a : p.b) +
         (Strided ? 1ll * channel * p.blocks + block : 1ll * block * extent + channel);
    pitch = side == 0 ? p.a_pitch : p.b_pitch;
    there = channel < extent && block < p.blocks;
  }
  TK_DEVICE void load(uint4 (&x)[8], int row, int end) const {
    const T* from = at + row * pitch;
#pragma unroll
    for (int i = 0; i < 8; ++i, from += pitch) x[i] = there && row + i < end ? ptx::ld_global_v4(from) : nothing();
  }
  TK_DEVICE void store(uint4 (&x)[8], u32 memory, int stage, int side, int chunk) const {
    turn(x);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int block = Strided ? j : place() / 8, channel = Strided ? place() : place() % 8 * 8 + j;
      ptx::st_shared_v4(unit(memory, stage, side, block, chunk, channel), x[j]);
    }
  }
};

template <class T, bool Strided>
TK_DEVICE void gradient(const Gradient& p, u32 memory) {
  constexpr int tall = kSide / 16, wide = kSide / 8;
  const int groups = (p.blocks + 7) / 8, across = (p.in + kSide - 1) / kSide, tile = static_cast<int>(blockIdx.x) / groups;
  const int group = static_cast<int>(blockIdx.x) % groups, out = tile / across * kSide, in = tile % across * kSide;
  const int begin = static_cast<int>(blockIdx.y) * p.share_rows, end = min(p.rows, begin + p.share_rows);
  const int chunk = static_cast<int>(threadIdx.x) / kSide, g = lane_row(), t = lane_chunk(), warp = warp_index();
  const Piece<T, Strided> a(p, 0, group, out), b(p, 1, group, in);
  uint4 next_a[8], next_b[8];
  float d[tall][wide][4] = {};
  a.load(next_a, begin + 8 * chunk, end);
  b.load(next_b, begin + 8 * chunk, end);
  int stage = 0;
#pragma unroll 1
  for (int row = begin; row < end; row += kStepRows, stage ^= 1) {
    a.store(next_a, memory, stage, 0, chunk);
    b.store(next_b, memory, stage, 1, chunk);
    __syncthreads();
    a.load(next_a, row + kStepRows + 8 * chunk, end);
    b.load(next_b, row + kStepRows + 8 * chunk, end);
#pragma unroll
    for (int m = 0; m < tall; ++m) {
      if (out + 16 * m >= p.out) break;
      const uint4 low = ptx::ld_shared_v4(unit(memory, stage, 0, warp, t, 16 * m + g));
      const uint4 high = ptx::ld_shared_v4(unit(memory, stage, 0, warp, t, 16 * m + 8 + g));
#pragma unroll
      for (int n = 0; n < wide; ++n)
        if (in + 8 * n < p.in) multiply<T>(d[m][n], low, high, ptx::ld_shared_v4(unit(memory, stage, 1, warp, t, 8 * n + g)));
    }
  }
  const int block = 8 * group + warp;
  if (block >= p.blocks) return;
  float* sums = p.sums + (1ll * blockIdx.y * p.blocks + block) * p.out * p.in;
#pragma unroll
  for (int m = 0; m < tall; ++m)
#pragma unroll
    for (int n = 0; n < wide; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int i = out + 16 * m + g + 8 * half, j = in + 8 * n + 2 * t;
        if (i < p.out && j < p.in)
          *reinterpret_cast<float2*>(sums + 1ll * i * p.in + j) = make_float2(d[m][n][2 * half], d[m][n][2 * half + 1]);
      }
}

}  // namespace tkpy::monarch

#define TKPY_MONARCH_GRADIENT(BLOCKS, STRIDED, T)                                          \
  extern "C" __global__ void __launch_bounds__(tkpy::monarch::kThreads, 1)                 \
      monarch_gradient_##BLOCKS##_##T(const __grid_constant__ tkpy::monarch::Gradient p) { \
    extern __shared__ __align__(128) unsigned char memory[];                               \
    tkpy::monarch::gradient<tk::T, STRIDED>(p, tk::ptx::shared_address(memory));           \
  }
TKPY_MONARCH_GRADIENT(consecutive, false, bf16)
TKPY_MONARCH_GRADIENT(consecutive, false, fp16)
TKPY_MONARCH_GRADIENT(strided, true, bf16)
TKPY_MONARCH_GRADIENT(strided, true, fp16)
