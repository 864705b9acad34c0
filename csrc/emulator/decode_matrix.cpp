// Decoding of ldmatrix, stmatrix, movmatrix, mma and wgmma.
#include <algorithm>
#include <charconv>

#include "decode.h"

namespace tkpy::emulator {

namespace {

// "m16n8k16"
bool parse_shape(std::string_view text, u32& m, u32& n, u32& k) {
  const std::size_t at_n = text.find('n'), at_k = text.find('k');
  if (text.empty() || text[0] != 'm' || at_n == std::string_view::npos || at_k == std::string_view::npos || at_k < at_n) return false;
  auto number = [](std::string_view digits, u32& out) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), out);
    return error == std::errc{} && end == digits.data() + digits.size();
  };
  return number(text.substr(1, at_n - 1), m) && number(text.substr(at_n + 1, at_k - at_n - 1), n) &&
         number(text.substr(at_k + 1), k);
}

std::string_view find_shape(const std::vector<std::string_view>& mods, u32& m, u32& n, u32& k) {
  for (std::string_view mod : mods)
    if (parse_shape(mod, m, n, k)) return mod;
  return {};
}

}  // namespace

bool Decoder::decode_matrix() {
  const std::string_view name = in_->opcode;
  Op op;
  if (name == "ldmatrix" || name == "stmatrix") {
    const bool load = name == "ldmatrix";
    has("sync"), has("aligned");
    if (!has("m8n8")) return false;
    op.a = has("x1") ? 1 : has("x2") ? 2 : has("x4") ? 4 : 0;
    op.b = has("trans");
    const bool shared = has("shared") || has("shared::cta");
    if (!op.a || !has("b16")) return false;
    arity(2, 2);
    list(op, arg(load ? 0 : 1), Type::b32, load);
    if (op.list_size != op.a) throw NotModelled{"a vector whose length is not the instruction's"};
    address(op, arg(load ? 1 : 0), shared ? Space::shared : Space::generic);
    op.fn = load ? exec_ldmatrix : exec_stmatrix;
    return finish(op), true;
  }
  if (name == "movmatrix") {
    has("sync"), has("aligned");
    if (!has("m8n8") || !has("trans") || !has("b16")) return false;
    arity(2, 2);
    dst(op, 0, arg(0), Type::b32);
    src(op, 0, arg(1), Type::b32);
    op.fn = exec_movmatrix;
    return finish(op), true;
  }
  if (name == "setmaxnreg") {
    op.a = has("inc");
    if (!op.a && !has("dec")) return false;
    has("sync"), has("aligned"), has("u32");
    arity(1, 1);
    if (arg(0).kind != Operand::imm || arg(0).value < 24 || arg(0).value > 256 || arg(0).value % 8)
      throw NotModelled{"a register count that is not an immediate from 24 to 256 in steps of 8"};
    op.imm = static_cast<i64>(arg(0).value);
    f_.most_registers = std::max(f_.most_registers, static_cast<u32>(arg(0).value));
    op.fn = exec_setmaxnreg;
    return finish(op), true;
  }
  if (name == "wgmma") return decode_wgmma();
  if (name == "wmma") return decode_wmma();
  if (name != "mma") return false;
  if (decode_mma_quad_pairs()) return true;
  tensor::MmaOp m{};
  m.sparse = has("sp") || has("sp::ordered_metadata");  // the latter promises rising indices, of which nothing depends
  has("sync"), has("aligned");
  const std::string_view shape = find_shape(in_->modifiers, m.m, m.n, m.k);
  if (shape.empty()) return false;
  has(shape);
  if (!has("row") || !has("col")) return false;
  m.satfinite = has("satfinite");
  m.d = need_type(), m.a = need_type(), m.b = need_type(), m.c = need_type();
  if (m.a == Type::b1) {
    m.xor_popc = has("xor");
    if (!m.xor_popc && !has("and")) return false;
    has("popc");
  }
  if (m.d == Type::f64) m.rounding = rounding();
  if (m.sparse) m.selector = sparsity_selector(5);
  const std::string why = tensor::mma_reason(m);
  if (!why.empty()) throw NotModelled{why};
  const tensor::MmaRegisters r = tensor::mma_registers(m);
  const Type row = m.a == Type::f64 ? Type::b64 : Type::b32;
  arity(m.sparse ? 6 : 4, m.sparse ? 6 : 4);
  if (m.sparse) src(op, 0, arg(4), Type::b32);
  list(op, arg(0), row, true);
  if (op.list_size != r.c) throw NotModelled{"a vector whose length is not the instruction's"};
  list_more(op, arg(1), row, false);
  if (op.list_size != r.c + r.a) throw NotModelled{"a vector whose length is not the instruction's"};
  list_more(op, arg(2), row, false);
  if (op.list_size != r.c + r.a + r.b) throw NotModelled{"a vector whose length is not the instruction's"};
  list_more(op, arg(3), row, false);
  if (op.list_size != 2 * r.c + r.a + r.b) throw NotModelled{"a vector whose length is not the instruction's"};
  op.imm = static_cast<i64>(f_.mma_ops.size());
  f_.mma_ops.push_back(m);
  op.flops = static_cast<u16>(2 * m.m * m.n * m.k / kLanes);
  op.fn = exec_mma;
  return finish(op), true;
}

// mma.m8n8k4 of f16: the first layout is A's, the second B's.
bool Decoder::decode_mma_quad_pairs() {
  std::vector<std::string_view> layouts;
  for (std::string_view mod : in_->modifiers)
    if (mod == "row" || mod == "col") layouts.push_back(mod);
  const bool halves = std::ranges::count(in_->modifiers, "f16") >= 2;
  if (!halves || std::ranges::count(in_->modifiers, "m8n8k4") != 1 || layouts.size() != 2) return false;
  has("sync"), has("aligned"), has("m8n8k4"), has(layouts[0]), has(layouts[1]);
  const Type d = need_type(), a = need_type(), b = need_type(), c = need_type();
  if (a != Type::f16 || b != Type::f16 || (d != Type::f32 && d != c) || (c != Type::f32 && c != Type::f16))
    throw NotModelled{"mma.sync m8n8k4 of types that sm_90a does not have"};
  const tensor::QuadPairs m{layouts[0] == "col", layouts[1] == "row", c == Type::f32, d == Type::f32};
  Op op;
  op.a = static_cast<u8>(m.a_col | m.b_row << 1 | m.c_f32 << 2 | m.d_f32 << 3);
  arity(4, 4);
  list(op, arg(0), Type::b32, true);
  for (std::size_t i = 1; i < 4; ++i) list_more(op, arg(i), Type::b32, false);
  const u32 lengths[] = {m.registers_d(), 2, 2, m.registers_c()};
  for (std::size_t i = 0; i < 4; ++i)
    if (arg(i).items.size() != lengths[i]) throw NotModelled{"a vector whose length is not the instruction's"};
  op.flops = static_cast<u16>(4 * 2 * 8 * 8 * 4 / kLanes);
  op.fn = exec_mma_quad_pairs;
  return finish(op), true;
}

u8 Decoder::sparsity_selector(std::size_t i) const {
  if (arg(i).kind != Operand::imm) throw NotModelled{"a sparsity selector that is not an immediate"};
  return static_cast<u8>(std::min<u64>(arg(i).value, 255));
}

// Registers of an operation that outlives its instruction keep rows of their own, so that no other value moves in.
void Decoder::pin(std::size_t first_pending) {
  for (std::size_t i = first_pending; i < pending_.size(); ++i)
    if (pending_[i].field == Ref::list) pinned_.push_back(pending_[i].vreg);
}

bool Decoder::decode_wgmma() {
  Op op;
  has("sync"), has("aligned");
  if (has("fence")) {
    op.fn = exec_wgmma_fence;
    return finish(op), true;
  }
  if (has("commit_group")) {
    op.fn = exec_wgmma_commit;
    return finish(op), true;
  }
  if (has("wait_group")) {
    arity(1, 1);
    if (arg(0).kind != Operand::imm) throw NotModelled{"a count that is not an immediate"};
    op.imm = static_cast<i64>(std::min<u64>(arg(0).value, 1u << 20));
    op.fn = exec_wgmma_wait;
    return finish(op), true;
  }
  if (!has("mma_async")) return false;
  tensor::WgmmaOp w{};
  w.sparse = has("sp");
  u32 m = 0, k = 0;
  const std::string_view shape = find_shape(in_->modifiers, m, w.n, k);
  if (shape.empty() || m != 64) return false;
  has(shape);
  w.satfinite = has("satfinite");
  w.d = need_type(), w.a = need_type(), w.b = need_type();
  if (w.a == Type::b1 && (!has("and") || !has("popc"))) return false;
  w.a_in_registers = arg(1).kind == Operand::vector;
  const bool half = w.a == Type::f16 || w.a == Type::bf16;
  const bool integers = w.d == Type::s32;
  const std::size_t extra = integers ? 0 : half ? (w.a_in_registers ? 3 : 4) : 2;  // imm-scale, imm-trans
  const std::size_t after = w.sparse ? 5 : 3;  // scale-d; metadata and selector come before it
  arity(after + 1 + extra, after + 1 + extra);
  if (w.sparse) w.selector = sparsity_selector(4);
  auto flag = [&](std::size_t i) {
    if (arg(i).kind != Operand::imm) throw NotModelled{"a scale or transposition that is not an immediate"};
    return arg(i).value;
  };
  if (!integers) w.negate_a = flag(after + 1) == ~u64{0}, w.negate_b = flag(after + 2) == ~u64{0};
  if (half && w.a_in_registers) w.transpose_b = flag(after + 3) != 0;
  if (half && !w.a_in_registers) w.transpose_a = flag(after + 3) != 0, w.transpose_b = flag(after + 4) != 0;
  std::string why = tensor::wgmma_reason(w);
  if (why.empty() && k != tensor::wgmma_k(w)) why = "no such shape";
  if (!why.empty()) throw NotModelled{why};
  const std::size_t first = pending_.size();
  // D is read (unless scale-d says not) as well as written, until the wait: its rows are pinned.
  list(op, arg(0), Type::b32, true);
  for (std::size_t i = first, n = pending_.size(); i < n; ++i) {
    pending_.push_back(pending_[i]);
    pending_.back().def = false;
  }
  const u32 registers = tensor::wgmma_registers(w);
  if (op.list_size != registers) throw NotModelled{"a vector whose length is not the instruction's"};
  if (w.a_in_registers) {
    list_more(op, arg(1), Type::b32, false);
    if (op.list_size != registers + 4) throw NotModelled{"a vector whose length is not the instruction's"};
  } else {
    src(op, 0, arg(1), Type::b64);
  }
  if (w.sparse) list_more(op, arg(3), Type::b32, false);
  pin(first);
  src(op, 1, arg(2), Type::b64);
  op.s[2] = pred_src(arg(after));
  op.imm = static_cast<i64>(f_.wgmma_ops.size());
  f_.wgmma_ops.push_back(w);
  op.flops = static_cast<u16>(2 * 16 * w.n * k / kLanes);
  op.fn = exec_wgmma;
  return finish(op), true;
}

}  // namespace tkpy::emulator
