// Decoding of video instructions (PTX ISA 9.7.17, 9.7.18).
#include <algorithm>

#include "decode.h"

namespace tkpy::emulator {

namespace {

// ".b2", ".h1" of a scalar instruction: width and index of the part.
bool take_part(const Operand& o, u8& bits, u8& index) {
  bits = 32, index = 0;
  if (o.text.empty()) return true;
  if (o.text.size() != 2 || (o.text[0] != 'b' && o.text[0] != 'h')) return false;
  bits = o.text[0] == 'b' ? 8 : 16;
  index = static_cast<u8>(o.text[1] - '0');
  return index < 32 / bits;
}

// ".h32", ".b7654": the source part of every way, the highest way first; `first` is where the default begins.
bool take_parts(const Operand& o, u8 ways, u8 first, u8 (&select)[4]) {
  for (u8 i = 0; i < 4; ++i) select[i] = static_cast<u8>(first + i);
  if (o.text.empty()) return true;
  if (o.text.size() != ways + 1u || o.text[0] != (ways == 2 ? 'h' : 'b')) return false;
  for (u8 i = 0; i < 4 && i < ways; ++i) {
    const char digit = o.text[ways - i];
    if (digit < '0' || digit >= '0' + 2 * ways) return false;
    select[i] = static_cast<u8>(digit - '0');
  }
  return true;
}

// ".h10", ".b3210": which parts of the destination are written; in falling order.
bool take_mask(const Operand& o, u8 ways, u8& mask) {
  mask = static_cast<u8>((1 << ways) - 1);
  if (o.text.empty()) return true;
  if (o.text[0] != (ways == 2 ? 'h' : 'b')) return false;
  mask = 0;
  for (char digit : o.text.substr(1)) {
    const int bit = digit - '0';
    if (bit < 0 || bit >= ways || (mask & ((2 << bit) - 1))) return false;
    mask |= static_cast<u8>(1 << bit);
  }
  return mask != 0;
}

Operand whole(Operand o) {
  o.text = {};
  o.negated = false;
  return o;
}

}  // namespace

bool Decoder::decode_video() {
  struct Row { std::string_view name; Video what; bool scalar, simd; };
  static constexpr Row kRows[] = {
      {"vadd", Video::add, true, true}, {"vsub", Video::sub, true, true}, {"vavrg", Video::average, false, true},
      {"vabsdiff", Video::absolute_difference, true, true}, {"vmin", Video::min, true, true}, {"vmax", Video::max, true, true},
      {"vset", Video::set, true, true}, {"vshl", Video::shift_left, true, false}, {"vshr", Video::shift_right, true, false},
      {"vmad", Video::multiply_add, true, false}};
  std::string_view name = in_->opcode;
  VideoOp v;
  if (name.ends_with('2') || name.ends_with('4')) {
    v.ways = name.ends_with('2') ? 2 : 4;
    name.remove_suffix(1);
  }
  const Row* row = std::find_if(std::begin(kRows), std::end(kRows), [&](const Row& r) { return r.name == name; });
  if (row == std::end(kRows) || !(v.ways == 1 ? row->scalar : row->simd)) return false;
  v.what = row->what;
  auto type_is_signed = [&] {
    const Type type = need_type();
    if (type != Type::u32 && type != Type::s32) throw NotModelled{"a type other than .u32 and .s32"};
    return type == Type::s32;
  };
  if (v.what != Video::set) v.d_signed = type_is_signed();
  v.a_signed = type_is_signed();
  v.b_signed = type_is_signed();
  if (v.what == Video::set) {
    static constexpr std::pair<std::string_view, Cmp> kCompare[] = {{"eq", Cmp::eq}, {"ne", Cmp::ne}, {"lt", Cmp::lt},
                                                                    {"le", Cmp::le}, {"gt", Cmp::gt}, {"ge", Cmp::ge}};
    bool known = false;
    for (const auto& [text, cmp] : kCompare)
      if (!known && has(text)) known = true, v.compare = cmp;
    if (!known) throw NotModelled{"no comparison"};
  } else {
    v.saturate = has("sat");
  }
  if (v.what == Video::shift_left || v.what == Video::shift_right) {
    v.clamp = has("clamp");
    if (!v.clamp && !has("wrap")) throw NotModelled{"neither .clamp nor .wrap"};
  }
  v.ways == 1 ? scalar_video(v) : simd_video(v);
  return true;
}

void Decoder::scalar_video(VideoOp& v) {
  u8 d_index = 0;
  if (v.what == Video::multiply_add) {
    v.plus_one = has("po");
    v.scale = has("shr7") ? 7 : has("shr15") ? 15 : 0;
    arity(4, 4);
    v.negate_a = arg(1).negated, v.negate_b = arg(2).negated, v.negate_c = arg(3).negated;
  } else {
    v.secondary = has("add") ? Secondary::add : has("min") ? Secondary::min : has("max") ? Secondary::max : Secondary::merge;
    const bool third = v.secondary != Secondary::merge || !arg(0).text.empty();
    arity(3 + third, 3 + third);
  }
  if (!take_part(arg(0), v.d_bits, d_index) || !take_part(arg(1), v.part_bits, v.select_a[0]) ||
      !take_part(arg(2), v.b_part_bits, v.select_b[0]))
    throw NotModelled{"this selector"};
  if (v.d_bits != 32 && (v.secondary != Secondary::merge || v.what == Video::multiply_add))
    throw NotModelled{"a part of the destination with a secondary operation"};
  v.d_mask = static_cast<u8>(1 << d_index);
  emit_video(v);
}

void Decoder::simd_video(VideoOp& v) {
  if (has("add")) v.secondary = Secondary::add;
  if (v.saturate && v.secondary == Secondary::add) throw NotModelled{".sat with .add"};
  arity(4, 4);
  if (!take_mask(arg(0), v.ways, v.d_mask) || !take_parts(arg(1), v.ways, 0, v.select_a) ||
      !take_parts(arg(2), v.ways, v.ways, v.select_b))
    throw NotModelled{"this selector"};
  emit_video(v);
}

void Decoder::emit_video(const VideoOp& v) {
  Op op;
  op.fn = exec_video;
  op.in_place = true;
  dst(op, 0, whole(arg(0)), Type::b32);
  src(op, 0, whole(arg(1)), Type::b32);
  src(op, 1, whole(arg(2)), Type::b32);
  src(op, 2, whole(arg(count() == 4 ? 3 : 1)), Type::b32);
  op.imm = static_cast<i64>(f_.video_ops.size());
  f_.video_ops.push_back(v);
  finish(op);
}

}  // namespace tkpy::emulator
