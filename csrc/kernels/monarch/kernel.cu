// monarch_multiply: two block-diagonal products with the permutation between them, in one kernel.
//
// forward   h[k, q] = sum_p w1[k, q, p] x[k, p];  h flat is h[r, l];  y[s, l] = sum_r w2[l, s, r] h[r, l]
// backward  dh[r, l] = sum_s w2[l, s, r] dy[s, l];  dx[k, p] = sum_q w1[k, q, p] dh[k, q]
//
// A cluster of `ranks` CTAs takes `tile` rows. CTA c owns a share of the consecutive blocks k of the first factor and a
// share of the strided blocks l of the second, in granules of eight neighbours: 16 bytes of a row hold one channel of
// each. What lies between the products never leaves the SMs: each result goes as 16 bytes straight to the CTA that owns
// the block that reads it, in shared memory of the cluster.
//
//   forward   x (global, 16 bytes a lane) --w1--> h --to the owner of granule--> shared --w2--> y (global, 16 bytes)
//   backward  dy --cp.async--> shared --w2^T--> dh --to the owner of block--> shared --w1^T--> dx
//   h and dh also go to global memory where someone wants them (weights' gradients)
//
// unit      16 bytes of shared memory: eight neighbouring channels of a row. Of a block or granule g, channel or chunk c,
//           row r it is number (g * channels + c) * tile + (r ^ 2 ((c / 8 ^ c ^ g) % 4)): no bank conflicts when the
//           products read them, nor when h is written
// products  m16n8k16, A = rows, B = weights in their own order: lane (g, t) holds K = 8t .. 8t + 7 of every 32 for both, which
//           permutes K inside an instruction and no sum. In the first factor lanes hold outputs 8t .. 8t + 7 of every 32;
//           in the second eight blocks advance together, after an 8 x 8 transposition in registers
// barriers  the cluster meets once before anything is written to another CTA (it has begun; in the backward its dy, by
//           cp.async, has landed too) and once when all is written (it is there)
// precision products exact, sums fp32, h, y, dh, dx rounded once
// limits    p, q, r, s, l multiples of 8; rows of 16 bytes' alignment; tile and ranks as the launcher finds them to fit
// cost      flops 2 rows (k q p + l s r); bytes: x and y once, the factors once a tile and from L2 (ranks CTAs share
//           them, so a tile of 64 rows of 4096 channels reads 1 MB of factors beside 1 MB of x and y)
#include "monarch.cuh"

namespace tkpy::monarch {

// Of this cluster's tile.
TK_DEVICE int first_row_of(const Params& p) { return static_cast<int>(blockIdx.x) / p.ranks * p.tile; }

// Shared memory in units.
struct Units {
  u32 base;
  int channels, tile;
  TK_DEVICE u32 at(int group, int channel, int row) const {
    const int turned = row ^ 2 * ((channel / 8 ^ channel ^ group) & 3);
    return base + 16u * static_cast<u32>((group * channels + channel) * tile + turned);
  }
};

// Blocks or granules first .. first + count - 1 are this CTA's.
struct Share {
  int each, first, count;
  TK_DEVICE Share(int all, int ranks) {
    each = static_cast<int>(share_of(all, ranks));
    first = cluster_rank() * each;
    count = max(0, min(each, all - first));
  }
};

// Eight weights from `in` on of output `out` of a block: where they are, and they, 0 where there are none.
template <class T>
TK_DEVICE const T* weights_at(const Factor& f, int block, int out, int in) {
  return static_cast<const T*>(f.weight) + (1ll * block * f.out + out) * f.in + in;
}
template <class T>
TK_DEVICE uint4 weights(const T* at, bool there) {
  return there ? ptx::ld_global_v4(at) : nothing();
}

// This CTA's consecutive blocks. source(block, channel, row): eight channels of a block's input; sink(block, channel, row,
// x): eight of its output.
template <class T, class Source, class Sink>
TK_DEVICE void consecutive(const Params& p, Source source, Sink sink) {
  constexpr int most = kMostRows / 16;
  const Factor& f = p.first;
  const Share mine(f.blocks, p.ranks);
  const int groups = (f.out + 31) / 32, tiles = p.tile / 16, g = lane_row(), t = lane_chunk();
  for (int item = warp_index(); item < mine.count * groups; item += kWarps) {
    const int block = mine.first + item / groups, base = item % groups * 32;
    float d[most][4][4] = {};
#pragma unroll 1
    for (int step = 0; step < f.in; step += 32) {
      const int k = step + 8 * t;
      uint4 w[4], low[most], high[most];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int out = base + 8 * (g / 2) + 2 * j + g % 2;
        w[j] = weights(weights_at<T>(f, block, out, k), out < f.out && k < f.in);
      }
#pragma unroll
      for (int m = 0; m < most; ++m) {
        const bool there = m < tiles && k < f.in;
        low[m] = there ? source(block, k, 16 * m + g) : nothing();
        high[m] = there ? source(block, k, 16 * m + g + 8) : nothing();
      }
#pragma unroll
      for (int m = 0; m < most; ++m)
        if (m < tiles)
#pragma unroll
          for (int j = 0; j < 4; ++j) multiply<T>(d[m][j], low[m], high[m], w[j]);
    }
    if (base + 8 * t >= f.out) continue;
#pragma unroll
    for (int m = 0; m < most; ++m)
      if (m < tiles)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const auto pair = [&](int j) { return ptx::pack<T>(d[m][j][2 * half], d[m][j][2 * half + 1]); };
          sink(block, base + 8 * t, 16 * m + g + 8 * half, make_uint4(pair(0), pair(1), pair(2), pair(3)));
        }
  }
}

// This CTA's granules of strided blocks, whose inputs are `units`. sink(granule, channel, row, x): one output of eight blocks.
template <class T, class Sink>
TK_DEVICE void strided(const Params& p, const Units& units, Sink sink) {
  const Factor& f = p.second;
  const Share mine(f.blocks / 8, p.ranks);
  const int pairs = (f.out + 15) / 16, tiles = p.tile / 16, g = lane_row(), t = lane_chunk();
  for (int item = warp_index(); item < mine.count * pairs * tiles; item += kWarps) {
    const int row = item % tiles * 16 + g, base = item / tiles % pairs * 16, local = item / tiles / pairs;
    const int granule = mine.first + local;
    float d[8][2][4] = {};
#pragma unroll 1
    for (int step = 0; step < f.in; step += 32) {
      const int k = step + 8 * t;
      uint4 low[8], high[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        low[i] = k < f.in ? ptx::ld_shared_v4(units.at(local, k + i, row)) : nothing();
        high[i] = k < f.in ? ptx::ld_shared_v4(units.at(local, k + i, row + 8)) : nothing();
      }
      turn(low);
      turn(high);
      const T* at = weights_at<T>(f, 8 * granule, base + g, k);
      const bool there[2] = {base + g < f.out && k < f.in, base + 8 + g < f.out && k < f.in};
#pragma unroll
      for (int b = 0; b < 8; ++b) {
        multiply<T>(d[b][0], low[b], high[b], weights(at, there[0]));
        multiply<T>(d[b][1], low[b], high[b], weights(at + 8 * f.in, there[1]));
        at += 1ll * f.out * f.in;
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int channel = base + 8 * n + 2 * t + e % 2;
        const auto pair = [&](int b) { return ptx::pack<T>(d[b][n][e], d[b + 1][n][e]); };
        if (channel < f.out) sink(granule, channel, row + e / 2 * 8, make_uint4(pair(0), pair(2), pair(4), pair(6)));
      }
  }
}

// Eight elements from `channel` on of a row of global memory; rows beyond the last are not there.
template <class T>
TK_DEVICE void put(const Params& p, void* data, long long width, int row, long long channel, uint4 x) {
  if (data != nullptr && row < p.rows) ptx::st_global_v4(static_cast<T*>(data) + row * width + channel, x);
}

// All that the cluster's CTAs have written to each other is there. Lanes whose rows end come together first.
TK_DEVICE void meet() {
  __syncwarp();
  cluster_sync();
}

template <class T>
TK_DEVICE void forward(const Params& p, u32 memory, int first_row) {
  const long long middle = 1ll * p.first.blocks * p.first.out, out = 1ll * p.second.blocks * p.second.out;
  const Units h{memory, p.second.in, p.tile};
  const int each = Share(p.second.blocks / 8, p.ranks).each;
  cluster_sync();
  consecutive<T>(
      p,
      [&](int block, int channel, int row) {
        if (first_row + row >= p.rows) return nothing();
        return ptx::ld_global_v4(static_cast<const T*>(p.in) + (first_row + row) * p.in_pitch +
                                 1ll * block * p.first.in + channel);
      },
      [&](int block, int channel, int row, uint4 x) {
        const int flat = block * p.first.out + channel, granule = flat % p.second.blocks / 8;
        const u32 unit = h.at(granule % each, flat / p.second.blocks, row);
        ptx::st_cluster_v4(ptx::mapa(unit, static_cast<u32>(granule / each)), x);
        put<T>(p, p.middle, middle, first_row + row, flat, x);
      });
  meet();
  strided<T>(p, h, [&](int granule, int channel, int row, uint4 x) {
    put<T>(p, p.out, out, first_row + row, 1ll * channel * p.second.blocks + 8 * granule, x);
  });
}

// This CTA's granules of dy.
template <class T>
TK_DEVICE void load_strided(const Params& p, const Units& units, int first_row) {
  const Share mine(p.second.blocks / 8, p.ranks);
  const int channels = p.second.in;
  for (int i = static_cast<int>(threadIdx.x); i < mine.count * channels * p.tile; i += kThreads) {
    const int local = i % mine.count, channel = i / mine.count % channels, row = i / mine.count / channels;
    const bool there = first_row + row < p.rows;
    const T* from = static_cast<const T*>(p.in);
    if (there) from += (first_row + row) * p.in_pitch + 1ll * channel * p.second.blocks + 8 * (mine.first + local);
    ptx::cp_async_16(units.at(local, channel, row), from, there ? 16u : 0u);
  }
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
}

template <class T>
TK_DEVICE void backward(const Params& p, u32 memory, int first_row) {
  const long long middle = 1ll * p.first.blocks * p.first.in, out = 1ll * p.first.blocks * p.first.out;
  const Units dy{memory, p.second.in, p.tile};
  const Units dh{memory + static_cast<u32>(strided_bytes(p, p.second.in)), p.first.in / 8, p.tile};
  const Share blocks(p.first.blocks, p.ranks);
  load_strided<T>(p, dy, first_row);
  cluster_sync();
  strided<T>(p, dy, [&](int granule, int channel, int row, uint4 x) {
    const int flat = channel * p.second.blocks + 8 * granule, block = flat / p.first.in;
    const u32 unit = dh.at(block % blocks.each, flat % p.first.in / 8, row);
    ptx::st_cluster_v4(ptx::mapa(unit, static_cast<u32>(block / blocks.each)), x);
    put<T>(p, p.middle, middle, first_row + row, flat, x);
  });
  meet();
  consecutive<T>(
      p,
      [&](int block, int channel, int row) { return ptx::ld_shared_v4(dh.at(block - blocks.first, channel / 8, row)); },
      [&](int block, int channel, int row, uint4 x) {
        put<T>(p, p.out, out, first_row + row, 1ll * block * p.first.out + channel, x);
      });
}

}  // namespace tkpy::monarch

#define TKPY_MONARCH(NAME, T)                                                                           \
  extern "C" __global__ void __launch_bounds__(tkpy::monarch::kThreads, 1)                             \
      monarch_##NAME##_##T(const __grid_constant__ tkpy::monarch::Params p) {                           \
    extern __shared__ __align__(128) unsigned char memory[];                                            \
    tkpy::monarch::NAME<tk::T>(p, tk::ptx::shared_address(memory), tkpy::monarch::first_row_of(p)); \
  }
TKPY_MONARCH(forward, bf16)
TKPY_MONARCH(forward, fp16)
TKPY_MONARCH(backward, bf16)
TKPY_MONARCH(backward, fp16)
