// Scans of register tiles along rows or columns, forwards or backwards:
//   row_cumsum(dst, src)                 dst[r][c] = src[r][0] + .. + src[r][c]
//   row_decay_scan(dst, src, decay)      dst[r][c] = decay dst[r][c - 1] + src[r][c]
//   .. (.., state)                       state (Tile::per_row) comes before the first column, and leaves with the last
//   col_..                               the same down the columns, state Tile::per_col
//   .._<Direction::backward>             from the last to the first
// decay is a number, a vector or a tile, as in maps. In-lane first, then over lanes by shuffles: log depth over lanes.
#pragma once

#include "maps.cuh"

namespace tk {

enum class Direction { forward, backward };

namespace detail {

// What a stretch of the sequence does to a state s: s -> a s + x.
struct step {
  float a, x;
};
TK_DEVICE step then(step first, step second) { return {first.a * second.a, fmaf(second.a, first.x, second.x)}; }
TK_DEVICE step from_lane(step s, int lane) {
  return {__shfl_sync(0xffffffffu, s.a, lane), __shfl_sync(0xffffffffu, s.x, lane)};
}
// A plain sum: a is 1 and is not reckoned.
struct plus {
  float x;
};
TK_DEVICE plus then(plus first, plus second) { return {first.x + second.x}; }
TK_DEVICE plus from_lane(plus s, int lane) { return {__shfl_sync(0xffffffffu, s.x, lane)}; }
TK_DEVICE float apply(step s, float state) { return fmaf(s.a, state, s.x); }
TK_DEVICE float apply(plus s, float state) { return s.x + state; }

// Count lanes that lie Stride apart hold consecutive stretches `own`. Returns what comes before this lane's stretch (ok
// false at the first) and, in `all`, the whole.
template <int Stride, int Count, Direction D, class S>
TK_DEVICE S before_lane(S own, S& all, bool& ok) {
  const int lane = lane_index(), here = lane / Stride % Count, base = lane - here * Stride;
  const int place = D == Direction::forward ? here : Count - 1 - here;
  const auto lane_of = [&](int p) { return base + Stride * (D == Direction::forward ? p : Count - 1 - p); };
#pragma unroll
  for (int d = 1; d < Count; d *= 2) {
    const S earlier = from_lane(own, lane_of(place >= d ? place - d : place));
    if (place >= d) own = then(earlier, own);
  }
  all = from_lane(own, lane_of(Count - 1));
  ok = place > 0;
  return from_lane(own, lane_of(place > 0 ? place - 1 : 0));
}

// One line of the tile: Count lanes, `Own` neighbours in each, `Groups` times over. at(group, i) gives the step of
// neighbour i, put(group, i, value) takes the result; both count in the direction of the scan.
template <int Stride, int Count, int Groups, int Own, Direction D, class At, class Put>
TK_DEVICE void scan_line(float& state, At at, Put put) {
#pragma unroll
  for (int group = 0; group < Groups; ++group) {
    decltype(at(0, 0)) own[Own];
    own[0] = at(group, 0);
#pragma unroll
    for (int i = 1; i < Own; ++i) own[i] = then(own[i - 1], at(group, i));
    auto all = own[0];
    bool ok;
    const auto earlier = before_lane<Stride, Count, D>(own[Own - 1], all, ok);
    const float start = ok ? apply(earlier, state) : state;
#pragma unroll
    for (int i = 0; i < Own; ++i) put(group, i, apply(own[i], start));
    state = apply(all, state);
  }
}

// Along the elements of a block (along a row of a row tile): groups of 4 lanes x `run` neighbours.
template <Direction D, class V, class Tile, class Of, class Dst>
TK_DEVICE void scan_along(Dst& dst, V& state, Of of) {
  constexpr int run = Tile::run, groups = Tile::elements / (2 * run);
  constexpr bool forward = D == Direction::forward;
#pragma unroll
  for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto element_at = [half](int group, int i) {
        return 2 * run * (forward ? group : groups - 1 - group) + half * run + (forward ? i : run - 1 - i);
      };
      scan_line<1, 4, groups, run, D>(
          state.x[2 * b + half], [&](int group, int i) { return of(b, element_at(group, i)); },
          [&](int group, int i, float value) { dst[b][element_at(group, i)] = value; });
    }
}

// Across blocks (down a column of a row tile): groups of 8 lanes, two to a block.
template <Direction D, class V, class Tile, class Of, class Dst>
TK_DEVICE void scan_across(Dst& dst, V& state, Of of) {
  constexpr int run = Tile::run, groups = 2 * Tile::blocks;
#pragma unroll
  for (int k = 0; k < V::slots; ++k) {
    const auto half_at = [](int group) { return D == Direction::forward ? group : groups - 1 - group; };
    const auto element_at = [&](int group) { return k / run * 2 * run + half_at(group) % 2 * run + k % run; };
    scan_line<4, 8, groups, 1, D>(
        state.x[k], [&](int group, int) { return of(half_at(group) / 2, element_at(group)); },
        [&](int group, int, float value) { dst[half_at(group) / 2][element_at(group)] = value; });
  }
}

template <Direction D, class Tile, class V, class Of>
TK_DEVICE void scan(Tile& dst, V& state, Of of) {
  static_assert(is_same<typename Tile::compute, float>, "scans are of floating-point tiles");
  float out[Tile::blocks][Tile::elements];
  if constexpr (V::spread == Spread::across)
    scan_along<D, V, Tile>(out, state, of);
  else
    scan_across<D, V, Tile>(out, state, of);
#pragma unroll
  for (int b = 0; b < Tile::blocks; ++b)
#pragma unroll
    for (int e = 0; e < Tile::elements; e += Tile::run) {
      float v[Tile::run];
#pragma unroll
      for (int i = 0; i < Tile::run; ++i) v[i] = out[b][e + i];
      dst.set_run(b, e, v);
    }
}

template <Direction D, class Tile, class V>
TK_DEVICE void cumsum(Tile& dst, const Tile& src, V& state) {
  scan<D>(dst, state, [&](int b, int e) { return plus{src.get(b, e)}; });
}
template <Direction D, class Tile, class Decay, class V>
TK_DEVICE void decay_scan(Tile& dst, const Tile& src, const Decay& decay, V& state) {
  check_operand<Tile, Decay>();
  scan<D>(dst, state, [&](int b, int e) { return step{operand<Tile>(decay, b, e), src.get(b, e)}; });
}

}  // namespace detail

#define TK_SCAN(LINE, STATE)                                                                                    \
  template <Direction D = Direction::forward, class Tile>                                                       \
    requires is_rt<Tile>                                                                                        \
  TK_DEVICE void LINE##_cumsum(Tile& dst, const Tile& src, typename Tile::STATE& state) {                       \
    detail::cumsum<D>(dst, src, state);                                                                         \
  }                                                                                                             \
  template <Direction D = Direction::forward, class Tile>                                                       \
    requires is_rt<Tile>                                                                                        \
  TK_DEVICE void LINE##_cumsum(Tile& dst, const Tile& src) {                                                    \
    typename Tile::STATE state;                                                                                 \
    zero(state);                                                                                                \
    detail::cumsum<D>(dst, src, state);                                                                         \
  }                                                                                                             \
  template <Direction D = Direction::forward, class Tile, class Decay>                                          \
    requires is_rt<Tile>                                                                                        \
  TK_DEVICE void LINE##_decay_scan(Tile& dst, const Tile& src, const Decay& decay, typename Tile::STATE& state) { \
    detail::decay_scan<D>(dst, src, decay, state);                                                              \
  }                                                                                                             \
  template <Direction D = Direction::forward, class Tile, class Decay>                                          \
    requires is_rt<Tile>                                                                                        \
  TK_DEVICE void LINE##_decay_scan(Tile& dst, const Tile& src, const Decay& decay) {                            \
    typename Tile::STATE state;                                                                                 \
    zero(state);                                                                                                \
    detail::decay_scan<D>(dst, src, decay, state);                                                              \
  }
TK_SCAN(row, per_row)  // along each row
TK_SCAN(col, per_col)  // down each column
#undef TK_SCAN

}  // namespace tk
