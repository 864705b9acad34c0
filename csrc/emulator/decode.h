// From parsed instructions to Ops. An instruction that is not modelled becomes an Op that stops with its text, and an entry
// in Function::unmodelled; nothing is guessed.
#pragma once

#include <map>

#include "alu.h"
#include "exec.h"

namespace tkpy::emulator {

struct NotModelled {
  std::string reason;
};

// One mention of a virtual register by an Op: where its row number goes after allocation.
struct Ref {
  enum Field : u8 { s, d, list, call_param, call_return, call_target } field;
  bool def;
  u32 op;
  u32 index;     // which s, d, list entry (absolute) or call slot
  u32 vreg;
  u32 call = 0;  // index of the call site
};

enum class Flow : u8 { next, branch, table, end };

class Decoder {
 public:
  Decoder(Module& module, u32 function);
  void run();

 private:
  friend struct Mnemonics;
  // the instruction at hand
  bool has(std::string_view modifier);          // and consumes it
  bool has_prefix(std::string_view prefix);
  Type next_type();                             // the next modifier that names a type; Type::none at the end
  Type need_type();
  std::size_t count() const { return in_->operands.size(); }
  const Operand& arg(std::size_t i) const;
  void arity(std::size_t least, std::size_t most) const;
  void refuse_negation(const Operand& o) const;
  void finish(Op op);                           // all modifiers consumed? then emit
  void emit(Op op);
  void emit_before(Op op, u32 vreg);

  // operands
  u32 vreg_bits(u32 vreg) const;
  u32 constant(u64 bits, bool wide);
  u64 immediate_bits(const Operand& o, Type type) const;
  void src(Op& op, u32 slot, const Operand& o, Type type);
  void src_any(Op& op, u32 slot, const Operand& o, bool& wide);  // register of either class, for cvt and st
  void dst(Op& op, u32 slot, const Operand& o, Type type);
  u32 pred_src(const Operand& o);
  u32 pred_dst(const Operand& o);
  void list(Op& op, const Operand& o, Type type, bool def, bool* wide = nullptr);
  void list_more(Op& op, const Operand& o, Type type, bool def);
  void address(Op& op, const Operand& o, Space space, u32 slot = 0);
  u32 temp(u32 bits);
  void cache_policy(const Operand& o);                   // the operand of .L2::cache_hint, which changes nothing
  void address_row(Op& op, u32 slot, const Operand& o);  // the address itself as operand; sets bit `slot` of op.f
  void ref(Ref::Field field, u32 index, u32 vreg, bool def);
  void symbol_value(Op& op, u32 slot, const Operand& o, bool wide);
  Round rounding();
  u32 alu_flags(bool ftz, bool sat);

  // families
  void decode_one();
  bool decode_alu();
  bool decode_arith();
  bool decode_bits();
  bool decode_compare();
  bool decode_move();
  bool decode_cvt();
  void pack_integers();
  bool decode_video();
  void scalar_video(VideoOp& v);
  void simd_video(VideoOp& v);
  void emit_video(const VideoOp& v);
  bool decode_memory();
  bool decode_control();
  bool decode_warp();
  bool decode_sync();
  bool decode_matrix();
  bool decode_async();
  bool decode_mbarrier();
  bool decode_bulk();
  bool decode_wgmma();
  bool decode_wmma();
  bool decode_mma_quad_pairs();
  bool decode_multimem();
  bool decode_tensormap();
  bool decode_store_async();
  u8 sparsity_selector(std::size_t i) const;
  void pin(std::size_t first_pending);
  void binary(Alu op, Type type, u32 flags);
  void alu(const AluKey& key, u32 sources, Op op = Op{});
  void decode_stack();
  void load_store(bool load);
  void atomic(bool returns);
  void call();
  void call_known(const std::string& name);
  void mov();

  // allocation (regalloc.cpp)
  void allocate();
  void layout_frame();
  void patch();
  // registers that are looked at while running (watch.cpp)
  std::vector<u8> followed() const;
  void watch();

  Module& module_;
  Function& f_;
  const FunctionAst& ast_;
  const Instr* in_ = nullptr;
  u32 instr_ = 0;
  u64 taken_ = 0;
  std::vector<u32> vreg_bits_;        // register class of each virtual register, temporaries included
  std::vector<u32> pred_slot_;        // by AST register
  std::vector<Ref> refs_, pending_;
  std::vector<u32> pending_relocations_;  // shared symbols whose address is added to the next Op's imm
  std::vector<Flow> flow_;
  std::vector<u32> op_of_instr_;
  std::vector<u32> pinned_;           // vregs that keep a row of their own
  std::map<std::pair<u64, bool>, u32> constants_;
  u32 constant_rows_ = 0;
  Flow current_flow_ = Flow::next;
  std::vector<std::vector<u32>> branch_tables_;  // op targets
  std::vector<u32> row_of_vreg_;
  std::vector<u32> read_first_;       // vregs that some path from the start reads before it writes them
};

Space space_from_modifiers(const std::vector<std::string_view>& mods, Space otherwise);

}  // namespace tkpy::emulator
