// Every law of tk/layout.h, tried on everything. Prints the number of checks, or the first law broken.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <vector>

#include "tk/layout.h"

namespace {

long checks = 0;

void require(bool holds, const char* law, int a = 0, int b = 0, int c = 0, int d = 0) {
  ++checks;
  if (holds) return;
  std::printf("broken: %s at (%d, %d, %d, %d)\n", law, a, b, c, d);
  std::exit(1);
}

void fragments() {
  for (const int run : {1, 2, 4})
    for (int cols = 4 * run; cols <= 256; cols += 4 * run) {
      std::vector<int> seen(static_cast<std::size_t>(16 * cols), 0);
      for (int lane = 0; lane < 32; ++lane)
        for (int e = 0; e < cols / 2; ++e) {
          const int row = tk::fragment_row(lane, e, run), col = tk::fragment_col(lane, e, run);
          require(row >= 0 && row < 16 && col >= 0 && col < cols, "a fragment stays in its block", run, cols, lane, e);
          require(seen[static_cast<std::size_t>(row * cols + col)]++ == 0, "a fragment holds no element twice", run,
                  cols, lane, e);
          require(e % run == 0 || (row == tk::fragment_row(lane, e - 1, run) &&
                                   col == tk::fragment_col(lane, e - 1, run) + 1),
                  "a run is of neighbours", run, cols, lane, e);
        }
    }
  // Register r of ldmatrix.x4 holds matrix r, whose rows lanes 8r .. 8r + 7 point at; lane l gets its 32-bit word l % 4:
  // run r of the fragment, whatever the size of its elements. Transposed, lane l gets rows 2 (l % 4) .. of column l / 4:
  // run r of a column tile.
  for (int lane = 0; lane < 32; ++lane)
    for (int r = 0; r < 4; ++r) {
      const int row_lane = 8 * r + lane / 4;
      for (const int run : {1, 2, 4})
        require(tk::matrix_row(row_lane) == tk::fragment_row(lane, run * r, run) &&
                    4 * run * tk::matrix_chunk(row_lane) + run * (lane % 4) == tk::fragment_col(lane, run * r, run),
                "ldmatrix fills the fragment", run, lane, r);
      for (int i = 0; i < 2; ++i) {
        const int from = 8 * r + 2 * (lane % 4) + i;
        require(tk::matrix_trans_row(from) == tk::fragment_col(lane, 2 * r + i) &&
                    8 * tk::matrix_trans_chunk(from) + lane / 4 == tk::fragment_row(lane, 2 * r + i),
                "ldmatrix.trans fills the column fragment", lane, r, i);
      }
    }
}

void vectors() {
  using tk::Spread;
  for (const int run : {1, 2, 4})
    for (const Spread spread : {Spread::across, Spread::along, Spread::lanes})
      for (int length = 16; length <= 256; length += 16) {
        std::vector<int> seen(static_cast<std::size_t>(length), 0);
        for (int lane = 0; lane < 32; ++lane)
          for (int slot = 0; slot < tk::vector_slots(spread, length); ++slot) {
            const int i = tk::vector_index(spread, lane, slot, run);
            require(i >= 0 && (i < length || (spread == Spread::lanes && i < length + 16)), "an index of the vector",
                    run, length, lane, slot);
            if (i < length) ++seen[static_cast<std::size_t>(i)];
          }
        const int copies = spread == Spread::across ? 4 : spread == Spread::along ? 8 : 1;
        for (int i = 0; i < length; ++i)
          require(seen[static_cast<std::size_t>(i)] == copies, "every index as often as its spread says", run, length,
                  i);
      }
  for (const int run : {1, 2, 4})
    for (int lane = 0; lane < 32; ++lane)
      for (int block = 0; block < 4; ++block)
        for (int e = 0; e < 64; ++e)
          require(tk::vector_index(Spread::across, lane, tk::across_slot(block, e, run), run) ==
                          16 * block + tk::fragment_row(lane, e, run) &&
                      tk::vector_index(Spread::along, lane, tk::along_slot(e, run), run) ==
                          tk::fragment_col(lane, e, run),
                  "a vector meets the elements of its row and column", run, lane, block, e);
}

void groups() {
  for (const int warps : {1, 2, 4, 8}) {
    std::set<int> slabs;
    for (int warp = 0; warp < warps; ++warp)
      for (int slab = 0; slab < 5; ++slab) slabs.insert(tk::group_slab(warps, warp, slab));
    require(slabs.size() == static_cast<std::size_t>(5 * warps) && *slabs.begin() == 0 &&
                *slabs.rbegin() == 5 * warps - 1,
            "every slab of a group's tile belongs to one warp", warps);
  }
}

void tiles() {
  for (const int swizzle : {0, 32, 64, 128})
    for (const int size : {1, 2, 4})
      for (const int rows : {8, 16, 64, 128, 256})
        for (const int row_bytes : {16, 32, 64, 96, 128, 256, 384, 512}) {
          if (swizzle && row_bytes % swizzle) continue;
          const int cols = row_bytes / size;
          std::vector<char> seen(static_cast<std::size_t>(rows * row_bytes), 0);
          for (int r = 0; r < rows; ++r)
            for (int c = 0; c < cols; ++c) {
              const unsigned at = tk::tile_offset(rows, cols, size, swizzle, r, c);
              require(at + static_cast<unsigned>(size) <= seen.size(), "a tile stays in its bytes", swizzle, rows, r,
                      c);
              const int width = swizzle ? swizzle : row_bytes, byte = c * size;
              require(at == static_cast<unsigned>(byte / width * rows * width) +
                                tk::swizzle_bytes(static_cast<unsigned>(r * width + byte % width), swizzle),
                      "panels of swizzled rows", swizzle, rows, r, c);
              require(tk::swizzle_bytes(tk::linear_offset(rows, cols, size, swizzle, r, c), swizzle) == at,
                      "the linear place, permuted", swizzle, rows, r, c);
              require(at % static_cast<unsigned>(size) == 0, "elements are aligned", swizzle, rows, r, c);
              require(seen[at]++ == 0, "no two elements share a place", swizzle, rows, r, c);
              if (c * size % 16)
                require(at == tk::tile_offset(rows, cols, size, swizzle, r, c - 1) + static_cast<unsigned>(size),
                        "16 bytes stay together", swizzle, rows, r, c);
            }
        }
}

void banks() {
  for (const int swizzle : {32, 64, 128})
    for (int col = 0; col < swizzle / 2; col += 8)
      for (int row = 0; row < 64; row += 8) {
        std::set<unsigned> used;
        for (int r = 0; r < 8; ++r) used.insert(tk::tile_offset(64, swizzle / 2, 2, swizzle, row + r, col) / 16 % 8);
        require(used.size() == 8, "a phase of ldmatrix has no bank conflict", swizzle, row, col);
      }
  // Half a warp moves 8 bytes a lane: rows g of one half of the fragment, 8 columns of 4 bytes, in twisted order.
  for (const int swizzle : {32, 64, 128})
    for (int piece = 0; piece < swizzle / 32; ++piece)
      for (int half = 0; half < 4; ++half) {
        std::set<unsigned> used;
        for (int lane = half % 2 * 16; lane < half % 2 * 16 + 16; ++lane) {
          const int twisted = piece ^ (tk::pair_twist(swizzle, lane) ? tk::pair_twist_distance(swizzle) : 0);
          used.insert(tk::tile_offset(64, swizzle / 4, 4, swizzle, lane / 4 + half / 2 * 8,
                                      8 * twisted + 2 * (lane % 4)) / 8 % 16);
        }
        require(used.size() == 16, "pairs of 32-bit elements have no bank conflict", swizzle, piece, half);
      }
  for (int part = 0; part < 64; part += 8)
    for (int half = 0; half < 4; ++half) {  // the float2 writes of half a warp: 16 lanes, rows of either block half
      std::set<int> used;
      for (int lane = 16 * (half % 2); lane < 16 * (half % 2) + 16; ++lane) {
        const int row = lane / 4 + 8 * (half / 2), col = part + 2 * (lane % 4);
        for (int i = 0; i < 2; ++i) used.insert((64 * row + tk::patch_col(row, col) + i) % 32);
      }
      require(used.size() == 32, "writing the patch has no bank conflict", part, half);
    }
  for (int row = 0; row < 16; ++row) {
    std::set<int> columns;
    for (int col = 0; col < 64; ++col) columns.insert(tk::patch_col(row, col));
    require(columns.size() == 64 && *columns.begin() == 0 && *columns.rbegin() == 63, "a patch row is a permutation",
            row);
  }
}

// The address of element (mn, k) of a k-step as the hardware forms it: the canonical layouts of the PTX ISA (strides),
// then the swizzle as an XOR of absolute address bits 4-6 with bits 7-9.
unsigned hardware_address(tk::u64 d, tk::Major major, int mn, int k) {
  const unsigned start = static_cast<unsigned>(d & 0x3fff) << 4, leading = static_cast<unsigned>(d >> 16 & 0x3fff) << 4,
                 stride = static_cast<unsigned>(d >> 32 & 0x3fff) << 4, mode = static_cast<unsigned>(d >> 62);
  const unsigned width = mode == 1   ? 128
                         : mode == 2 ? 64
                                     : 32,
                 m = static_cast<unsigned>(mn), kk = static_cast<unsigned>(k);
  const unsigned linear = major == tk::Major::k ? start + m / 8 * stride + m % 8 * width + kk * 2
                                                : start + m / (width / 2) * leading + kk / 8 * stride + kk % 8 * width +
                                                      m % (width / 2) * 2;
  const unsigned mask = width / 16 - 1;
  return linear ^ ((linear >> 7 & mask) << 4);
}

void descriptors() {
  for (const int swizzle : {32, 64, 128}) {
    const tk::u64 d = tk::matrix_descriptor(0x12340, 0x2000, 0x400, swizzle);
    require((d & 0x3fff) == 0x1234 && (d >> 16 & 0x3fff) == 0x200 && (d >> 32 & 0x3fff) == 0x40, "descriptor fields",
            swizzle);
    require((d >> 14 & 3) == 0 && (d >> 30 & 3) == 0 && (d >> 46 & 0xffff) >> 3 << 3 == (d >> 46 & 0xffff),
            "reserved bits", swizzle);
    require((d >> 49 & 7) == 0 && static_cast<int>(d >> 62) == (swizzle == 128  ? 1
                                                                : swizzle == 64 ? 2
                                                                                : 3),
            "descriptor mode", swizzle);
    for (const int mn : {8, 16, 64, 96, 128, 256})
      for (const int depth : {16, 32, 64, 128})
        for (const tk::Major major : {tk::Major::k, tk::Major::mn}) {
          const bool k_major = major == tk::Major::k;
          const int rows = k_major ? mn : depth, cols = k_major ? depth : mn;
          if (cols * 2 % swizzle) continue;
          const unsigned base = 1024 * 3;
          for (int step = 0; step < depth / 16; ++step) {
            const tk::u64 bits = tk::tile_descriptor(base, major, rows, swizzle, step);
            require(bits == tk::tile_descriptor(base, major, rows, swizzle, 0) +
                                tk::encode_offset(tk::step_offset(major, rows, swizzle, step)),
                    "a step adds to the descriptor", swizzle, mn, step);
            for (int i = 0; i < mn; ++i)
              for (int k = 0; k < 16; ++k) {
                const int row = k_major ? i : step * 16 + k, col = k_major ? step * 16 + k : i;
                require(
                    hardware_address(bits, major, i, k) == base + tk::tile_offset(rows, cols, 2, swizzle, row, col),
                    k_major ? "a K-major descriptor finds every element" : "an MN-major descriptor finds every element",
                    swizzle, mn, i, k);
              }
          }
        }
  }
}

void tile_order() {
  for (int rows = 1; rows <= 20; ++rows)
    for (int cols = 1; cols <= 7; ++cols)
      for (const int group : {1, 3, 8}) {
        std::set<int> seen;
        for (int i = 0; i < rows * cols; ++i) {
          const tk::Tile2 t = tk::grouped_tile(i, rows, cols, group);
          require(t.row >= 0 && t.row < rows && t.col >= 0 && t.col < cols, "a tile is in the grid", rows, cols, group,
                  i);
          require(seen.insert(t.row * cols + t.col).second, "every tile once", rows, cols, group, i);
        }
      }
}

void task_order() {
  for (int workers = 1; workers <= 7; ++workers)
    for (int tasks = 0; tasks <= 40; ++tasks) {
      std::set<int> seen;
      for (int index = 0; index < workers; ++index)
        for (int round = 0; tk::snake_task(round, index, workers) < tasks; ++round)
          require(seen.insert(tk::snake_task(round, index, workers)).second, "no task twice", workers, tasks, index);
      require(static_cast<int>(seen.size()) == tasks, "every task once", workers, tasks);
      // Costs tasks, tasks - 1, .. 1: after whole pairs of rounds all workers have the same sum.
      if (tasks % (2 * workers) == 0)
        for (int index = 0; index < workers; ++index) {
          int sum = 0;
          for (int round = 0; round < tasks / workers; ++round) sum += tasks - tk::snake_task(round, index, workers);
          require(sum * workers == tasks * (tasks + 1) / 2, "sorted costs are shared evenly", workers, tasks, index);
        }
    }
}

static_assert(tk::widest_swizzle(128) == 128 && tk::widest_swizzle(192) == 64 && tk::widest_swizzle(96) == 32 &&
              tk::widest_swizzle(48) == 0);
static_assert(tk::swizzle_bytes(tk::swizzle_bytes(0x3f0, 128), 128) == 0x3f0);

}  // namespace

int main() {
  fragments();
  vectors();
  groups();
  tiles();
  banks();
  descriptors();
  tile_order();
  task_order();
  std::printf("%ld checks\n", checks);
}
