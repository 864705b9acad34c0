// wmma.load, wmma.mma and wmma.store (PTX ISA 9.7.14.4). A load or store is one access an element (a register of them, where
// they are narrower than a byte), each under the checks of ld and st; which lane holds what is tensor/wmma.h's.
#include <algorithm>
#include <utility>

#include "exec_wmma.h"

namespace tkpy::emulator {

namespace {

struct Transfer {
  tensor::WmmaOp w;
  tensor::WmmaMatrix matrix;
  Type type;
  bool column_major;
  u32 bits, per, bytes;  // of an element; elements moved at once; bytes of those

  explicit Transfer(const Op& op)
      : w(unpack_wmma(op.imm)), matrix(static_cast<tensor::WmmaMatrix>(op.a)),
        type(static_cast<Type>(op.d[1])), column_major(op.b) {
    bits = type_bits(type);
    per = bits < 8 ? 32 / bits : 1;
    bytes = bits * per / 8;
  }

  // Bytes from the matrix's first element.
  u64 offset(u32 lane, u32 reg, u32 element, u32 stride) const {
    const tensor::Cell at = tensor::wmma_cell(w, matrix, type, lane, reg, element);
    const u64 elements = column_major ? u64{at.col} * stride + at.row : u64{at.row} * stride + at.col;
    return elements * bits / 8;
  }
};

u64 base(const Exec& x, const Op& op, u32 lane) { return op.f & 1 ? x.row<u64>(op.s[0])[lane] : x.row<u32>(op.s[0])[lane]; }

// The first element is aligned to a lane's fragment, rows (or columns) to as much of it as ldm's rule of 16 bytes leaves.
bool aligned(Exec& x, const Op& op, const Transfer& t) {
  const u32 fragment = op.list_size * (t.type == Type::f64 ? 8 : 4);
  for (u32 lane = 0; lane < kLanes; ++lane) {
    const u64 pitch = u64{x.row<u32>(op.s[1])[lane]} * t.bits / 8;
    if (base(x, op, lane) % fragment == 0 && pitch % std::min(fragment, 16u) == 0) continue;
    x.report(Check::misaligned, op, lane, "wmma: a matrix at " + std::to_string(base(x, op, lane)) + " with " + std::to_string(pitch) +
                                              " bytes between its rows; a fragment of " + std::to_string(fragment) +
                                              " bytes needs multiples of that and of " + std::to_string(std::min(fragment, 16u)));
    return false;
  }
  return true;
}

// One element of every lane between memory and the scratch row that follows the fragment in the list.
void move(Exec& x, const Op& op, const Transfer& t, u32 reg, u32 element, bool load) {
  for (u32 lane = 0; lane < kLanes; ++lane)
    x.row<u64>(op.d[0])[lane] = base(x, op, lane) + t.offset(lane, reg, element, x.row<u32>(op.s[1])[lane]);
  Op one = op;
  one.e = static_cast<u8>(Base::row64);
  one.s[0] = op.d[0];
  one.imm = 0;
  one.a = static_cast<u8>(t.bytes);
  one.b = 1;
  one.f = t.type == Type::f64 ? kWide | 64u << 16 : 32u << 16;
  one.list = op.list + op.list_size;
  one.list_size = 1;
  const SiteKey site = x.site(op);  // `one` lies outside the program
  const SiteKey* before = std::exchange(x.late_site, &site);
  if (load) exec_load(x, one, kFullMask);
  else exec_store(x, one, kFullMask);
  x.late_site = before;
}

}  // namespace

void exec_wmma_load(Exec& x, const Op& op, u32 mask) {
  if (!converge(x, op, mask, kFullMask)) return;
  const Function& f = *x.frame->fn->function;
  const Transfer t(op);
  if (!aligned(x, op, t)) return;
  const u32* list = f.lists.data() + op.list;
  const u32 scratch = list[op.list_size], elements = tensor::wmma_elements(t.type, t.matrix) / t.per;
  for (u32 reg = 0; reg < op.list_size; ++reg) {
    if (t.type == Type::f64) {
      move(x, op, t, reg, 0, true);
      std::memcpy(x.row<u64>(list[reg]), x.row<u64>(scratch), kLanes * sizeof(u64));
      continue;
    }
    u32 packed[kLanes] = {};
    for (u32 element = 0; element < elements; ++element) {
      move(x, op, t, reg, element, true);
      for (u32 lane = 0; lane < kLanes; ++lane) packed[lane] |= x.row<u32>(scratch)[lane] << (element * t.bits);
    }
    std::memcpy(x.row<u32>(list[reg]), packed, sizeof packed);
  }
}

void exec_wmma_store(Exec& x, const Op& op, u32 mask) {
  if (!converge(x, op, mask, kFullMask)) return;
  const Function& f = *x.frame->fn->function;
  const Transfer t(op);
  if (!aligned(x, op, t)) return;
  const u32* list = f.lists.data() + op.list;
  const u32 scratch = list[op.list_size], elements = tensor::wmma_elements(t.type, t.matrix);
  for (u32 reg = 0; reg < op.list_size; ++reg) {
    for (u32 element = 0; element < elements; ++element) {
      if (t.type == Type::f64) std::memcpy(x.row<u64>(scratch), x.row<u64>(list[reg]), kLanes * sizeof(u64));
      else for (u32 lane = 0; lane < kLanes; ++lane) x.row<u32>(scratch)[lane] = x.row<u32>(list[reg])[lane] >> (element * t.bits % 32);
      move(x, op, t, reg, element, false);
    }
  }
}

void exec_wmma(Exec& x, const Op& op, u32 mask) {
  if (!converge(x, op, mask, kFullMask)) return;
  const Function& f = *x.frame->fn->function;
  const tensor::WmmaOp w = unpack_wmma(op.imm);
  const u32* list = f.lists.data() + op.list;
  auto run = [&]<class T>(T*, auto&& multiply) {
    T *d[8], *a[8], *b[8], *c[8];
    const u32* at = list;
    auto take = [&](T** rows, tensor::WmmaMatrix matrix, Type type) {
      for (u32 i = 0; i < tensor::wmma_registers(w, matrix, type); ++i) rows[i] = x.row<T>(*at++);
    };
    take(d, tensor::WmmaMatrix::c, w.d);
    take(a, tensor::WmmaMatrix::a, w.a);
    take(b, tensor::WmmaMatrix::b, w.b);
    take(c, tensor::WmmaMatrix::c, w.c);
    multiply(w, a, b, c, d);
  };
  if (w.a == Type::f64) run(static_cast<double*>(nullptr), tensor::wmma_f64);
  else run(static_cast<u32*>(nullptr), tensor::wmma);
}

}  // namespace tkpy::emulator
