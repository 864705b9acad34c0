#include "lexer.h"

#include <cerrno>
#include <cstdlib>

namespace tkpy::emulator {

namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_alpha(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_hex(char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }
bool starts_name(char c) { return is_alpha(c) || c == '_' || c == '$' || c == '%'; }
bool in_name(char c) { return is_alpha(c) || is_digit(c) || c == '_' || c == '$' || c == '%'; }
u32 hex_value(char c) { return is_digit(c) ? c - '0' : (c | 0x20) - 'a' + 10; }

std::string printable(char c) {
  if (c >= 32 && c < 127) return std::string("'") + c + "'";
  return "byte " + std::to_string(static_cast<unsigned char>(c));
}

}  // namespace

const Token& Lexer::peek(std::size_t ahead) {
  while (ahead_.size() <= ahead) ahead_.push_back(scan());
  return ahead_[ahead];
}

Token Lexer::next() {
  if (ahead_.empty()) return scan();
  Token token = ahead_.front();
  ahead_.pop_front();
  return token;
}

void Lexer::skip_line(u32 line) {
  while (peek().kind != Tok::end && peek().line == line) next();
}

void Lexer::skip_blank() {
  while (at_ < source_.size()) {
    const char c = source_[at_];
    if (c == '\n') {
      ++line_;
      ++at_;
    } else if (c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v') {
      ++at_;
    } else if (source_.compare(at_, 2, "//") == 0) {
      while (at_ < source_.size() && source_[at_] != '\n') ++at_;
    } else if (source_.compare(at_, 2, "/*") == 0) {
      const u32 first = line_;
      at_ += 2;
      while (at_ < source_.size() && source_.compare(at_, 2, "*/") != 0) line_ += source_[at_++] == '\n';
      if (at_ >= source_.size()) throw PtxError(first, "comment without an end");
      at_ += 2;
    } else if (c == '\0' && at_ + 1 == source_.size()) {
      ++at_;  // a driver-style terminator
    } else {
      return;
    }
  }
}

Token Lexer::scan() {
  skip_blank();
  Token token;
  token.line = line_;
  if (at_ >= source_.size()) return token;
  const std::size_t start = at_;
  const char c = source_[at_];
  if (starts_name(c)) {
    while (at_ < source_.size() && in_name(source_[at_])) ++at_;
    token.kind = Tok::identifier;
    token.text = source_.substr(start, at_ - start);
    return token;
  }
  if (is_digit(c)) return scan_number();
  if (c == '"') return scan_string();
  if (c == '.') {
    ++at_;
    while (at_ < source_.size()) {
      if (in_name(source_[at_])) ++at_;
      else if (source_.compare(at_, 2, "::") == 0) at_ += 2;
      else break;
    }
    if (at_ == start + 1) throw PtxError(line_, "a dot with no name after it");
    token.kind = Tok::dotted;
    token.text = source_.substr(start + 1, at_ - start - 1);
    return token;
  }
  static constexpr std::string_view kPunct = "{}()[]<>,;:@!|&^~*/%+-=?";
  if (kPunct.find(c) == std::string_view::npos) throw PtxError(line_, "unexpected " + printable(c));
  ++at_;
  token.kind = Tok::punct;
  token.text = source_.substr(start, 1);
  return token;
}

Token Lexer::scan_number() {
  Token token;
  token.line = line_;
  const std::size_t start = at_;
  auto finish = [&](Tok kind) {
    token.kind = kind;
    token.text = source_.substr(start, at_ - start);
    return token;
  };
  const char second = at_ + 1 < source_.size() ? source_[at_ + 1] : '\0';
  const bool zero = source_[at_] == '0';
  if (zero && (second == 'f' || second == 'F' || second == 'd' || second == 'D')) {
    const bool single = second == 'f' || second == 'F';
    at_ += 2;
    std::size_t digits = 0;
    while (at_ < source_.size() && is_hex(source_[at_]) && digits < 17) {
      token.value = token.value << 4 | hex_value(source_[at_++]);
      ++digits;
    }
    if (digits != (single ? 8u : 16u)) throw PtxError(line_, "a hexadecimal float needs 8 (0f) or 16 (0d) digits");
    return finish(single ? Tok::float32 : Tok::float64);
  }
  u32 base = 10;
  if (zero && (second == 'x' || second == 'X')) base = 16, at_ += 2;
  else if (zero && (second == 'b' || second == 'B')) base = 2, at_ += 2;
  else if (zero && is_digit(second)) base = 8, at_ += 1;
  const std::size_t digits_at = at_;
  bool overflow = false;
  while (at_ < source_.size() && is_hex(source_[at_]) && hex_value(source_[at_]) < base) {
    const u32 digit = hex_value(source_[at_++]);
    overflow |= token.value > (~u64{0} - digit) / base;
    token.value = token.value * base + digit;
  }
  if (at_ == digits_at) throw PtxError(line_, "a number without digits");
  const char after = at_ < source_.size() ? source_[at_] : '\0';
  if (base == 10 && (after == '.' || after == 'e' || after == 'E')) {
    // The text is bounded by its own characters; copy so that strtod sees a terminator.
    std::size_t end = at_;
    while (end < source_.size() && end - start < 64 &&
           (is_digit(source_[end]) || source_[end] == '.' || (source_[end] | 0x20) == 'e' ||
            ((source_[end] == '+' || source_[end] == '-') && (source_[end - 1] | 0x20) == 'e')))
      ++end;
    const double value = std::strtod(std::string(source_.substr(start, end - start)).c_str(), nullptr);
    std::memcpy(&token.value, &value, sizeof value);
    at_ = end;
    return finish(Tok::float64);
  }
  if (after == 'U' || after == 'u') ++at_;
  if (overflow) throw PtxError(line_, "integer does not fit 64 bits");
  return finish(Tok::integer);
}

Token Lexer::scan_string() {
  Token token;
  token.line = line_;
  const std::size_t start = ++at_;
  while (at_ < source_.size() && source_[at_] != '"' && source_[at_] != '\n') at_ += source_[at_] == '\\' ? 2 : 1;
  if (at_ >= source_.size() || source_[at_] != '"') throw PtxError(line_, "string without an end");
  token.kind = Tok::string;
  token.text = source_.substr(start, at_ - start);
  ++at_;
  return token;
}

}  // namespace tkpy::emulator
