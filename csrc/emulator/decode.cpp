// The decoder's core: walking a function, operands, constants, addresses; and loading a module.
#include "decode.h"

#include <algorithm>
#include <bit>

#include "specials.h"
#include "spelling.h"

namespace tkpy::emulator {

Decoder::Decoder(Module& module, u32 function)
    : module_(module), f_(module.functions[function]), ast_(module.ast->functions[function]) {
  f_.ast = &ast_;
  f_.index = function;
  for (const Register& r : ast_.registers) {
    const u32 bits = r.type == Type::pred ? 1 : type_bits(r.type) <= 32 ? 32 : type_bits(r.type);
    vreg_bits_.push_back(bits);
    pred_slot_.push_back(bits == 1 ? f_.preds++ : kNone);
  }
}

void Decoder::run() {
  if (!ast_.has_body) return;
  layout_frame();
  for (u32 i = 0; i < ast_.code.size(); ++i) {
    in_ = &ast_.code[i];
    instr_ = i;
    op_of_instr_.push_back(static_cast<u32>(f_.ops.size()));
    decode_one();
  }
  // Control may run off the end, or jump to a label there.
  op_of_instr_.push_back(static_cast<u32>(f_.ops.size()));
  Op end;
  end.fn = ast_.is_entry ? exec_exit : exec_ret;
  end.instr = ast_.code.empty() ? 0 : static_cast<u32>(ast_.code.size() - 1);
  f_.ops.push_back(end);
  flow_.push_back(Flow::end);
  for (u32 i = 0; i < f_.ops.size(); ++i) {
    if (flow_[i] == Flow::branch) f_.ops[i].imm = op_of_instr_[static_cast<std::size_t>(f_.ops[i].imm)];
    if (flow_[i] == Flow::table)
      for (u32 k = 0; k < f_.ops[i].list_size; ++k)
        f_.lists[f_.ops[i].list + k] = op_of_instr_[f_.lists[f_.ops[i].list + k]];
  }
  allocate();
  patch();
  watch();
}

void Decoder::decode_one() {
  taken_ = 0;
  pending_.clear();
  pending_relocations_.clear();
  current_flow_ = Flow::next;
  const std::size_t ops_before = f_.ops.size();
  const std::size_t refs_before = refs_.size();
  const std::size_t relocations_before = f_.relocations.size();
  try {
    for (const Operand& o : in_->operands) refuse_negation(o);
    if (const std::string why = spelling_reason(*in_); !why.empty()) throw NotModelled{why};
    const bool known = decode_alu() || decode_memory() || decode_control() || decode_warp() || decode_sync() ||
                       decode_matrix() || decode_async();
    if (!known) throw NotModelled{"instruction '" + std::string(in_->opcode) + "'"};
  } catch (const NotModelled& e) {
    f_.ops.resize(ops_before);
    flow_.resize(ops_before);
    refs_.resize(refs_before);
    f_.relocations.resize(relocations_before);
    pending_.clear();
    pending_relocations_.clear();
    current_flow_ = Flow::next;
    f_.unmodelled.push_back({in_->line, std::string(in_->text), e.reason});
    Op op;
    op.fn = exec_unmodelled;
    op.imm = static_cast<i64>(f_.unmodelled.size() - 1);
    emit(op);
  }
}

// !p is a predicate's; only vmad negates registers.
void Decoder::refuse_negation(const Operand& o) const {
  for (const Operand& item : o.items) refuse_negation(item);
  const bool predicate = o.kind == Operand::imm || (o.kind == Operand::reg && pred_slot_[o.index] != kNone);
  if (o.negated && !predicate && in_->opcode != "vmad") throw NotModelled{"a negated operand"};
}

bool Decoder::has(std::string_view modifier) {
  for (std::size_t i = 0; i < in_->modifiers.size(); ++i) {
    if (in_->modifiers[i] == modifier && !(taken_ >> i & 1)) {
      taken_ |= u64{1} << i;
      return true;
    }
  }
  return false;
}

bool Decoder::has_prefix(std::string_view prefix) {
  for (std::size_t i = 0; i < in_->modifiers.size(); ++i) {
    if (in_->modifiers[i].substr(0, prefix.size()) == prefix && !(taken_ >> i & 1)) {
      taken_ |= u64{1} << i;
      return true;
    }
  }
  return false;
}

Type Decoder::next_type() {
  for (std::size_t i = 0; i < in_->modifiers.size(); ++i) {
    if (taken_ >> i & 1) continue;
    const Type type = type_from_name(in_->modifiers[i]);
    if (type == Type::none) continue;
    taken_ |= u64{1} << i;
    return type;
  }
  return Type::none;
}

Type Decoder::need_type() {
  const Type type = next_type();
  if (type == Type::none) throw NotModelled{"no type"};
  return type;
}

const Operand& Decoder::arg(std::size_t i) const {
  if (i >= in_->operands.size()) throw NotModelled{"too few operands"};
  return in_->operands[i];
}

void Decoder::arity(std::size_t least, std::size_t most) const {
  if (count() < least || count() > most) throw NotModelled{"wrong number of operands"};
}

void Decoder::finish(Op op) {
  for (std::size_t i = 0; i < in_->modifiers.size(); ++i)
    if (!(taken_ >> i & 1)) throw NotModelled{"modifier '." + std::string(in_->modifiers[i]) + "'"};
  if (!op.fn) throw NotModelled{"this combination of types and modifiers"};
  emit(op);
}

void Decoder::emit(Op op) {
  op.instr = instr_;
  if (in_->guard != kNone) op.guard = pred_slot_[in_->guard] << 1 | in_->guard_negated;
  const u32 index = static_cast<u32>(f_.ops.size());
  for (Ref& r : pending_) {
    r.op = index;
    refs_.push_back(r);
  }
  pending_.clear();
  for (u32 symbol : pending_relocations_) f_.relocations.push_back({Relocation::op_imm, index, symbol});
  pending_relocations_.clear();
  f_.ops.push_back(op);
  flow_.push_back(current_flow_);
}

// A helper Op that computes an operand of the one being decoded into the temporary `vreg`.
void Decoder::emit_before(Op op, u32 vreg) {
  std::vector<Ref> refs;
  std::vector<u32> relocations;
  refs.swap(pending_);
  relocations.swap(pending_relocations_);
  const Flow flow = current_flow_;
  current_flow_ = Flow::next;
  op.helper = true;
  ref(Ref::d, 0, vreg, true);
  emit(op);
  current_flow_ = flow;
  pending_.swap(refs);
  pending_relocations_.swap(relocations);
}

u32 Decoder::vreg_bits(u32 vreg) const { return vreg_bits_[vreg]; }

u32 Decoder::temp(u32 bits) {
  vreg_bits_.push_back(bits);
  return static_cast<u32>(vreg_bits_.size() - 1);
}

void Decoder::ref(Ref::Field field, u32 index, u32 vreg, bool def) {
  Ref r{field, def, 0, index, vreg, 0};
  if (field == Ref::call_param || field == Ref::call_return || field == Ref::call_target)
    r.call = static_cast<u32>(f_.calls.size() - 1);
  pending_.push_back(r);
}

u32 Decoder::constant(u64 bits, bool wide) {
  if (!wide) bits &= 0xffffffffu;
  const auto [entry, fresh] = constants_.try_emplace({bits, wide}, kConstRow | constant_rows_);
  if (fresh) {
    f_.constants.push_back({bits, wide});
    constant_rows_ += wide ? 2 : 1;
  }
  return entry->second;
}

// An immediate in the representation of `type` (PTX ISA 4.5.2: float literals are double unless 0f).
u64 Decoder::immediate_bits(const Operand& o, Type type) const {
  double value = 0;
  if (o.kind == Operand::f32) value = std::bit_cast<float>(static_cast<u32>(o.value));
  else if (o.kind == Operand::f64) value = std::bit_cast<double>(o.value);
  if (o.kind == Operand::imm) {
    const u32 bits = type_bits(type);
    if (type == Type::f32) return std::bit_cast<u32>(static_cast<float>(static_cast<i64>(o.value)));
    if (type == Type::f64) return std::bit_cast<u64>(static_cast<double>(static_cast<i64>(o.value)));
    return bits >= 64 ? o.value : o.value & ((u64{1} << bits) - 1);
  }
  if (type == Type::f64 || type == Type::b64 || type == Type::u64 || type == Type::s64)
    return o.kind == Operand::f64 ? o.value : std::bit_cast<u64>(value);
  if (o.kind == Operand::f32) return o.value;
  return std::bit_cast<u32>(static_cast<float>(value));
}

void Decoder::src(Op& op, u32 slot, const Operand& o, Type type) {
  const bool wide = type_bits(type) == 64;
  switch (o.kind) {
    case Operand::reg: {
      if (!o.text.empty()) throw NotModelled{"selector '." + std::string(o.text) + "'"};
      const u32 bits = vreg_bits(o.index);
      if (bits == 1) throw NotModelled{"a predicate where a register is needed"};
      if (type_bits(type) == 128 ? bits != 128 : bits != (wide ? 64u : 32u))
        throw NotModelled{"a register whose size is not the instruction's"};
      ref(Ref::s, slot, o.index, false);
      return;
    }
    case Operand::imm:
    case Operand::f32:
    case Operand::f64: op.s[slot] = constant(immediate_bits(o, type), wide); return;
    case Operand::symbol:
    case Operand::func: symbol_value(op, slot, o, wide); return;
    case Operand::special: {
      // Only mov reads special registers; elsewhere one is first moved to a temporary.
      const u32 t = temp(wide ? 64 : 32);
      Op pre;
      pre.fn = exec_special;
      pre.a = static_cast<u8>(o.index);
      pre.b = wide;
      emit_before(pre, t);
      ref(Ref::s, slot, t, false);
      return;
    }
    case Operand::vector:
      if (o.items.size() == 1) return src(op, slot, o.items[0], type);
      [[fallthrough]];
    default: throw NotModelled{"this kind of operand"};
  }
}

void Decoder::src_any(Op& op, u32 slot, const Operand& o, bool& wide) {
  if (o.kind == Operand::reg) wide = vreg_bits(o.index) == 64;
  src(op, slot, o, wide ? Type::b64 : Type::b32);
}

void Decoder::dst(Op& op, u32 slot, const Operand& o, Type type) {
  (void)op;
  if (o.kind == Operand::vector && o.items.size() == 1) return dst(op, slot, o.items[0], type);
  if (o.kind == Operand::sink) {
    ref(Ref::d, slot, temp(type_bits(type) <= 32 ? 32 : type_bits(type)), true);
    return;
  }
  if (o.kind != Operand::reg || !o.text.empty()) throw NotModelled{"this kind of destination"};
  const u32 want = type_bits(type) <= 32 ? 32 : type_bits(type);
  if (vreg_bits(o.index) != want) throw NotModelled{"a destination whose size is not the instruction's"};
  ref(Ref::d, slot, o.index, true);
}

void Decoder::cache_policy(const Operand& o) {
  if (o.kind != Operand::imm && (o.kind != Operand::reg || vreg_bits(o.index) != 64)) throw NotModelled{"a cache policy that is not 64 bits"};
}

u32 Decoder::pred_src(const Operand& o) {
  if (o.kind == Operand::imm) return kPredTrue << 1 | ((o.value == 0) != o.negated);
  if (o.kind != Operand::reg || pred_slot_[o.index] == kNone) throw NotModelled{"not a predicate"};
  return pred_slot_[o.index] << 1 | o.negated;
}

u32 Decoder::pred_dst(const Operand& o) {
  if (o.kind == Operand::sink) return kNone;
  if (o.kind != Operand::reg || pred_slot_[o.index] == kNone) throw NotModelled{"not a predicate"};
  return pred_slot_[o.index];
}

// Rows of a vector (or one register) into Function::lists. `wide` asks for registers of either class and says which.
void Decoder::list(Op& op, const Operand& o, Type type, bool def, bool* wide) {
  op.list = static_cast<u32>(f_.lists.size());
  op.list_size = 0;
  if (wide) {
    *wide = type_bits(type) == 64;
    const Operand* first = o.kind == Operand::vector && !o.items.empty() ? &o.items[0] : &o;
    if (first->kind == Operand::reg && vreg_bits(first->index) == 64) *wide = true;
    if (*wide && type_bits(type) < 64) type = Type::b64;
  }
  list_more(op, o, type, def);
}

void Decoder::list_more(Op& op, const Operand& o, Type type, bool def) {
  const bool wide = type_bits(type) == 64;
  const u32 bits = std::max(type_bits(type), 32u);
  auto one = [&](const Operand& item) {
    const u32 at = static_cast<u32>(f_.lists.size());
    f_.lists.push_back(kNone);
    ++op.list_size;
    if (item.kind == Operand::sink) {
      if (!def) throw NotModelled{"a sink as a source"};
      ref(Ref::list, at, temp(bits), true);
    } else if (item.kind == Operand::reg) {
      if (vreg_bits(item.index) != bits) throw NotModelled{"vector elements of another size"};
      ref(Ref::list, at, item.index, def);
    } else if (bits == 128) {
      throw NotModelled{"a 128-bit operand that is no register"};
    } else if (!def && (item.kind == Operand::imm || item.kind == Operand::f32 || item.kind == Operand::f64)) {
      f_.lists[at] = constant(immediate_bits(item, type), wide);
    } else if (!def) {
      Op scratch;
      src(scratch, 0, item, type);
      if (!pending_.empty() && pending_.back().field == Ref::s) {
        pending_.back().field = Ref::list;
        pending_.back().index = at;
      } else {
        f_.lists[at] = scratch.s[0];
      }
    } else {
      throw NotModelled{"this kind of vector element"};
    }
  };
  if (o.kind == Operand::vector) {
    for (const Operand& item : o.items) one(item);
  } else {
    one(o);
  }
}

void Decoder::symbol_value(Op& op, u32 slot, const Operand& o, bool wide) {
  if (o.kind == Operand::func) {
    op.s[slot] = constant(kCodeWindow | o.index, true);
    if (!wide) throw NotModelled{"a function address in 32 bits"};
    f_.has_indirect_call = true;
    return;
  }
  const Symbol& s = module_.ast->symbols[o.index];
  switch (s.space) {
    case Space::global:
    case Space::constant:
      if (!wide) throw NotModelled{"a global address in 32 bits"};
      op.s[slot] = constant(module_.symbol_address[o.index] + o.value, true);
      return;
    case Space::shared: {
      // The address is known when a kernel is linked: a pool entry of its own, patched then.
      f_.relocations.push_back({Relocation::constant, static_cast<u32>(f_.constants.size()), o.index});
      f_.constants.push_back({o.value, wide});
      op.s[slot] = kConstRow | constant_rows_;
      constant_rows_ += wide ? 2 : 1;
      return;
    }
    default: {
      const u32 t = temp(wide ? 64 : 32);
      Op pre;
      pre.fn = exec_address_of;
      pre.a = wide;
      pre.c = s.space == Space::param;
      pre.imm = static_cast<i64>(o.value + (pre.c ? module_.param_offset[o.index] : module_.symbol_frame[o.index]));
      emit_before(pre, t);
      ref(Ref::s, slot, t, false);
      return;
    }
  }
}

void Decoder::address(Op& op, const Operand& o, Space space, u32 slot) {
  if (o.kind != Operand::address || o.items.empty()) throw NotModelled{"expected an address"};
  const Operand& base = o.items[0];
  op.imm = static_cast<i64>(o.value);
  op.c = static_cast<u8>(space);
  if (base.kind == Operand::reg) {
    const u32 bits = vreg_bits(base.index);
    if (bits != 32 && bits != 64) throw NotModelled{"this kind of address register"};
    op.e = static_cast<u8>(bits == 64 ? Base::row64 : Base::row32);
    ref(Ref::s, slot, base.index, false);
    // A register can only hold a parameter's generic address (cvta.param, mov of a parameter).
    if (space == Space::param) op.c = static_cast<u8>(Space::generic);
    return;
  }
  if (base.kind == Operand::imm) {
    op.e = static_cast<u8>(Base::fixed);
    op.imm += static_cast<i64>(base.value);
    return;
  }
  if (base.kind != Operand::symbol) throw NotModelled{"this kind of address"};
  const Symbol& s = module_.ast->symbols[base.index];
  op.imm += static_cast<i64>(base.value);
  switch (s.space) {
    case Space::global:
    case Space::constant:
      op.e = static_cast<u8>(Base::fixed);
      op.imm += static_cast<i64>(module_.symbol_address[base.index]);
      break;
    case Space::shared:
      op.e = static_cast<u8>(Base::fixed);
      pending_relocations_.push_back(base.index);
      if (space == Space::generic) op.c = static_cast<u8>(Space::shared);
      break;
    case Space::param:
      op.e = static_cast<u8>(Base::param);
      op.imm += static_cast<i64>(module_.param_offset[base.index]);
      op.c = static_cast<u8>(Space::param);
      break;
    default:
      op.e = static_cast<u8>(Base::frame);
      op.imm += static_cast<i64>(module_.symbol_frame[base.index]);
      op.c = static_cast<u8>(s.space == Space::frame ? Space::frame : Space::local);
  }
}

Round Decoder::rounding() {
  if (has("rn")) return kRn;
  if (has("rz")) return kRz;
  if (has("rm")) return kRm;
  if (has("rp")) return kRp;
  return kRn;
}

// Local variables and call parameters of one activation, packed by alignment of declaration.
void Decoder::layout_frame() {
  u64 at = 0;
  for (std::size_t i = 0; i < module_.ast->symbols.size(); ++i) {
    const Symbol& s = module_.ast->symbols[i];
    if (s.function != f_.index || (s.space != Space::local && s.space != Space::frame)) continue;
    at = align_up(at, std::max(s.align, 1u));
    module_.symbol_frame[i] = at;
    at += s.bytes;
  }
  f_.frame_bytes = static_cast<u32>(std::min<u64>(align_up(at, 16), 1u << 30));
}

// ---- modules -----------------------------------------------------------------------------------------------------------

u32 Module::param_bytes(u32 function) const {
  u64 end = 0;
  for (const Param& p : ast->functions[function].params) end = align_up(end, p.align) + p.bytes();
  return static_cast<u32>(end);
}

namespace {

void place_params(Module& m) {
  for (const FunctionAst& f : m.ast->functions) {
    u64 at = 0;
    for (const Param& p : f.params) {
      at = align_up(at, p.align);
      if (p.symbol != kNone) m.param_offset[p.symbol] = at;
      at += p.bytes();
    }
  }
}

void place_globals(Module& m) {
  u64 total = 0;
  std::vector<u64> offset(m.ast->symbols.size());
  auto in_memory = [](const Symbol& s) {
    return (s.space == Space::global || s.space == Space::constant) && !s.is_extern;
  };
  for (std::size_t i = 0; i < m.ast->symbols.size(); ++i) {
    const Symbol& s = m.ast->symbols[i];
    if (!in_memory(s)) continue;
    total = align_up(total + 16, std::max<u64>(s.align, 16));  // a gap, so that overruns do not land in a neighbour
    offset[i] = total;
    total += s.bytes;
  }
  m.storage.resize(total / 8 + 1024);
  const u64 base = align_up(reinterpret_cast<u64>(m.storage.data()), 4096);
  for (std::size_t i = 0; i < m.ast->symbols.size(); ++i) {
    const Symbol& s = m.ast->symbols[i];
    if (!in_memory(s)) continue;
    m.symbol_address[i] = base + offset[i];
    if (!s.data.empty())
      std::memcpy(reinterpret_cast<void*>(m.symbol_address[i]), s.data.data(), std::min<u64>(s.data.size(), s.bytes));
    m.regions.push_back({m.symbol_address[i], s.bytes, s.space == Space::global, s.name});
  }
}

// Initialisers that name symbols; module-level names only, and for functions their code address.
void link_globals(Module& m) {
  std::unordered_map<std::string, u32> names;
  for (std::size_t i = 0; i < m.ast->symbols.size(); ++i)
    if (m.ast->symbols[i].function == kNone) names.emplace(m.ast->symbols[i].name, static_cast<u32>(i));
  for (std::size_t i = 0; i < m.ast->symbols.size(); ++i) {
    const Symbol& s = m.ast->symbols[i];
    if (!m.symbol_address[i]) continue;
    for (const Initialiser& link : s.links) {
      u64 value;
      const auto variable = names.find(link.target);
      const auto function = m.ast->function_by_name.find(link.target);
      if (variable != names.end()) value = m.symbol_address[variable->second];
      else if (function != m.ast->function_by_name.end()) value = kCodeWindow | function->second;
      else throw PtxError(s.line, "initialiser of '" + s.name + "' names unknown '" + link.target + "'");
      value += link.addend;
      if (link.offset + link.bytes <= s.bytes)
        std::memcpy(reinterpret_cast<void*>(m.symbol_address[i] + link.offset), &value, std::min(link.bytes, 8u));
    }
  }
}

}  // namespace

std::unique_ptr<Module> load_module(std::string ptx) {
  auto m = std::make_unique<Module>();
  m->ast = parse(std::move(ptx));
  const std::size_t symbols = m->ast->symbols.size();
  m->symbol_address.resize(symbols);
  m->symbol_frame.resize(symbols);
  m->param_offset.resize(symbols);
  place_params(*m);
  place_globals(*m);
  link_globals(*m);
  m->functions.resize(m->ast->functions.size());
  for (u32 i = 0; i < m->functions.size(); ++i) Decoder(*m, i).run();
  return m;
}

}  // namespace tkpy::emulator
