// Decoding of control flow, calls, warp-wide and barrier instructions.
#include <algorithm>

#include "decode.h"

namespace tkpy::emulator {

bool Decoder::decode_control() {
  const std::string_view name = in_->opcode;
  Op op;
  if (name == "bra") {
    has("uni");
    arity(1, 1);
    if (arg(0).kind != Operand::label) throw NotModelled{"a target that is not a label"};
    op.fn = exec_bra;
    op.imm = ast_.labels[arg(0).index].target;  // an instruction for now; run() makes it an Op
    current_flow_ = Flow::branch;
    return finish(op), true;
  }
  if (name == "brx") {
    if (!has("idx")) return false;
    has("uni");
    arity(2, 2);
    if (arg(1).kind != Operand::table || ast_.tables[arg(1).index].is_prototype) throw NotModelled{"no .branchtargets"};
    const BranchTable& table = ast_.tables[arg(1).index];
    op.fn = exec_brx;
    src(op, 0, arg(0), Type::u32);
    op.list = static_cast<u32>(f_.lists.size());
    op.list_size = static_cast<u16>(std::min<std::size_t>(table.targets.size(), 65535));
    f_.lists.insert(f_.lists.end(), table.targets.begin(), table.targets.begin() + op.list_size);
    current_flow_ = Flow::table;
    return finish(op), true;
  }
  if (name == "call") return call(), true;
  if (name == "ret" || name == "exit") {
    has("uni");
    arity(0, 0);
    op.fn = name == "exit" || ast_.is_entry ? exec_exit : exec_ret;
    current_flow_ = Flow::end;
    return finish(op), true;
  }
  if (name == "trap" || name == "brkpt") {
    op.fn = name == "trap" ? exec_trap : exec_brkpt;
    return finish(op), true;
  }
  if (name == "nanosleep") {
    need_type();
    op.fn = exec_nanosleep;
    arity(1, 1);
    src(op, 0, arg(0), Type::u32);
    return finish(op), true;
  }
  if (name == "pmevent" || name == "griddepcontrol") {
    // One grid at a time: a grid's prerequisites have always finished.
    if (name == "griddepcontrol" && !has("wait") && !has("launch_dependents")) return false;
    if (name == "pmevent") has("mask");
    arity(name == "pmevent", name == "pmevent");
    if (count() && arg(0).kind != Operand::imm) throw NotModelled{"an event that is not an immediate"};
    op.fn = exec_nothing;
    return finish(op), true;
  }
  return false;
}

void Decoder::call() {
  has("uni");
  arity(3, 4);
  const Operand& returns = arg(0);
  const Operand& target = arg(1);
  const Operand& params = arg(2);
  const FunctionAst* known = nullptr;
  Op op;
  op.fn = exec_call;
  f_.calls.emplace_back();
  const u32 site = static_cast<u32>(f_.calls.size() - 1);
  op.list = site;
  if (target.kind == Operand::func) {
    known = &module_.ast->functions[target.index];
    if (!known->has_body) return call_known(known->name);
    f_.calls[site].target = target.index;
    f_.callees.push_back(target.index);
  } else if (target.kind == Operand::reg && vreg_bits(target.index) == 64) {
    f_.has_indirect_call = true;
    ref(Ref::call_target, 0, target.index, false);
  } else {
    throw NotModelled{"this kind of call target"};
  }
  auto add = [&](const Operand& list, std::vector<CallSlot>& to, Ref::Field field) {
    for (const Operand& o : list.items) {
      CallSlot slot;
      if (o.kind == Operand::symbol) {
        const Symbol& s = module_.ast->symbols[o.index];
        if (s.space != Space::frame) throw NotModelled{"an argument that is not a .param"};
        slot.frame_offset = static_cast<u32>(module_.symbol_frame[o.index]);
        slot.bytes = static_cast<u32>(s.bytes);
      } else if (o.kind == Operand::reg && vreg_bits(o.index) != 1) {
        slot.wide = vreg_bits(o.index) == 64;
        slot.bytes = type_bytes(ast_.registers[o.index].type);
        ref(field, static_cast<u32>(to.size()), o.index, field == Ref::call_return);
      } else if (o.kind == Operand::imm && field == Ref::call_param) {
        slot.reg_row = constant(o.value, true);
        slot.wide = true;
        slot.bytes = 8;
      } else {
        throw NotModelled{"this kind of argument"};
      }
      to.push_back(slot);
    }
  };
  add(returns, f_.calls[site].returns, Ref::call_return);
  add(params, f_.calls[site].params, Ref::call_param);
  if (known && (known->params.size() != f_.calls[site].params.size() || known->returns.size() != f_.calls[site].returns.size()))
    throw NotModelled{"a call whose arguments are not the function's parameters"};
  finish(op);
}

// Functions the driver provides.
void Decoder::call_known(const std::string& name) {
  Op op;
  const Operand& params = arg(2);
  const Operand& returns = arg(0);
  const bool of_heap = name == "malloc" || name == "free";
  auto offset = [&](const Operand& o) {
    if (o.kind != Operand::symbol || module_.ast->symbols[o.index].space != Space::frame)
      throw NotModelled{"an argument that is not a .param"};
    if (of_heap && module_.ast->symbols[o.index].bytes < 8) throw NotModelled{"an argument of less than 64 bits"};
    return static_cast<u32>(module_.symbol_frame[o.index]);
  };
  op.list = static_cast<u32>(f_.lists.size());
  op.list_size = 0;
  for (const Operand& o : params.items) {
    f_.lists.push_back(offset(o));
    ++op.list_size;
  }
  op.imm = returns.items.empty() ? -1 : static_cast<i64>(offset(returns.items[0]));
  if (name == "vprintf" && params.items.size() == 2) op.fn = exec_vprintf;
  else if (name == "__assertfail" && params.items.size() == 5) op.fn = exec_assertfail;
  else if (of_heap && params.items.size() == 1 && (op.imm >= 0) == (name == "malloc")) {
    op.fn = name == "malloc" ? exec_malloc : exec_free;
    if (!module_.heap) module_.heap = std::make_unique<DeviceHeap>();
    f_.talks_across_ctas = true;  // who allocates first must not depend on the host's threads
  } else throw NotModelled{"external function '" + name + "'"};
  finish(op);
}

bool Decoder::decode_warp() {
  const std::string_view name = in_->opcode;
  Op op;
  if (name == "shfl") {
    if (!has("sync")) return false;
    static constexpr std::string_view kModes[] = {"up", "down", "bfly", "idx"};
    op.a = 255;
    for (u8 i = 0; i < 4; ++i)
      if (has(kModes[i])) op.a = i;
    if (op.a == 255) return false;
    need_type();
    op.fn = exec_shfl;
    arity(5, 5);
    const bool pair = arg(0).kind == Operand::pair;
    dst(op, 0, pair ? arg(0).items[0] : arg(0), Type::b32);
    op.d[1] = pair ? pred_dst(arg(0).items[1]) : kNone;
    for (u32 i = 0; i < 4; ++i) src(op, i, arg(i + 1), Type::b32);
    return finish(op), true;
  }
  if (name == "vote") {
    if (!has("sync")) return false;
    static constexpr std::string_view kModes[] = {"all", "any", "uni", "ballot"};
    op.a = 255;
    for (u8 i = 0; i < 4; ++i)
      if (has(kModes[i])) op.a = i;
    if (op.a == 255) return false;
    need_type();
    op.fn = exec_vote;
    arity(3, 3);
    if (op.a == 3) dst(op, 0, arg(0), Type::b32);
    else op.d[0] = pred_dst(arg(0));
    op.s[0] = pred_src(arg(1));
    src(op, 1, arg(2), Type::b32);
    return finish(op), true;
  }
  if (name == "match") {
    op.a = has("all");
    if (!op.a && !has("any")) return false;
    if (!has("sync")) return false;
    const Type type = need_type();
    op.b = type_bits(type) == 64;
    op.fn = exec_match;
    arity(3, 3);
    const bool pair = arg(0).kind == Operand::pair;
    dst(op, 0, pair ? arg(0).items[0] : arg(0), Type::b32);
    op.d[1] = pair ? pred_dst(arg(0).items[1]) : kNone;
    src(op, 0, arg(1), type);
    src(op, 1, arg(2), Type::b32);
    return finish(op), true;
  }
  if (name == "redux") {
    if (!has("sync")) return false;
    static constexpr std::string_view kOps[] = {"add", "min", "max", "and", "or", "xor"};
    op.a = 255;
    for (u8 i = 0; i < 6; ++i)
      if (has(kOps[i])) op.a = i;
    const Type type = need_type();
    if (op.a == 255 || is_float(type)) return false;
    op.b = is_signed_int(type);
    op.fn = exec_redux;
    arity(3, 3);
    dst(op, 0, arg(0), Type::b32);
    src(op, 0, arg(1), Type::b32);
    src(op, 1, arg(2), Type::b32);
    return finish(op), true;
  }
  if (name == "elect") {
    if (!has("sync")) return false;
    op.fn = exec_elect;
    arity(2, 2);
    if (arg(0).kind != Operand::pair) throw NotModelled{"no d|p destination"};
    dst(op, 0, arg(0).items[0], Type::b32);
    op.d[1] = pred_dst(arg(0).items[1]);
    src(op, 1, arg(1), Type::b32);
    return finish(op), true;
  }
  if (name == "activemask") {
    need_type();
    op.fn = exec_activemask;
    arity(1, 1);
    dst(op, 0, arg(0), Type::b32);
    return finish(op), true;
  }
  return false;
}

bool Decoder::decode_sync() {
  const std::string_view name = in_->opcode;
  Op op;
  if (name == "bar" && has("warp")) {
    if (!has("sync")) return false;
    op.fn = exec_warp_barrier;
    arity(1, 1);
    src(op, 1, arg(0), Type::b32);
    return finish(op), true;
  }
  if (name == "barrier" && has("cluster")) {
    const bool arrive = has("arrive");
    if (!arrive && !has("wait")) return false;
    op.a = has("relaxed");
    has("release"), has("acquire"), has("aligned");
    op.fn = arrive ? exec_cluster_arrive : exec_cluster_wait;
    arity(0, 0);
    return finish(op), true;
  }
  if (name != "bar" && name != "barrier") return false;
  has("cta");
  has("aligned");
  // Op::a: 0 sync, 1 arrive, 2 red. Op::b: 0 popc, 1 and, 2 or. s[0] id, s[1] count (Op::c: present).
  if (has("sync")) op.a = 0;
  else if (has("arrive")) op.a = 1;
  else if (has("red")) op.a = 2;
  else return false;
  op.fn = exec_barrier;
  std::size_t at = 0;
  if (op.a == 2) {
    op.b = has("popc") ? 0 : has("and") ? 1 : has("or") ? 2 : 255;
    if (op.b == 255) return false;
    next_type();
    arity(3, 4);
    if (op.b == 0) dst(op, 0, arg(0), Type::b32);
    else op.d[0] = pred_dst(arg(0));
    op.s[2] = pred_src(arg(count() - 1));
    at = 1;
  } else {
    arity(1, 2);
  }
  src(op, 0, arg(at), Type::u32);
  op.c = count() - at - (op.a == 2) == 2;
  if (op.c) src(op, 1, arg(at + 1), Type::u32);
  if (op.a == 1 && !op.c) throw NotModelled{"an arrival without a thread count"};
  return finish(op), true;
}

}  // namespace tkpy::emulator
