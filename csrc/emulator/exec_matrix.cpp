// ldmatrix, stmatrix and mma.sync on a warp's rows (PTX ISA 9.7.14.5); the arithmetic is in tensor/.
#include <array>
#include <bit>

#include "exec.h"
#include "tensor/fragments.h"

namespace tkpy::emulator {

namespace {

// Lanes 0 .. 8 * matrices - 1 give row addresses.
u32 address_lanes(u32 matrices) { return matrices == 4 ? kFullMask : (1u << (8 * matrices)) - 1; }

}  // namespace

void exec_ldmatrix(Exec& x, const Op& op, u32 mask) {
  if (!converge(x, op, mask, kFullMask)) return;
  Addresses a;
  const u32 wanted = address_lanes(op.a);
  if (resolve(x, op, wanted, 16, AccessKind::read, 0, a) != wanted) return;
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  u32* rows[4];
  for (u32 i = 0; i < op.a; ++i) rows[i] = x.row<u32>(list[i]);
  tensor::ldmatrix(op.a, op.b, a.where, rows);
}

void exec_stmatrix(Exec& x, const Op& op, u32 mask) {
  if (!converge(x, op, mask, kFullMask)) return;
  Addresses a;
  const u32 wanted = address_lanes(op.a);
  if (resolve(x, op, wanted, 16, AccessKind::write, 0, a) != wanted) return;
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  const u32* rows[4];
  for (u32 i = 0; i < op.a; ++i) rows[i] = x.row<u32>(list[i]);
  std::array<std::array<u8, 16>, kLanes> data;
  u8* to[kLanes];
  for (u32 lane = 0; lane < kLanes; ++lane) to[lane] = data[lane].data();
  tensor::stmatrix(op.a, op.b, rows, to);
  for (u32 rest = wanted; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    Cta* cta = nullptr;
    if (x.checked && shared_range(x, static_cast<u32>(a.value[lane]), 16, cta))
      shared_access(x, op, *cta, lane, static_cast<u32>(a.value[lane]) & kSharedOffsetMask, 16, AccessKind::write, false, to[lane]);
    std::memcpy(a.where[lane], to[lane], 16);
  }
}

void exec_mma_quad_pairs(Exec& x, const Op& op, u32 mask) {
  if (!converge(x, op, mask, kFullMask)) return;
  const tensor::QuadPairs m{(op.a & 1) != 0, (op.a & 2) != 0, (op.a & 4) != 0, (op.a & 8) != 0};
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  u32 *d[8], *a[2], *b[2], *c[8];
  for (u32 i = 0; i < m.registers_d(); ++i) d[i] = x.row<u32>(*list++);
  for (u32*& row : a) row = x.row<u32>(*list++);
  for (u32*& row : b) row = x.row<u32>(*list++);
  for (u32 i = 0; i < m.registers_c(); ++i) c[i] = x.row<u32>(*list++);
  tensor::mma_quad_pairs(m, a, b, c, d);
}

void exec_mma(Exec& x, const Op& op, u32 mask) {
  if (!converge(x, op, mask, kFullMask)) return;
  const Function& f = *x.frame->fn->function;
  const tensor::MmaOp& m = f.mma_ops[static_cast<std::size_t>(op.imm)];
  const tensor::MmaRegisters n = tensor::mma_registers(m);
  const u32* list = f.lists.data() + op.list;
  if (m.a == Type::f64) {
    double *d[8], *a[8], *b[8], *c[8];
    for (u32 i = 0; i < n.c; ++i) d[i] = x.row<double>(list[i]), c[i] = x.row<double>(list[n.c + n.a + n.b + i]);
    for (u32 i = 0; i < n.a; ++i) a[i] = x.row<double>(list[n.c + i]);
    for (u32 i = 0; i < n.b; ++i) b[i] = x.row<double>(list[n.c + n.a + i]);
    return tensor::mma_f64(m, a, b, c, d);
  }
  u32 *d[8], *a[8], *b[8], *c[8];
  for (u32 i = 0; i < n.c; ++i) d[i] = x.row<u32>(list[i]), c[i] = x.row<u32>(list[n.c + n.a + n.b + i]);
  for (u32 i = 0; i < n.a; ++i) a[i] = x.row<u32>(list[n.c + i]);
  for (u32 i = 0; i < n.b; ++i) b[i] = x.row<u32>(list[n.c + n.a + i]);
  tensor::mma(m, a, b, c, d, m.sparse ? x.row<u32>(op.s[0]) : nullptr, x.launch->config->sums());
}

}  // namespace tkpy::emulator
