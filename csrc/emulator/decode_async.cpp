// Decoding of mbarriers, asynchronous copies and tensor maps.
#include <algorithm>

#include "decode.h"

namespace tkpy::emulator {

// The address [base + offset] as a value in slot `slot`; bit `slot` of Op::f says that it is 64 bits wide.
void Decoder::address_row(Op& op, u32 slot, const Operand& o) {
  if (o.kind != Operand::address || o.items.empty()) throw NotModelled{"expected an address"};
  const Operand& base = o.items[0];
  Operand whole = base;
  bool wide = true;
  if (base.kind == Operand::symbol) {
    whole.value += o.value;
  } else if (base.kind == Operand::imm) {
    whole.value += o.value;
    wide = false;
  } else if (base.kind == Operand::reg) {
    wide = vreg_bits(base.index) == 64;
    if (o.value) {
      AluKey k;
      k.op = Alu::add;
      k.type = wide ? Type::u64 : Type::u32;
      Op add;
      add.fn = pick_alu(k);
      const u32 t = temp(wide ? 64 : 32);
      add.s[1] = constant(o.value, wide);
      emit_before(add, t);
      refs_.push_back(Ref{Ref::s, false, static_cast<u32>(f_.ops.size() - 1), 0, base.index, 0});
      ref(Ref::s, slot, t, false);
      if (wide) op.f |= 1u << slot;
      return;
    }
  }
  src(op, slot, whole, wide ? Type::b64 : Type::b32);
  if (wide) op.f |= 1u << slot;
}

bool Decoder::decode_async() {
  const std::string_view name = in_->opcode;
  if (name == "mbarrier") return decode_mbarrier();
  if (name == "st" || name == "red") return decode_store_async();
  if (name == "tensormap") return decode_tensormap();
  if (name != "cp") return false;
  const bool reduce = has("reduce");
  if (!has("async")) return false;
  Op op;
  if (reduce || has("bulk")) {
    if (reduce) has("bulk");
    return decode_bulk();
  }
  if (has("mbarrier")) {
    if (!has("arrive")) return false;
    op.b = has("noinc") ? 16 : 0;
    has("shared"), has("shared::cta"), has("b64");
    op.a = static_cast<u8>(MbarrierOp::cp_async_arrive);
    op.d[0] = kNone;
    arity(1, 1);
    address_row(op, 0, arg(0));
    op.fn = exec_mbarrier;
    return finish(op), true;
  }
  if (has("commit_group")) {
    op.fn = exec_async_commit;
    return finish(op), true;
  }
  const bool all = has("wait_all");
  if (all || has("wait_group")) {
    if (!all) {
      arity(1, 1);
      if (arg(0).kind != Operand::imm) throw NotModelled{"a count that is not an immediate"};
      op.imm = static_cast<i64>(std::min<u64>(arg(0).value, 1u << 20));
    }
    op.c = all;
    op.fn = exec_async_wait;
    return finish(op), true;
  }
  const bool four = has("ca");
  if (!four && !has("cg")) return false;
  if ((!has("shared") && !has("shared::cta")) || !has("global")) return false;
  while (has_prefix("L2::64B") || has_prefix("L2::128B") || has_prefix("L2::256B")) {}
  const bool hint = has("L2::cache_hint");
  arity(3 + hint, 4 + hint);
  if (hint) cache_policy(arg(count() - 1));
  if (arg(2).kind != Operand::imm || (arg(2).value != 4 && arg(2).value != 8 && arg(2).value != 16) || (!four && arg(2).value != 16))
    throw NotModelled{"a copy of this size"};
  op.a = static_cast<u8>(arg(2).value);
  address_row(op, 0, arg(0));
  address_row(op, 1, arg(1));
  if (count() - hint > 3) {
    op.f |= 32;
    op.b = arg(3).kind == Operand::reg && vreg_bits(arg(3).index) == 1;
    if (op.b) op.s[3] = pred_src(arg(3));
    else src(op, 3, arg(3), Type::u32);
  }
  op.fn = exec_cp_async;
  return finish(op), true;
}

bool Decoder::decode_mbarrier() {
  Op op;
  op.fn = exec_mbarrier;
  op.d[0] = kNone;
  const bool init = has("init"), inval = has("inval"), drop = has("arrive_drop"), arrive = drop || has("arrive");
  const bool expect = has("expect_tx"), complete = has("complete_tx"), test = has("test_wait"), try_wait = has("try_wait");
  const bool pending = has("pending_count");
  const bool relaxed = has("relaxed");
  has("release"), has("acquire");
  for (std::string_view m : {"cta", "cluster", "shared", "shared::cta", "shared::cluster", "b64"}) has(m);
  if (test || try_wait) {
    op.a = static_cast<u8>(test ? MbarrierOp::test_wait : MbarrierOp::try_wait);
    op.b = (has("parity") ? 1 : 0) | (relaxed ? 2 : 0);
    arity(3, 4);
    op.d[0] = pred_dst(arg(0));
    address_row(op, 0, arg(1));
    src(op, 1, arg(2), op.b & 1 ? Type::u32 : Type::b64);
    return finish(op), true;  // a time limit only bounds how long the attempt may suspend
  }
  if (pending) {
    op.a = static_cast<u8>(MbarrierOp::pending_count);
    arity(2, 2);
    dst(op, 0, arg(0), Type::u32);
    src(op, 1, arg(1), Type::b64);
    return finish(op), true;
  }
  if (arrive) {
    op.a = static_cast<u8>(MbarrierOp::arrive);
    op.b = static_cast<u8>((drop ? 1 : 0) | (has("noComplete") ? 2 : 0) | (expect ? 4 : 0) | (relaxed ? 8 : 0));
    const bool result = arg(0).kind != Operand::address;
    const std::size_t at = result ? 1 : 0;
    arity(at + 1, at + 2);
    if (result && arg(0).kind != Operand::sink) dst(op, 0, arg(0), Type::b64);
    if (arg(0).kind == Operand::reg) op.d[0] = 0;
    address_row(op, 0, arg(at));
    op.c = count() == at + 2;
    if (expect && !op.c) throw NotModelled{"expect_tx without a count"};
    if (op.c) src(op, 1, arg(at + 1), Type::u32);
    return finish(op), true;
  }
  if (!init && !inval && !expect && !complete) return false;
  op.a = static_cast<u8>(init ? MbarrierOp::init : inval ? MbarrierOp::inval : expect ? MbarrierOp::expect_tx : MbarrierOp::complete_tx);
  arity(inval ? 1 : 2, inval ? 1 : 2);
  address_row(op, 0, arg(0));
  if (!inval) src(op, 1, arg(1), Type::u32);
  return finish(op), true;
}

bool Decoder::decode_bulk() {
  Op op;
  if (has("commit_group")) {
    op.a = 1;
    op.fn = exec_async_commit;
    return finish(op), true;
  }
  if (has("wait_group")) {
    op.a = 1;
    op.b = has("read");
    arity(1, 1);
    if (arg(0).kind != Operand::imm) throw NotModelled{"a count that is not an immediate"};
    op.imm = static_cast<i64>(std::min<u64>(arg(0).value, 1u << 20));
    op.fn = exec_async_wait;
    return finish(op), true;
  }
  if (has("prefetch")) {
    taken_ = ~u64{0};
    op.fn = exec_nothing;
    return finish(op), true;
  }
  const bool reduce = in_->modifiers[0] == "reduce";
  const bool tensor_form = has("tensor");
  for (std::string_view d : {"1d", "2d", "3d", "4d", "5d"}) has(d);
  const bool multicast = has("multicast::cluster");
  const bool hint = has("L2::cache_hint");
  const bool to_shared = has("mbarrier::complete_tx::bytes");
  if (!to_shared && !has("bulk_group")) return false;
  tensor::ReduceOp reduction = tensor::ReduceOp::add;
  if (reduce) {
    bool known = false;
    for (std::string_view mod : in_->modifiers)
      if (!known && tensor::reduce_from_name(mod, &reduction) && has(mod)) known = true;
    if (!known) throw NotModelled{"no reduction"};
    if (!to_shared) f_.talks_across_ctas = true;  // the order of sums must not depend on the host's threads
  }
  op.b = multicast;
  if (tensor_form) {
    has("tile");
    has("shared::cluster"), has("shared::cta"), has("global");
    op.a = to_shared ? 0 : reduce ? 2 : 1;
    op.c = static_cast<u8>(reduction);
    const Operand& map = arg(to_shared ? 1 : 0);
    arity((to_shared ? 3 : 2) + multicast + hint, (to_shared ? 3 : 2) + multicast + hint);
    if (hint) cache_policy(arg(count() - 1));
    if (map.items.size() != 2) throw NotModelled{"no coordinates"};
    Operand base = map;
    base.items.resize(1);
    list(op, map.items[1], Type::b32, false);
    if (op.list_size < 1 || op.list_size > 5) throw NotModelled{"this many coordinates"};
    address_row(op, to_shared ? 1 : 0, base);
    address_row(op, to_shared ? 0 : 1, arg(to_shared ? 0 : 1));
    if (to_shared) address_row(op, 2, arg(2));
    if (multicast) src(op, 4, arg(3), Type::b16);
    op.fn = exec_bulk_tensor;
    return finish(op), true;
  }
  if (reduce) {
    has("noftz");
    const Type type = need_type();
    const std::string why = tensor::reduce_reason(reduction, type, to_shared);
    if (!why.empty()) throw NotModelled{why};
    op.c = static_cast<u8>(static_cast<u32>(reduction) + 1);
    op.e = static_cast<u8>(type);
  }
  const bool from_shared = has("shared::cta");
  has("shared::cluster"), has("global");
  op.a = static_cast<u8>(!to_shared ? BulkKind::shared_to_global : from_shared ? BulkKind::shared_to_shared : BulkKind::global_to_shared);
  arity((to_shared ? 4 : 3) + multicast + hint, (to_shared ? 4 : 3) + multicast + hint);
  if (hint) cache_policy(arg(count() - 1));
  address_row(op, 0, arg(0));
  address_row(op, 1, arg(1));
  src(op, 3, arg(2), Type::u32);
  if (to_shared) address_row(op, 2, arg(3));
  if (multicast) src(op, 4, arg(4), Type::b16);
  op.fn = exec_bulk_copy;
  return finish(op), true;
}

bool Decoder::decode_tensormap() {
  Op op;
  if (has("cp_fenceproxy")) {
    taken_ = ~u64{0};
    arity(3, 3);
    address_row(op, 0, arg(0));
    address_row(op, 1, arg(1));
    op.fn = exec_tensormap_copy;
    return finish(op), true;
  }
  if (!has("replace") || !has("tile")) return false;
  op.e = has("shared::cta") || has("shared");
  has("global"), has("b1024");
  tensor::MapField field{};
  bool known = false;
  for (std::string_view mod : in_->modifiers)
    if (!known && tensor::map_field_from_name(mod, &field) && has(mod)) known = true;
  if (!known) throw NotModelled{"no field"};
  const Type type = need_type();
  op.a = static_cast<u8>(field);
  arity(2, 3);
  address_row(op, 0, arg(0));
  if (count() == 3) {
    if (arg(1).kind != Operand::imm) throw NotModelled{"an ordinal that is not an immediate"};
    op.c = static_cast<u8>(std::min<u64>(arg(1).value, 255));
  }
  src(op, 3, arg(count() - 1), type);
  if (type_bits(type) == 64) op.f |= 8;
  op.fn = exec_tensormap_replace;
  return finish(op), true;
}

bool Decoder::decode_store_async() {
  Op op;
  const bool reduce = in_->opcode == "red";
  if (!has("async") || !has("mbarrier::complete_tx::bytes")) return false;
  has("weak"), has("relaxed"), has("cluster"), has("shared::cluster");
  if (reduce) {
    tensor::ReduceOp reduction{};
    bool known = false;
    for (std::string_view mod : in_->modifiers)
      if (!known && tensor::reduce_from_name(mod, &reduction) && has(mod)) known = true;
    if (!known) throw NotModelled{"no reduction"};
    op.c = static_cast<u8>(static_cast<u32>(reduction) + 1);
  }
  const u32 elements = has("v2") ? 2 : has("v4") ? 4 : 1;
  const Type type = need_type();
  op.a = static_cast<u8>(type_bytes(type));
  op.e = static_cast<u8>(type);
  if (op.a != 4 && op.a != 8) throw NotModelled{"elements of this size"};
  arity(3, 3);
  list(op, arg(1), type, false);
  if (op.list_size != elements) throw NotModelled{"a vector whose length is not the instruction's"};
  address_row(op, 0, arg(0));
  address_row(op, 2, arg(2));
  op.fn = exec_store_async;
  return finish(op), true;
}

}  // namespace tkpy::emulator
