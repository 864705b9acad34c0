// Programs that run on any GPU: one kernel each, checked by test_general.py.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define KERNEL extern "C" __global__ void

// ---- scans ----
__device__ int scan_warp(int v) {
  int lane = threadIdx.x % 32;
  for (int k = 1; k < 32; k *= 2) {
    int below = __shfl_up_sync(~0u, v, k);
    if (lane >= k) v += below;
  }
  return v;
}
KERNEL warp_scan(int* x) { x[threadIdx.x] = scan_warp(x[threadIdx.x]); }
__device__ int scan_block(int v, int* sums, int* total) {  // 256 threads
  int warp = threadIdx.x / 32;
  v = scan_warp(v);
  if (threadIdx.x % 32 == 31) sums[warp] = v;
  __syncthreads();
  if (warp == 0) {
    int s = threadIdx.x < 8 ? sums[threadIdx.x] : 0;
    s = scan_warp(s);
    if (threadIdx.x < 8) sums[threadIdx.x] = s;
  }
  __syncthreads();
  *total = sums[7];
  return warp ? v + sums[warp - 1] : v;
}
KERNEL block_scan(int* x, int n) {
  __shared__ int sums[8];
  int total, v = scan_block(threadIdx.x < n ? x[threadIdx.x] : 0, sums, &total);
  if (threadIdx.x < n) x[threadIdx.x] = v;
}
// One pass over many blocks: each publishes its aggregate (1), then its prefix (2), and walks back over the others.
KERNEL look_back_scan(int* x, int n, unsigned* ticket, unsigned long long* state) {
  __shared__ int sums[8], before, block;
  if (threadIdx.x == 0) block = atomicAdd(ticket, 1);
  __syncthreads();
  int i = block * 256 + threadIdx.x, total, v = scan_block(i < n ? x[i] : 0, sums, &total);
  if (threadIdx.x == 0) {
    volatile unsigned long long* seen = state;
    if (block) atomicExch(&state[block], 1ull << 32 | (unsigned)total);
    int prefix = 0;
    for (int b = block - 1; b >= 0; --b) {
      unsigned long long s;
      while (!((s = seen[b]) >> 32)) {}
      prefix += (int)s;
      if (s >> 32 == 2) break;
    }
    atomicExch(&state[block], 2ull << 32 | (unsigned)(prefix + total));
    before = prefix;
  }
  __syncthreads();
  if (i < n) x[i] = v + before;
}

// ---- rows ----
KERNEL layer_norm(float* y, const float* x, const float* gain, const float* bias, int n) {
  __shared__ float s[2][4];
  const float* row = x + blockIdx.x * n;
  float sum = 0, square = 0;
  for (int i = threadIdx.x; i < n; i += 128) sum += row[i], square += row[i] * row[i];
  for (int k = 16; k; k /= 2) sum += __shfl_xor_sync(~0u, sum, k), square += __shfl_xor_sync(~0u, square, k);
  if (threadIdx.x % 32 == 0) s[0][threadIdx.x / 32] = sum, s[1][threadIdx.x / 32] = square;
  __syncthreads();
  sum = s[0][0] + s[0][1] + s[0][2] + s[0][3], square = s[1][0] + s[1][1] + s[1][2] + s[1][3];
  float mean = sum / n, scale = rsqrtf(square / n - mean * mean + 1e-5f);
  for (int i = threadIdx.x; i < n; i += 128) y[blockIdx.x * n + i] = (row[i] - mean) * scale * gain[i] + bias[i];
}
KERNEL online_softmax(float* y, const float* x, int n) {  // one pass for maximum and sum, merged across lanes
  const float* row = x + blockIdx.x * n;
  float m = -INFINITY, s = 0;
  for (int i = threadIdx.x; i < n; i += 32) {
    float next = fmaxf(m, row[i]);
    s = s * __expf(m - next) + __expf(row[i] - next), m = next;
  }
  for (int k = 16; k; k /= 2) {
    float om = __shfl_xor_sync(~0u, m, k), os = __shfl_xor_sync(~0u, s, k), next = fmaxf(m, om);
    s = (m > -INFINITY ? s * __expf(m - next) : 0) + (om > -INFINITY ? os * __expf(om - next) : 0), m = next;
  }
  for (int i = threadIdx.x; i < n; i += 32) y[blockIdx.x * n + i] = __expf(row[i] - m) / s;
}
KERNEL matvec_bf16(float* y, const __nv_bfloat16* a, const __nv_bfloat16* x, int n) {
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += 32) sum += __bfloat162float(a[blockIdx.x * n + i]) * __bfloat162float(x[i]);
  for (int k = 16; k; k /= 2) sum += __shfl_down_sync(~0u, sum, k);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}
KERNEL matvec_dp4a(int* y, const int* a, const int* x, int words) {
  int sum = 0;
  for (int i = threadIdx.x; i < words; i += 32) sum = __dp4a(a[blockIdx.x * words + i], x[i], sum);
  sum = __reduce_add_sync(~0u, sum);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}
KERNEL dot_half2(float* y, const __half2* a, const __half2* b, int n) {
  __half2 sum = __float2half2_rn(0);
  for (int i = threadIdx.x; i < n; i += 32) sum = __hfma2(a[i], b[i], sum);
  float s = __low2float(sum) + __high2float(sum);
  for (int k = 16; k; k /= 2) s += __shfl_xor_sync(~0u, s, k);
  if (threadIdx.x == 0) *y = s;
}

// ---- grids ----
KERNEL stencil(float* y, const float* x, int h, int w) {  // five points, a tile with its halo in shared memory
  __shared__ float s[10][34];
  int i0 = blockIdx.y * 8 - 1, j0 = blockIdx.x * 32 - 1;
  for (int t = threadIdx.y * 32 + threadIdx.x; t < 340; t += 256) {
    int i = i0 + t / 34, j = j0 + t % 34;
    s[t / 34][t % 34] = i >= 0 && i < h && j >= 0 && j < w ? x[i * w + j] : 0.f;
  }
  __syncthreads();
  int i = i0 + 1 + threadIdx.y, j = j0 + 1 + threadIdx.x, a = threadIdx.y + 1, b = threadIdx.x + 1;
  if (i < h && j < w) y[i * w + j] = s[a - 1][b] + s[a + 1][b] + s[a][b - 1] + s[a][b + 1] - 4 * s[a][b];
}
KERNEL matmul_f64(double* c, const double* a, const double* b, int n) {  // 16 x 16 tiles
  __shared__ double s[2][16][16];
  int i = blockIdx.y * 16 + threadIdx.y, j = blockIdx.x * 16 + threadIdx.x;
  double sum = 0;
  for (int k = 0; k < n; k += 16) {
    s[0][threadIdx.y][threadIdx.x] = i < n && k + threadIdx.x < n ? a[i * n + k + threadIdx.x] : 0;
    s[1][threadIdx.y][threadIdx.x] = k + threadIdx.y < n && j < n ? b[(k + threadIdx.y) * n + j] : 0;
    __syncthreads();
    for (int m = 0; m < 16; ++m) sum = fma(s[0][threadIdx.y][m], s[1][m][threadIdx.x], sum);
    __syncthreads();
  }
  if (i < n && j < n) c[i * n + j] = sum;
}
KERNEL transpose_two_way(float* out, const float* in) {  // columns of 64-bit pairs: two lanes a bank
  __shared__ float tile[32][34];
  for (int r = 0; r < 32; ++r) tile[r][threadIdx.x] = in[32 * r + threadIdx.x];
  __syncwarp();
  for (int r = 0; r < 32; ++r) out[32 * r + threadIdx.x] = tile[threadIdx.x][r];
}
KERNEL grid_barrier(int* data, unsigned* arrived, int rounds) {  // every round each block reads its neighbour's value
  for (int r = 0; r < rounds; ++r) {
    if (threadIdx.x == 0) {
      int next = ((volatile int*)data)[(r & 1) * gridDim.x + (blockIdx.x + 1) % gridDim.x];
      ((volatile int*)data)[(~r & 1) * gridDim.x + blockIdx.x] = next + 1;
      __threadfence();
      atomicAdd(arrived, 1);
      while (*(volatile unsigned*)arrived < (r + 1) * gridDim.x) {}
      __threadfence();
    }
    __syncthreads();
  }
}

// ---- order and pointers ----
KERNEL bitonic_sort(unsigned* x) {  // 256 threads
  __shared__ unsigned s[256];
  int t = threadIdx.x;
  s[t] = x[t];
  __syncthreads();
  for (int size = 2; size <= 256; size *= 2)
    for (int step = size / 2; step; step /= 2) {
      int other = t ^ step;
      if (other > t && (s[t] > s[other]) == !(t & size)) { unsigned v = s[t]; s[t] = s[other], s[other] = v; }
      __syncthreads();
    }
  x[t] = s[t];
}
KERNEL compact(int* out, int* count, const int* x, int n) {  // keeps the odd ones, in order within a warp
  int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, base = 0;
  bool keep = i < n && x[i] & 1;
  unsigned votes = __ballot_sync(~0u, keep);
  if (lane == 0) base = atomicAdd(count, __popc(votes));
  base = __shfl_sync(~0u, base, 0);
  if (keep) out[base + __popc(votes & ((1u << lane) - 1))] = x[i];
}
struct Node { int value, pad; Node* next; };
KERNEL list_walk(long long* sum, int* length, Node* const* heads) {
  long long s = 0;
  int n = 0;
  for (const Node* p = heads[threadIdx.x]; p; p = p->next) s += p->value, ++n;
  sum[threadIdx.x] = s, length[threadIdx.x] = n;
}
KERNEL float_max(float* best, const float* x, int n) {  // a CAS loop
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  int* at = (int*)best;
  for (int old = *(volatile int*)at; __int_as_float(old) < x[i];) {
    int seen = atomicCAS(at, old, __float_as_int(x[i]));
    if (seen == old) break;
    old = seen;
  }
}
struct Op { __device__ virtual float run(float) const = 0; };
struct Square : Op { __device__ float run(float v) const override { return v * v; } };
struct Half : Op { __device__ float run(float v) const override { return v / 2; } };
KERNEL virtual_calls(float* x) {
  Square a;
  Half b;
  const Op* op = threadIdx.x % 3 ? (const Op*)&a : (const Op*)&b;
  x[threadIdx.x] = op->run(x[threadIdx.x]);
}
__device__ __noinline__ int ackermann(int m, int n) {
  return m == 0 ? n + 1 : n == 0 ? ackermann(m - 1, 1) : ackermann(m - 1, ackermann(m, n - 1));
}
KERNEL deep_recursion(int* out) { out[threadIdx.x] = ackermann(threadIdx.x % 3, threadIdx.x / 3); }
__constant__ int taps[5] = {1, -2, 3, -2, 1};
KERNEL fir(int* y, const int* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x, s = 0;
  for (int k = 0; k < 5; ++k) if (i >= k && i < n) s += taps[k] * x[i - k];
  if (i < n) y[i] = s;
}
