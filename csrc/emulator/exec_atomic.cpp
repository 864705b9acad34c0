// atom and red (PTX ISA 9.7.13.4, 9.7.13.5). Lanes take effect one after another, in lane order.
#include <algorithm>
#include <array>
#include <bit>

#include "exec.h"
#include "numeric.h"

namespace tkpy::emulator {

namespace {

template <class T>
T integer_op(AtomicOp what, T old, T b, T c) {
  switch (what) {
    case AtomicOp::add: return static_cast<T>(old + b);
    case AtomicOp::and_: return old & b;
    case AtomicOp::or_: return old | b;
    case AtomicOp::xor_: return old ^ b;
    case AtomicOp::exch: return b;
    case AtomicOp::cas: return old == b ? c : old;
    case AtomicOp::min: return std::min(old, b);
    case AtomicOp::max: return std::max(old, b);
    case AtomicOp::inc: return old >= b ? T(0) : static_cast<T>(old + 1);
    case AtomicOp::dec: return old == 0 || old > b ? b : static_cast<T>(old - 1);
  }
  return old;
}

u32 half_op(AtomicOp what, u32 old, u32 b, bool bf) {
  using namespace base;
  const double p = bf ? bfloat_to_float(old & 0xffff) : half_to_float(old & 0xffff);
  const double q = bf ? bfloat_to_float(b & 0xffff) : half_to_float(b & 0xffff);
  const double r = what == AtomicOp::add ? p + q : what == AtomicOp::min ? std::fmin(p, q) : std::fmax(p, q);
  return static_cast<u32>(round_bits(exact(r), bf ? kBf16 : kF16, kRn));
}

// The value after the operation, in the representation of `type`.
u64 apply(AtomicOp what, Type type, u64 old, u64 b, u64 c, bool flush_f32) {
  switch (type) {
    case Type::s32:
      return static_cast<u32>(what == AtomicOp::add
                                  ? static_cast<u32>(old + b)
                                  : static_cast<u32>(integer_op<i32>(what, static_cast<i32>(old), static_cast<i32>(b), static_cast<i32>(c))));
    case Type::s64:
      return what == AtomicOp::add ? old + b
                                   : static_cast<u64>(integer_op<i64>(what, static_cast<i64>(old), static_cast<i64>(b), static_cast<i64>(c)));
    case Type::f32: {
      float p = std::bit_cast<float>(static_cast<u32>(old)), q = std::bit_cast<float>(static_cast<u32>(b));
      // On global memory atom.add.f32 flushes subnormals; on shared memory it keeps them.
      if (flush_f32) p = base::flush(p), q = base::flush(q);
      const float r = what == AtomicOp::add ? p + q : what == AtomicOp::min ? std::fmin(p, q) : std::fmax(p, q);
      return base::canonical(flush_f32 ? base::flush(r) : r);
    }
    case Type::f64: return std::bit_cast<u64>(std::bit_cast<double>(old) + std::bit_cast<double>(b));
    case Type::f16: return half_op(what, static_cast<u32>(old), static_cast<u32>(b), false);
    case Type::bf16: return half_op(what, static_cast<u32>(old), static_cast<u32>(b), true);
    case Type::f16x2:
    case Type::bf16x2: {
      const bool bf = type == Type::bf16x2;
      return half_op(what, static_cast<u32>(old), static_cast<u32>(b), bf) |
             half_op(what, static_cast<u32>(old >> 16), static_cast<u32>(b >> 16), bf) << 16;
    }
    case Type::u64:
    case Type::b64: return integer_op<u64>(what, old, b, c);
    case Type::u16:
    case Type::b16: return integer_op<u16>(what, static_cast<u16>(old), static_cast<u16>(b), static_cast<u16>(c));
    default: return integer_op<u32>(what, static_cast<u32>(old), static_cast<u32>(b), static_cast<u32>(c));
  }
}

// .b128 has exch and cas alone; its registers are two rows of 64 bits.
void exchange_wide(Exec& x, AtomicOp what, const u32* list, u32 lane, u8* at) {
  using Wide = std::array<u64, 2>;
  auto read = [&](u32 row) { return Wide{x.row<u64>(row)[lane], x.row<u64>(row + 2)[lane]}; };
  Wide old;
  std::memcpy(&old, at, sizeof old);
  const bool replaces = what == AtomicOp::exch || old == read(list[1]);
  const Wide value = read(list[what == AtomicOp::exch ? 1 : 2]);
  if (replaces) std::memcpy(at, &value, sizeof value);
  for (u32 half = 0; half < 2; ++half) x.row<u64>(list[0] + 2 * half)[lane] = old[half];
}

}  // namespace

void exec_atomic(Exec& x, const Op& op, u32 mask) {
  Addresses a;
  const u32 element = op.a, bytes = element * op.b;
  const auto what = static_cast<AtomicOp>(op.d[1] >> 8);
  const auto type = static_cast<Type>(op.d[1] & 0xff);
  mask = resolve(x, op, mask, bytes, AccessKind::atomic, op.f, a);
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  const bool has_c = what == AtomicOp::cas;
  auto read = [&](u32 row, u32 lane) -> u64 {
    return op.f & kWide ? x.row<u64>(row)[lane] : x.row<u32>(row)[lane];
  };
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const Space declared = static_cast<Space>(op.c);
    const bool shared = declared == Space::shared || declared == Space::shared_cluster ||
                        (declared == Space::generic && a.value[lane] >> kWindowShift == 1);
    if (x.checked) {
      u64 location = a.value[lane] & ~u64{3};
      if (shared) {
        Cta* cta = nullptr;
        shared_range(x, static_cast<u32>(a.value[lane]), bytes, cta);
        const u32 offset = static_cast<u32>(a.value[lane]) & kSharedOffsetMask;
        shared_access(x, op, *cta, lane, offset, bytes, AccessKind::atomic, true, nullptr);
        location = shared_location(*cta, offset);
      } else if (x.cluster->global && !in_heap(x, a.value[lane])) {
        touch_global(accessor(*x.cluster, *x.warp, lane, x.cluster->site(x, op)), a.value[lane], bytes, AccessKind::atomic, true, nullptr);
      }
      acquire_from(x, location, op.f, 1u << lane);
      release_to(x, location, op.f, 1u << lane);
    }
    if (element == 16) {
      exchange_wide(x, what, list, lane, a.where[lane]);
      continue;
    }
    u64 results[8] = {};
    for (u32 k = 0; k < op.b; ++k) {
      u8* at = a.where[lane] + k * element;
      u64 old = 0;
      std::memcpy(&old, at, element);
      const u64 b = read(list[op.b + k], lane);
      const u64 c = has_c ? read(list[2 * op.b + k], lane) : 0;
      const u64 value = apply(what, type, old, b, c, type == Type::f32 && !shared);
      std::memcpy(at, &value, element);
      results[k] = old;
    }
    for (u32 k = 0; k < op.b; ++k) {
      if (list[k] == kNone) continue;
      if (op.f & kWide) x.row<u64>(list[k])[lane] = results[k];
      else x.row<u32>(list[k])[lane] = static_cast<u32>(results[k]);
    }
  }
  ++x.cluster->progress;
  x.yield_point();
}

}  // namespace tkpy::emulator
