// attention decode: O = softmax(c q K^T) V for a few queries a sequence, K and V in pages    per (sequence, key head)
// in   q [B,Sq,H,D], k [pages,page,Hkv,D], v [pages,page,Hkv,Dv]  bf16 or fp16, columns contiguous | seqlens [B],
//      block_table [B,n], starts [B], kv_head_map [H] int32, sinks [H] f32: on the device, never read by the host
// out  o [B,Sq,H,Dv], lse [B,H,Sq] f32 natural log; with splits > 1 their shares, which `combine` joins
// kernels  attention_decode_<bf16|fp16>_<D>[x<Dv>], attention_combine_<bf16|fp16>
// rows  the H / Hkv query heads of a key head times Sq queries are the rows of one matrix, 16 to a CTA: keys are read
//       once for all of them. mma.sync, since its 16 rows are what decoding has (a group of 4 to 16): wgmma's 64 would
//       be mostly empty. More rows than 16 are more CTAs, which read the same keys at the same time, out of L2
// grid  (row tiles * splits, key heads, B), 128 threads. A split is a stretch of the keys that the CTA's rows see; empty
//       ones leave lse -inf and end. Of its tiles of 32 (16) keys, warp w takes w, w + 4, ..
// warp  on its own: gl --cp.async 16 B--> slots[stages] -> S = q K^T -> softmax, running -> O += P V
//         wait_group: the lane's copies of a slot have landed; __syncwarp: everybody's have, and everybody has done
//         with the slot of the tile before, which is filled next. Rows without a key are filled with zeros (0 * NaN is
//         NaN), a tile's pages are looked up one tile ahead
// end   __syncthreads (slots are done with), O and its max and sum of each warp to shared memory, __syncthreads,
//       joined and written by all
// precision  products exact, sums fp32; P rounded to q's type, its sum not; shares fp32; one rounding at the end
// limits  D, Dv <= 256, multiples of 8; addresses and strides of 16 bytes; capacity below 2^30
// cost  bytes 2 B Hkv (D + Dv) keys, flops 2 (D + Dv) H Sq keys: memory bound; at 128 up to 128 KiB under way on an SM
#include "softmax.cuh"

namespace tkpy::attention_decode {

template <class T, int Index>
struct Decode {
  static constexpr Shape shape = kShapes[Index];
  static constexpr int Keys = shape.keys, Stages = shape.stages, width = 8;  // elements of 16 bytes

  struct Slot {
    st<T, Keys, shape.dim> k;
    st<T, Keys, shape.dim_v> v;
  };
  struct Shared {
    Slot slots[kWarps][Stages];
  };
  struct Merge {  // in the slots' place
    float o[kWarps][kRows][shape.dim_v + 8];  // 8: rows of a fragment lie in different banks
    float best[kWarps][kRows], total[kWarps][kRows];
  };
  static_assert(sizeof(Shared) == shape.tile_bytes() && sizeof(Merge) == shape.merge_bytes() &&
                    shape.shared_bytes() <= 232448,
                "the launcher asks for shared_bytes(): it must be the truth, and at most 227 KiB");

  // Where the keys of a tile lie: lane l knows the first elements of key l in the caches, -1 is no key.
  struct Place {
    long long k, v;
  };
  TK_DEVICE static Place locate(const Params& p, const Task& t, int tile) {
    const int key = t.begin + tile * Keys + lane_index();
    if (lane_index() >= Keys || tile >= t.end_tile || key >= t.end) return {-1, -1};
    const int n = key / p.page, row = key - n * p.page;
    int page = t.batch;
    if (p.block_table) page = min(max(p.block_table[static_cast<long long>(t.batch) * p.table_width + n], 0), p.pages - 1);
    const auto first = [&](const Strides& at) { return page * at.outer + row * at.row + t.kv_head * at.head; };
    return {first(p.k_at), first(p.v_at)};
  }

  template <class Tile>
  TK_DEVICE static void fetch(Tile& tile, const void* cache, long long place, int columns) {
    constexpr int chunks = Tile::cols / width;
#pragma unroll
    for (int i = 0; i < Keys * chunks / 32; ++i) {
      const int piece = 32 * i + lane_index(), row = piece / chunks, col = piece % chunks * width;
      const long long first = __shfl_sync(0xffffffffu, place, row);
      const bool exists = first >= 0 && col < columns;
      ptx::cp_async_16(tile.address(row, col), static_cast<const T*>(cache) + (exists ? first + col : 0), exists ? 16u : 0u);
    }
  }
  // A tile, or where there is none an empty group: groups count tiles.
  TK_DEVICE static void fetch(Slot& slot, const Params& p, const Task& t, int tile, const Place& place) {
    if (tile < t.end_tile) {
      fetch(slot.k, p.k, place.k, p.dim);
      fetch(slot.v, p.v, place.v, p.dim_v);
    }
    ptx::cp_async_commit_group();
  }

  TK_DEVICE static void load_queries(rt<T, 16, shape.dim>& q, const Params& p, const Task& t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 8 * half + lane_index() / 4, first_col = 2 * (lane_index() % 4);
      const int columns = t.first_row + row < t.rows ? p.dim : 0;
      const T* from = static_cast<const T*>(p.q) + t.batch * p.q_at.outer + t.query(p, row) * p.q_at.row +
                      t.head_of(p, row) * p.q_at.head + first_col;
#pragma unroll
      for (int c = 0; c < shape.dim / 8; ++c)  // words of two columns, every eight
        q.x[0][2 * c + half] = 8 * c + first_col < columns ? *reinterpret_cast<const u32*>(from + 8 * c) : 0u;
    }
  }

  using Output = rt_fl<16, 16>[shape.dim_v / 16];

  TK_DEVICE static void attend(Output& o, Softmax<Keys>& soft, const rt<T, 16, shape.dim>& q, const Slot& slot,
                               const Params& p, int key) {
    typename Softmax<Keys>::Scores s;
#pragma unroll
    for (int c = 0; c < shape.dim / 16; ++c) {
      rt<T, 16, 16> part;
      rt<T, Keys, 16> k;
      columns(part, q, 16 * c);
      load(k, slot.k, 0, 16 * c);
      mma_ABt(s, part, k, c > 0);
    }
    float factor[2];
    soft.step(s, factor, p, key);
    rt<T, 16, Keys> weights;
    copy(weights, s);
#pragma unroll
    for (int c = 0; c < shape.dim_v / 16; ++c) {
      rt<T, Keys, 16, Layout::col> v;
      load(v, slot.v, 0, 16 * c);
#pragma unroll
      for (int e = 0; e < 8; ++e) o[c].x[0][e] *= factor[e / 2 % 2];
      mma_AB(o[c], weights, v);
    }
  }

  TK_DEVICE static void leave_share(Merge& merge, const Output& o, const Softmax<Keys>& soft) {
    const int warp = warp_index(), lane = lane_index();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 8 * half + lane / 4;
      float sum = soft.total[half];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      if (lane % 4 == 0) {
        merge.best[warp][row] = soft.best[half];
        merge.total[warp][row] = sum;
      }
#pragma unroll
      for (int c = 0; c < shape.dim_v / 16; ++c)
#pragma unroll
        for (int e = 2 * half; e < 8; e += 4)
          *reinterpret_cast<float2*>(&merge.o[warp][row][16 * c + fragment_col(lane, e)]) =
              make_float2(o[c].x[0][e], o[c].x[0][e + 1]);
    }
  }

  // The warps' shares joined: eight columns of a row a thread.
  TK_DEVICE static void write(const Merge& merge, const Params& p, const Task& t) {
    constexpr int chunks = shape.dim_v / width;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < kRows * chunks; i += 32 * kWarps) {
      const int row = i / chunks, col = i % chunks * width;
      if (t.first_row + row >= t.rows || col >= p.dim_v) continue;
      Join join;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) join.add(merge.best[w][row], merge.total[w][row]);
      if (p.splits == 1 && p.sinks) join.add(p.sinks[t.head_of(p, row)] * fn::log2e, 1.0f);
      float sum[width] = {};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float weight = join.weight(merge.best[w][row]);
#pragma unroll
        for (int e = 0; e < width; ++e) sum[e] = fmaf(weight, merge.o[w][row][col + e], sum[e]);
      }
      const long long rows = static_cast<long long>(p.batch) * p.seq_q * p.heads;
      const long long at = t.out_row(p, row) * p.dim_v + col;
      if (col == 0) (p.splits == 1 ? p.lse : p.partial_lse + t.split * rows)[t.lse_at(p, row)] = join.lse();
      if (p.splits == 1) {
        *reinterpret_cast<uint4*>(static_cast<T*>(p.out) + at) =
            make_uint4(ptx::pack<T>(sum[0], sum[1]), ptx::pack<T>(sum[2], sum[3]), ptx::pack<T>(sum[4], sum[5]),
                       ptx::pack<T>(sum[6], sum[7]));
      } else {
        float4* to = reinterpret_cast<float4*>(p.partial_out + t.split * rows * p.dim_v + at);
        to[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
        to[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
      }
    }
  }

  // A split without keys: `combine` reads nothing else of it.
  TK_DEVICE static void write_nothing(const Params& p, const Task& t) {
    const int row = static_cast<int>(threadIdx.x);
    if (row >= kRows || t.first_row + row >= t.rows) return;
    const long long rows = static_cast<long long>(p.batch) * p.seq_q * p.heads;
    p.partial_lse[t.split * rows + t.lse_at(p, row)] = -fn::infinity;
  }

  TK_DEVICE static void run(const Params& p) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Slot(&slots)[Stages] = reinterpret_cast<Shared*>(memory)->slots[warp_index()];
    const Task t = find_task(p, Keys);
    if (p.splits > 1 && t.first_tile == t.end_tile) return write_nothing(p, t);
    int ahead = t.first_tile + warp_index();  // the tile to fetch next
    Place place = locate(p, t, ahead);
    const auto fetch_next = [&](Slot& slot) {
      fetch(slot, p, t, ahead, place);
      ahead += kWarps;
      place = locate(p, t, ahead);
    };
#pragma unroll 1
    for (int s = 0; s < Stages - 1; ++s) fetch_next(slots[s]);
    rt<T, 16, shape.dim> q;
    load_queries(q, p, t);
    Softmax<Keys> soft(p, t);
    Output o;
#pragma unroll
    for (auto& part : o) zero(part);
    int slot = 0;
    for (int tile = t.first_tile + warp_index(); tile < t.end_tile; tile += kWarps) {
      ptx::cp_async_wait_group<Stages - 2>();
      __syncwarp();
      fetch_next(slots[slot == 0 ? Stages - 1 : slot - 1]);
      attend(o, soft, q, slots[slot], p, t.begin + tile * Keys);
      slot = slot == Stages - 1 ? 0 : slot + 1;
    }
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    Merge& merge = *reinterpret_cast<Merge*>(memory);
    leave_share(merge, o, soft);
    __syncthreads();
    write(merge, p, t);
  }
};

// out = sum_s 2^(lse_s - lse) out_s, a warp to a row of heads.
template <class T>
TK_DEVICE void combine(const Params& p) {
  const long long rows = static_cast<long long>(p.batch) * p.seq_q * p.heads;
  const long long row = static_cast<long long>(blockIdx.x) * kWarps + warp_index();
  if (row >= rows) return;
  const int head = static_cast<int>(row % p.heads), query = static_cast<int>(row / p.heads % p.seq_q);
  const long long lse_at = (row / p.heads / p.seq_q * p.heads + head) * p.seq_q + query;
  Join join;
  for (int s = 0; s < p.splits; ++s) join.add(p.partial_lse[s * rows + lse_at] * fn::log2e, 1.0f);
  if (p.sinks) join.add(p.sinks[head] * fn::log2e, 1.0f);
  if (lane_index() == 0) p.lse[lse_at] = join.lse();
  for (int col = 4 * lane_index(); col < p.dim_v; col += 128) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int s = 0; s < p.splits; ++s) {
      const float share = p.partial_lse[s * rows + lse_at] * fn::log2e;
      if (share == -fn::infinity) continue;  // was never written
      const float weight = join.weight(share);
      const float4 x = *reinterpret_cast<const float4*>(p.partial_out + (s * rows + row) * p.dim_v + col);
      sum = make_float4(fmaf(weight, x.x, sum.x), fmaf(weight, x.y, sum.y), fmaf(weight, x.z, sum.z),
                        fmaf(weight, x.w, sum.w));
    }
    *reinterpret_cast<uint2*>(static_cast<T*>(p.out) + row * p.dim_v + col) =
        make_uint2(ptx::pack<T>(sum.x, sum.y), ptx::pack<T>(sum.z, sum.w));
  }
}

}  // namespace tkpy::attention_decode

#define TKPY_DECODE(T, NAME, INDEX)                                                           \
  extern "C" __global__ void __launch_bounds__(128)                                           \
      attention_decode_##T##_##NAME(const __grid_constant__ tkpy::attention_decode::Params p) { \
    tkpy::attention_decode::Decode<tk::T, INDEX>::run(p);                                     \
  }
#define TKPY_DECODE_KERNELS(T)                                                                                  \
  TKPY_DECODE(T, 64, 0)                                                                                         \
  TKPY_DECODE(T, 128, 1)                                                                                        \
  TKPY_DECODE(T, 192x128, 2)                                                                                    \
  TKPY_DECODE(T, 256, 3)                                                                                        \
  extern "C" __global__ void __launch_bounds__(128)                                                             \
      attention_combine_##T(const __grid_constant__ tkpy::attention_decode::Params p) {                         \
    tkpy::attention_decode::combine<tk::T>(p);                                                                  \
  }
TKPY_DECODE_KERNELS(bf16)
TKPY_DECODE_KERNELS(fp16)
