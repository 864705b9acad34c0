// PTX text to tokens, one at a time. `.shared::cluster` is one token; `cp.async.bulk` is an identifier and two suffixes.
#pragma once

#include <deque>

#include "common.h"

namespace tkpy::emulator {

enum class Tok : u8 { end, identifier, dotted, integer, float32, float64, string, punct };

struct Token {
  Tok kind = Tok::end;
  u32 line = 0;
  std::string_view text;  // dotted: without the dot; string: without the quotes; points into the source
  u64 value = 0;          // integer: value; float32/float64: bits
  bool is(char c) const { return kind == Tok::punct && text[0] == c; }
  bool dot(std::string_view name) const { return kind == Tok::dotted && text == name; }
};

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(source) {}
  const Token& peek(std::size_t ahead = 0);
  Token next();
  // Skips what is left of a line: .loc and .file have no terminator. Tokens already peeked on that line go too.
  void skip_line(u32 line);

 private:
  Token scan();
  void skip_blank();
  Token scan_number();
  Token scan_string();
  std::string_view source_;
  std::size_t at_ = 0;
  u32 line_ = 1;
  std::deque<Token> ahead_;
};

}  // namespace tkpy::emulator
