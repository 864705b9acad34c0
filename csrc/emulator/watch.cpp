// Which registers are looked at while a function runs, decided when it is decoded, so that all other instructions run as if
// there were no check:
//   - registers of wgmma, which must not be touched while it runs (PTX ISA 9.7.15), and what is moved to or from them;
//   - registers that some path reads before it writes them, and what is computed from those.
// Their Ops get exec_watched as handler (exec_watch.cpp), which checks and then calls the Op's own.
#include <algorithm>

#include "decode.h"

namespace tkpy::emulator {

namespace {

enum Followed : u8 { kMatrix = 1, kUndefined = 2 };

bool is_one_of(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

Watch::Rule rule_of(const Op& op, const Instr& in) {
  if (op.helper) return Watch::any;
  if (in.opcode == "mov") return op.list_size ? Watch::all : Watch::move;
  if (is_one_of(in.opcode, {"prmt", "bfi"})) return Watch::all;  // they put values together
  if (in.opcode == "selp") return Watch::select;
  if (is_one_of(in.opcode, {"setp", "set"})) return Watch::condition;
  if (is_one_of(in.opcode, {"ld", "ldu", "st", "atom", "red", "ldmatrix", "stmatrix", "mma", "wmma", "movmatrix", "cp", "mbarrier",
                            "bar", "barrier", "brx", "redux", "match", "tensormap", "multimem"}))
    return Watch::need;
  if (is_one_of(in.opcode, {"shfl", "vote", "elect", "activemask", "call", "wgmma", "nanosleep"})) return Watch::plain;
  return Watch::any;
}

bool flows(Watch::Rule rule) { return rule <= Watch::move; }

// A value that goes to the stack, as an argument or a copy, may be one that nobody reads.
bool is_stack_store(const Op& op) {
  return op.fn == exec_store && (op.c == static_cast<u8>(Space::local) || op.c == static_cast<u8>(Space::frame));
}

}  // namespace

// Per virtual register, why it is watched: a closure over the Ops that mention it.
std::vector<u8> Decoder::followed() const {
  std::vector<u8> why(vreg_bits_.size(), 0);
  std::vector<u32> work;
  auto add = [&](u32 vreg, u8 reason) {
    if ((why[vreg] & reason) == reason) return;
    why[vreg] |= reason;
    work.push_back(vreg);
  };
  for (u32 vreg : read_first_) add(vreg, kUndefined);
  for (const Ref& r : refs_)
    if (f_.ops[r.op].fn == exec_wgmma && r.field == Ref::list) add(r.vreg, kMatrix);
  if (work.empty()) return why;
  std::vector<std::vector<u32>> ops_of(vreg_bits_.size());
  std::vector<u32> first(f_.ops.size() + 1, static_cast<u32>(refs_.size()));
  for (u32 i = static_cast<u32>(refs_.size()); i-- > 0;) {
    ops_of[refs_[i].vreg].push_back(refs_[i].op);
    first[refs_[i].op] = i;
  }
  while (!work.empty()) {
    const u32 vreg = work.back();
    work.pop_back();
    for (u32 o : ops_of[vreg]) {
      const Watch::Rule rule = rule_of(f_.ops[o], ast_.code[f_.ops[o].instr]);
      if (!flows(rule)) continue;
      bool reads = false;
      for (u32 i = first[o]; i < refs_.size() && refs_[i].op == o; ++i) reads |= !refs_[i].def && refs_[i].vreg == vreg;
      for (u32 i = first[o]; i < refs_.size() && refs_[i].op == o; ++i) {
        if (rule == Watch::move) add(refs_[i].vreg, why[vreg] & kMatrix);
        if (reads && refs_[i].def) add(refs_[i].vreg, why[vreg] & kUndefined);
      }
    }
  }
  return why;
}

void Decoder::watch() {
  for (const Param& p : ast_.params) std::erase(read_first_, p.reg);  // written by the call
  const std::vector<u8> why = followed();
  std::vector<u32> index(why.size(), kNone);
  for (u32 v = 0; v < why.size(); ++v) {
    if (!why[v]) continue;
    index[v] = static_cast<u32>(f_.watched.size());
    f_.watched.push_back({v, (why[v] & kMatrix) != 0, false, true});
  }
  if (f_.watched.empty()) return;
  for (u32 v : read_first_)
    if (index[v] != kNone) f_.watched[index[v]].undefined = true;
  f_.watch_of_op.assign(f_.ops.size(), kNone);
  for (std::size_t i = 0; i < refs_.size();) {
    const u32 at = refs_[i].op;
    Op& op = f_.ops[at];
    Watch w;
    w.rule = rule_of(op, ast_.code[op.instr]);
    w.first = static_cast<u32>(f_.watch_refs.size());
    bool any = false;
    u32 sources = 0;
    for (; i < refs_.size() && refs_[i].op == at; ++i) {
      const Ref& r = refs_[i];
      const u32 v = index[r.vreg];
      any |= v != kNone;
      if (r.def && v != kNone) f_.watched[v].unwritten = false;
      if (!r.def && is_stack_store(op) && r.field == Ref::list) continue;
      // A selection needs to know which source is which.
      if (w.rule == Watch::select && !r.def)
        for (; sources < r.index; ++sources, ++w.uses) f_.watch_refs.push_back(kNone);
      if (!r.def) ++sources;
      w.complete &= r.def || v != kNone;
      f_.watch_refs.push_back(v);
      ++(r.def ? w.defs : w.uses);
    }
    if (w.rule == Watch::all) w.complete &= sources == (op.list_size && w.defs == 1 ? op.list_size : w.uses);
    if (!any) {
      f_.watch_refs.resize(w.first);
      continue;
    }
    w.fn = op.fn;
    f_.watch_of_op[at] = static_cast<u32>(f_.watches.size());
    f_.watches.push_back(w);
    if (op.fn != exec_wgmma) op.fn = exec_watched;
  }
}

}  // namespace tkpy::emulator
