// Decoding of loads, stores, atomics, address conversion and fences.
#include <bit>

#include "decode.h"

namespace tkpy::emulator {

// The state space named among the modifiers; consumed by the caller through has().
static Space take_space(const std::vector<std::string_view>& mods, u64& taken, Space otherwise) {
  static constexpr std::pair<std::string_view, Space> kSpaces[] = {
      {"global", Space::global}, {"shared", Space::shared}, {"shared::cta", Space::shared},
      {"shared::cluster", Space::shared_cluster}, {"local", Space::local}, {"param", Space::param},
      {"param::entry", Space::param}, {"param::func", Space::param}, {"const", Space::constant}};
  for (std::size_t i = 0; i < mods.size(); ++i) {
    if (taken >> i & 1) continue;
    for (const auto& [name, space] : kSpaces) {
      if (mods[i] == name) {
        taken |= u64{1} << i;
        return space;
      }
    }
  }
  return otherwise;
}

bool Decoder::decode_memory() {
  const std::string_view name = in_->opcode;
  if (name == "ld" || name == "ldu") return load_store(true), true;
  if (name == "st" && !(in_->modifiers.size() && in_->modifiers[0] == "async")) return load_store(false), true;
  if (name == "atom") return atomic(true), true;
  if (name == "red" && !(in_->modifiers.size() && in_->modifiers[0] == "async")) return atomic(false), true;
  if (name == "multimem") return decode_multimem();
  Op op;
  if (name == "alloca" || name == "stacksave" || name == "stackrestore") return decode_stack(), true;
  if (name == "cvta") {
    op.a = has("to");
    const Space space = take_space(in_->modifiers, taken_, Space::generic);
    op.c = static_cast<u8>(space);
    if (space == Space::generic) throw NotModelled{"no state space"};
    const Type type = need_type();
    op.e = type_bits(type) == 64;
    op.fn = exec_cvta;
    arity(2, 2);
    dst(op, 0, arg(0), type);
    src(op, 0, arg(1), type);
    const Space of = space == Space::shared_cluster ? Space::shared : space;
    if (arg(1).kind == Operand::symbol && module_.ast->symbols[arg(1).index].space != of) throw NotModelled{"a variable of another space"};
    return finish(op), true;
  }
  if (name == "isspacep") {
    op.c = static_cast<u8>(take_space(in_->modifiers, taken_, Space::generic));
    op.fn = exec_isspacep;
    arity(2, 2);
    op.d[0] = pred_dst(arg(0));
    if (op.d[0] == kNone) throw NotModelled{"a sink"};
    op.a = arg(1).kind != Operand::reg || vreg_bits(arg(1).index) == 64;
    src(op, 0, arg(1), op.a ? Type::b64 : Type::b32);
    return finish(op), true;
  }
  if (name == "mapa" || name == "getctarank") {
    const Space space = take_space(in_->modifiers, taken_, Space::generic);
    const Type type = need_type();
    op.a = type_bits(type) == 64;
    op.c = static_cast<u8>(space);
    if (name == "mapa") {
      op.fn = exec_mapa;
      arity(3, 3);
      dst(op, 0, arg(0), type);
      src(op, 0, arg(1), type);
      src(op, 1, arg(2), Type::u32);
    } else {
      op.fn = exec_getctarank;
      arity(2, 2);
      dst(op, 0, arg(0), Type::u32);
      src(op, 0, arg(1), type);
    }
    return finish(op), true;
  }
  if (name == "applypriority" || name == "discard") {
    op.a = name == "discard";
    const Space space = take_space(in_->modifiers, taken_, Space::generic);
    if (!has(op.a ? "L2" : "L2::evict_normal")) return false;
    arity(2, 2);
    if (arg(1).kind != Operand::imm || arg(1).value != 128) throw NotModelled{"a size other than 128"};
    address(op, arg(0), space);
    op.fn = exec_cache_line;
    return finish(op), true;
  }
  if (name == "prefetch" || name == "prefetchu") {
    // A hint: no rule of the ISA makes its address valid, and programs prefetch past the end (9.7.9.15).
    taken_ = ~u64{0};
    op.fn = exec_nothing;
    return finish(op), true;
  }
  if (name == "createpolicy") {
    taken_ = ~u64{0};
    op.fn = pick_alu(AluKey{Alu::mov, Type::b64});
    op.in_place = true;
    dst(op, 0, arg(0), Type::b64);
    op.s[0] = constant(0, true);
    return finish(op), true;
  }
  if (name == "fence" || name == "membar") {
    if (has("proxy")) {
      // Without a space it concerns all of them.
      const bool alias = has("alias"), one_way = has("async::generic");
      has("async");
      const bool tensormap = has("tensormap::generic"), acquire = has("acquire");
      has("release");
      has("sync_restrict::shared::cta"), has("sync_restrict::shared::cluster");
      const Space space = take_space(in_->modifiers, taken_, Space::generic);
      for (std::string_view scope : {"cta", "gpu", "sys", "cluster"}) has(scope);
      op.fn = alias ? exec_nothing : tensormap && acquire ? exec_tensormap_acquire : exec_proxy_fence;
      arity(tensormap && acquire ? 2 : 0, tensormap && acquire ? 2 : 0);
      if (tensormap) {
        if (acquire) address_row(op, 0, arg(0));
        op.a = kFenceMaps;
        return finish(op), true;
      }
      if (space != Space::global) op.a |= kFenceShared;
      if (space == Space::global || (space == Space::generic && !one_way)) op.a |= kFenceGlobal;
      return finish(op), true;
    }
    has("mbarrier_init");  // orders less than a release fence (only earlier mbarrier.init); taken as one
    for (std::string_view order : {"acq_rel", "sc", "release", "acquire"}) has(order);
    for (std::string_view scope : {"gpu", "sys", "gl"}) op.a |= has(scope);
    has("cta"), has("cluster");
    has_prefix("sync_restrict::");  // orders less than the whole fence, which stands for it
    op.fn = exec_fence;
    arity(0, 0);
    return finish(op), true;
  }
  return false;
}

// alloca.type ptr, size{, align}; stacksave.type d; stackrestore.type a (PTX ISA 9.7.16).
void Decoder::decode_stack() {
  Op op;
  const Type type = need_type();
  op.a = type_bits(type) == 64;
  if (in_->opcode == "alloca") {
    arity(2, 3);
    const u64 alignment = count() == 3 ? arg(2).value : 8;
    if (count() == 3 && (arg(2).kind != Operand::imm || !std::has_single_bit(alignment) || alignment > (1u << 16)))
      throw NotModelled{"an alignment that is not a power of two of at most 65536"};
    op.imm = static_cast<i64>(alignment);
    op.fn = exec_alloca;
    dst(op, 0, arg(0), type);
    src(op, 0, arg(1), type);
    return finish(op);
  }
  op.b = in_->opcode == "stackrestore";
  op.fn = exec_stack;
  arity(1, 1);
  if (op.b) src(op, 0, arg(0), type);
  else dst(op, 0, arg(0), type);
  finish(op);
}

void Decoder::load_store(bool load) {
  Op op;
  op.fn = load ? exec_load : exec_store;
  op.in_place = false;
  if (has("volatile")) op.f |= kStrong | kVolatile | kGpuScope;  // as .relaxed.sys (PTX ISA 9.7.9.8)
  if (has("relaxed")) op.f |= kStrong;
  if (has("acquire")) op.f |= kStrong | kAcquire;
  if (has("release")) op.f |= kStrong | kRelease;
  if (has("mmio")) op.f |= kStrong;
  has("weak"), has("cta"), has("cluster");
  for (std::string_view scope : {"gpu", "sys"})
    if (has(scope)) op.f |= kGpuScope;
  const Space space = take_space(in_->modifiers, taken_, Space::generic);
  for (std::string_view cache : {"ca", "cg", "cs", "lu", "cv", "wb", "wt"}) has(cache);
  if (has("nc") || in_->opcode == "ldu") op.f |= kNonCoherent;
  while (has_prefix("L1::") || has_prefix("L2::64B") || has_prefix("L2::128B") || has_prefix("L2::256B")) {}
  while (has_prefix("L2::evict")) {}
  const bool hint = has("L2::cache_hint");
  op.b = has("v2") ? 2 : has("v4") ? 4 : has("v8") ? 8 : 1;
  has("unified");
  const Type type = need_type();
  if (type == Type::pred || (type == Type::b128 && op.b != 1)) throw NotModelled{"elements of this type"};
  op.a = static_cast<u8>(type_bytes(type));
  if (u32{op.a} * op.b > 16) throw NotModelled{"a vector of more than 16 bytes: not sm_90"};
  arity(hint ? 3 : 2, hint ? 3 : 2);
  if (hint) cache_policy(arg(2));
  const Operand& data = arg(load ? 0 : 1);
  const u32 got = data.kind == Operand::vector ? static_cast<u32>(data.items.size()) : 1;
  if (got != op.b) throw NotModelled{"a vector whose length is not the instruction's"};
  bool wide = false;
  list(op, data, type, load, &wide);
  if (wide) op.f |= kWide;
  if (is_signed_int(type)) op.f |= kSigned;
  u32 reg_bits = wide ? 64 : 32;
  const Operand* first = data.kind == Operand::vector ? &data.items[0] : &data;
  for (const Operand& item : data.items) if (item.kind == Operand::reg) first = &item;
  if (first->kind == Operand::reg) reg_bits = type_bits(ast_.registers[first->index].type);
  op.f |= reg_bits << 16;
  if (op.f & kStrong && space != Space::shared && space != Space::shared_cluster) f_.talks_across_ctas = true;
  address(op, arg(load ? 1 : 0), space);
  finish(op);
}

// atom and red (PTX ISA 9.7.13.4, 9.7.13.5), as ptxas has them for sm_90a.
static bool atomic_exists(AtomicOp what, Type type, u32 elements) {
  const bool half = type == Type::f16 || type == Type::bf16 || type == Type::f16x2 || type == Type::bf16x2;
  if (elements > 1 && (what == AtomicOp::add ? !half && type != Type::f32 : !half)) return false;
  switch (what) {
    case AtomicOp::add: return half || (!is_bits(type) && type != Type::s64 && type_bits(type) >= 32);
    case AtomicOp::min:
    case AtomicOp::max: return (half && elements > 1) || (is_int(type) && type_bits(type) >= 32);
    case AtomicOp::inc:
    case AtomicOp::dec: return type == Type::u32;
    case AtomicOp::cas: return is_bits(type) && type_bits(type) >= 16;
    case AtomicOp::exch: return is_bits(type) && type_bits(type) >= 32;
    default: return type == Type::b32 || type == Type::b64;
  }
}

void Decoder::atomic(bool returns) {
  Op op;
  op.fn = exec_atomic;
  op.f |= kStrong | kReadModifyWrite;
  if (has("acquire")) op.f |= kAcquire;
  else if (has("release")) op.f |= kRelease;
  else if (has("acq_rel")) op.f |= kAcquire | kRelease;
  else has("relaxed");
  const bool narrow = has("cta") || has("cluster");
  if (!narrow) op.f |= kGpuScope;  // the default
  has("gpu"), has("sys");
  const Space space = take_space(in_->modifiers, taken_, Space::generic);
  static constexpr std::pair<std::string_view, AtomicOp> kOps[] = {
      {"add", AtomicOp::add}, {"and", AtomicOp::and_}, {"or", AtomicOp::or_}, {"xor", AtomicOp::xor_},
      {"exch", AtomicOp::exch}, {"cas", AtomicOp::cas}, {"min", AtomicOp::min}, {"max", AtomicOp::max},
      {"inc", AtomicOp::inc}, {"dec", AtomicOp::dec}};
  bool known = false;
  AtomicOp what = AtomicOp::add;
  for (const auto& [name, value] : kOps) {
    if (!known && has(name)) known = true, what = value;
  }
  if (!known) throw NotModelled{"no operation"};
  has("noftz");
  const bool hint = has("L2::cache_hint");
  op.b = has("v2") ? 2 : has("v4") ? 4 : has("v8") ? 8 : 1;
  const Type type = need_type();
  if (!atomic_exists(what, type, op.b)) throw NotModelled{"an operation that sm_90 does not have on this type"};
  op.a = static_cast<u8>(type_bytes(type));
  op.d[1] = static_cast<u32>(what) << 8 | static_cast<u32>(type);
  const std::size_t operands = what == AtomicOp::cas ? 2 : 1;
  const std::size_t first = returns ? 1 : 0;
  arity(first + 1 + operands + hint, first + 1 + operands + hint);
  if (hint) cache_policy(arg(count() - 1));
  // The list holds the results (kNone where there are none), then the operands.
  if (returns) {
    list(op, arg(0), type, true);
  } else {
    op.list = static_cast<u32>(f_.lists.size());
    f_.lists.insert(f_.lists.end(), op.b, kNone);
    op.list_size = op.b;
  }
  if (op.list_size != op.b) throw NotModelled{"a vector whose length is not the instruction's"};
  for (std::size_t i = 0; i < operands; ++i) list_more(op, arg(first + 1 + i), type, false);
  if (op.list_size != op.b * (1 + operands)) throw NotModelled{"a vector whose length is not the instruction's"};
  if (type_bits(type) == 64) op.f |= kWide;
  if (space != Space::shared && space != Space::shared_cluster) f_.talks_across_ctas = true;
  address(op, arg(first), space);
  finish(op);
}

}  // namespace tkpy::emulator
