// What a CTA of the main kernel (backward.cuh) holds: its tiles and barriers in shared memory, the registers of a consumer
// (Half).
#pragma once

#include "scores.cuh"

namespace tkpy::attention_backward {

template <class T_, int Index, bool Capped_, bool Listed_>
struct Layout {
  using T = T_;
  static constexpr bool Capped = Capped_, Listed = Listed_;
  static constexpr Shape shape = Listed ? kBlockShapes[Index] : kShapes[Index];
  static constexpr bool dp_later = Capped && !shape.always_capped;  // tanh needs the registers of dP, and then of P
  static constexpr int Rows = shape.rows, Keys = shape.keys, Stages = shape.stages(), both = 3;
  static constexpr bool wide = shape.wide(), in_turn = shape.in_turn();
  static constexpr int part_size = shape.part();
  static constexpr int Values = shape.dim_v();
  static constexpr int first = shape.columns(0, shape.dim), second = shape.columns(1, shape.dim);

  using KTile = st<T, Keys, shape.dim, 2 * shape.key_panel()>;
  using VTile = st<T, Keys, Values, 2 * shape.key_panel()>;
  using QTile = st<T, Rows, shape.dim, 2 * shape.panel()>;
  using ZTile = st<T, Rows, Values, 2 * shape.panel()>;
  using Stats = sv<float, 2 * Rows>;
  using Parameters = typename choose<Listed, BlockParams, Params>::type;
  using Work = Schedule<Rows, Keys, Parameters>;
  using Pairs = Scores<T, wide ? Rows / 2 : Rows, Capped>;

  struct Barriers {
    mbarrier keys_full, keys_free, ragged;
    channel<Stages> steps;
  };
  struct ByKeys {
    st<T, Keys, Rows> ds[2];
    float dq[2][in_turn ? 2 * part_size : part_size];
  };
  struct ByColumns {
    st<T, Keys, Rows> ds[2], weights[2];
  };
  struct ListedStep {
    block_lists::Step step;
    u32 turn;
  };
  struct Lists {
    ListedStep steps[Stages];
    int owed[2];
  };
  struct NoLists {};
  static constexpr bool staged = shape.mask > 0;  // element masks are in shared memory
  struct alignas(16) MaskTiles {
    unsigned char rows[Stages][Rows * shape.mask + !staged];
  };
  using Masks = typename choose<staged, MaskTiles, NoLists>::type;
  struct Shared : choose<wide, ByColumns, ByKeys>::type {
    KTile k;
    VTile v;
    QTile q[Stages];
    ZTile dz[Stages];
    Stats stats[Stages];
    Masks masks;
    typename choose<Listed, Lists, NoLists>::type listed;
    Barriers barriers;
  };
  static_assert(sizeof(Shared) == shape.shared_bytes(), "the launcher asks for shared_bytes(): it must be the truth");
  static_assert(shape.shared_bytes() <= 232448, "a CTA has at most 227 KiB of shared memory");

  // Of a consumer's 128 threads the one that speaks for all.
  TK_DEVICE static bool leader() { return threadIdx.x % 128 == 0; }
};

// The same for a consumer that sums so many columns of dK: what it holds in registers.
template <class Layout, int Columns_>
struct Half : Layout {
  static constexpr int Columns = Columns_;
  static constexpr int ValueColumns = Layout::shape.columns(Columns == Layout::first ? 0 : 1, Layout::Values);
  static constexpr int in_turn_columns = Columns < 128 ? Columns : 64;  // of dQ: all 128 at once would not fit
  using Sum = rt_fl<16, Columns>;
  using ValueSum = rt_fl<16, ValueColumns>;
  using Part = rt_fl<16, Layout::wide ? Columns : Layout::in_turn ? in_turn_columns : Layout::part_size / 64>;

  TK_DEVICE static int first_column(int number) { return number * (Layout::shape.dim - Columns); }
  TK_DEVICE static int first_value_column(int number) { return number * (Layout::Values - ValueColumns); }
};

}  // namespace tkpy::attention_backward
