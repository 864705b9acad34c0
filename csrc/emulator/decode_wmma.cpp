// Decoding of wmma.load, wmma.mma and wmma.store (PTX ISA 9.7.14.4).
#include <algorithm>
#include <charconv>

#include "decode.h"
#include "exec_wmma.h"

namespace tkpy::emulator {

namespace {

// "m16n16k16"
bool parse_shape(std::string_view text, tensor::WmmaOp& w) {
  const std::size_t n = text.find('n'), k = text.find('k');
  if (text.empty() || text[0] != 'm' || n == std::string_view::npos || k == std::string_view::npos || k < n) return false;
  auto number = [](std::string_view digits, u32& out) {
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), out);
    return error == std::errc{} && end == digits.data() + digits.size();
  };
  return number(text.substr(1, n - 1), w.m) && number(text.substr(n + 1, k - n - 1), w.n) && number(text.substr(k + 1), w.k);
}

// A load or store names one type; the rest are those of some instruction that has such a matrix, if there is one.
std::string complete(tensor::WmmaOp& w, tensor::WmmaMatrix matrix, Type type) {
  std::string why = "no type";
  for (Type a : {Type::f16, Type::bf16, Type::tf32, Type::f64, Type::s8, Type::u8, Type::s4, Type::u4, Type::b1}) {
    for (Type c : {Type::f32, Type::f16, Type::s32, Type::f64}) {
      if (type != (matrix == tensor::WmmaMatrix::c ? c : a)) continue;
      tensor::WmmaOp attempt = w;
      attempt.a = attempt.b = a, attempt.c = attempt.d = c;
      why = tensor::wmma_reason(attempt);
      if (why.empty()) return w = attempt, why;
    }
  }
  return why;
}

Type row_type(Type type) { return type == Type::f64 ? Type::b64 : Type::b32; }

}  // namespace

bool Decoder::decode_wmma() {
  Op op;
  tensor::WmmaOp w{};
  const bool load = has("load"), store = !load && has("store");
  if (!load && !store && !has("mma")) return false;
  const bool a = load && has("a"), b = load && !a && has("b"), c = load && !a && !b && has("c");
  if ((load && !a && !b && !c) || (store && !has("d"))) return false;
  has("sync"), has("aligned");
  const auto shape = std::find_if(in_->modifiers.begin(), in_->modifiers.end(),
                                  [&](std::string_view m) { return parse_shape(m, w); });
  if (shape == in_->modifiers.end()) return false;
  has(*shape);
  const auto column_major = [&] {  // the first of .row and .col that is left
    for (std::string_view m : in_->modifiers)
      if (m == "row" || m == "col") return has(m) && m == "col";
    throw NotModelled{"no layout"};
  };
  if (!load && !store) {
    // Layouts of A and B are the fragments', which do not depend on them here.
    const std::size_t layouts = static_cast<std::size_t>(has("row")) + has("row") + has("col") + has("col");
    if (layouts != 2) return false;
    w.satfinite = has("satfinite");
    w.xor_popc = has("xor");
    const bool bits = w.xor_popc || has("and");
    if (bits && !has("popc")) return false;
    const Type first = need_type(), second = need_type();
    const Type third = next_type();
    if (third == Type::none) w.d = first, w.a = w.b = Type::f16, w.c = second;
    else w.d = first, w.a = second, w.b = third, w.c = need_type();
    if (w.d == Type::f64) w.rounding = rounding();
    if (const std::string why = tensor::wmma_reason(w); !why.empty()) throw NotModelled{why};
    if ((w.a == Type::b1) != bits) return false;
    arity(4, 4);
    const Type types[4] = {w.d, w.a, w.b, w.c};
    const tensor::WmmaMatrix matrices[4] = {tensor::WmmaMatrix::c, tensor::WmmaMatrix::a, tensor::WmmaMatrix::b, tensor::WmmaMatrix::c};
    u32 wanted = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      if (i == 0) list(op, arg(i), row_type(types[i]), true);
      else list_more(op, arg(i), row_type(types[i]), false);
      wanted += tensor::wmma_registers(w, matrices[i], types[i]);
      if (op.list_size != wanted) throw NotModelled{"a vector whose length is not the instruction's"};
    }
    op.flops = static_cast<u16>(2 * w.m * w.n * w.k / kLanes);
    op.fn = exec_wmma;
  } else {
    op.b = column_major();
    const auto matrix = a ? tensor::WmmaMatrix::a : b ? tensor::WmmaMatrix::b : tensor::WmmaMatrix::c;
    Space space = Space::generic;
    if (has("global")) space = Space::global;
    else if (has("shared") || has("shared::cta")) space = Space::shared;
    const Type type = need_type();
    if (const std::string why = complete(w, matrix, type); !why.empty()) throw NotModelled{why};
    if (type_bits(type) < 8 && op.b != b) throw NotModelled{"packed elements are row-major in A and column-major in B"};
    arity(2, 3);
    op.d[1] = static_cast<u32>(type);
    op.a = static_cast<u8>(matrix);
    list(op, arg(load ? 0 : 1), row_type(type), load);
    if (op.list_size != tensor::wmma_registers(w, matrix, type)) throw NotModelled{"a vector whose length is not the instruction's"};
    // Without a stride the rows (or columns) follow one another.
    const u32 across = op.b ? (matrix == tensor::WmmaMatrix::b ? w.k : w.m) : (matrix == tensor::WmmaMatrix::a ? w.k : w.n);
    if (count() == 3) src(op, 1, arg(2), Type::u32);
    else op.s[1] = constant(across, false);
    // An element's address, and the element, in rows of their own; the latter follows the fragment in the list.
    ref(Ref::d, 0, temp(64), true);
    ref(Ref::list, static_cast<u32>(f_.lists.size()), temp(type == Type::f64 ? 64 : 32), true);
    f_.lists.push_back(kNone);
    address_row(op, 0, arg(load ? 1 : 0));
    op.c = static_cast<u8>(space);
    op.fn = load ? exec_wmma_load : exec_wmma_store;
  }
  op.imm = pack_wmma(w);
  return finish(op), true;
}

}  // namespace tkpy::emulator
