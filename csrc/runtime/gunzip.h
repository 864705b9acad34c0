// A packed kernel image, unpacked: gzip (RFC 1952) of deflate (RFC 1951). One member, checked by length and CRC-32;
// anything else throws std::runtime_error. Here, since a machine needs nothing but the C++ library to build.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tkpy::runtime {

class Gunzip {
 public:
  explicit Gunzip(std::string_view packed) : in_(packed) {}

  std::string run() {
    header();
    for (bool last = false; !last;) {
      last = bits(1);
      switch (bits(2)) {
        case 0: stored(); break;
        case 1: fixed(); break;
        case 2: dynamic(); break;
        default: fail("a block of no known kind");
      }
    }
    drop(held_ % 8);
    const std::uint32_t crc = word(), length = word();
    if (length != static_cast<std::uint32_t>(out_.size())) fail("another length than it says");
    if (crc != crc32()) fail("its checksum differs");
    return std::move(out_);
  }

 private:
  static constexpr int kLongest = 15;  // bits of a code

  // Canonical Huffman codes, by the next kLongest bits of the input: symbol * 16 + length, or 0 for no code.
  struct Codes {
    std::vector<std::uint16_t> at = std::vector<std::uint16_t>(1 << kLongest);
    void set(const std::uint8_t* lengths, int count);
  };

  [[noreturn]] static void fail(const char* what) { throw std::runtime_error(what); }

  std::uint32_t peek(int count) {
    while (held_ < count) {  // past the end zeros are seen, and taking them fails
      const std::uint64_t byte = next_ < in_.size() ? static_cast<unsigned char>(in_[next_]) : 0;
      ++next_;
      buffer_ |= byte << held_;
      held_ += 8;
    }
    return static_cast<std::uint32_t>(buffer_ & ((std::uint64_t{1} << count) - 1));
  }
  void drop(int count) {
    buffer_ >>= count;
    held_ -= count;
    if (next_ > in_.size() && 8 * (next_ - in_.size()) > static_cast<std::size_t>(held_)) fail("it is cut off");
  }
  std::uint32_t bits(int count) {
    const std::uint32_t value = peek(count);
    drop(count);
    return value;
  }
  std::uint32_t word() {
    const std::uint32_t low = bits(16);
    return low | bits(16) << 16;
  }
  int symbol(const Codes& codes) {
    const std::uint16_t entry = codes.at[peek(kLongest)];
    if (entry == 0) fail("a code that stands for nothing");
    drop(entry % 16);
    return entry / 16;
  }

  void header();
  void stored();
  void fixed();
  void dynamic();
  void block(const Codes& literals, const Codes& distances);
  std::uint32_t crc32() const;

  std::string_view in_;
  std::size_t next_ = 0;
  std::uint64_t buffer_ = 0;
  int held_ = 0;  // bits of it
  std::string out_;
};

inline void Gunzip::header() {
  if (bits(8) != 0x1f || bits(8) != 0x8b || bits(8) != 8) fail("it is no gzip file");
  const std::uint32_t flags = bits(8);
  for (int i = 0; i < 6; ++i) bits(8);  // time, level, system
  if (flags & 4)
    for (std::uint32_t extra = bits(16); extra > 0; --extra) bits(8);
  for (const std::uint32_t text : {8u, 16u})  // name, comment
    if (flags & text)
      while (bits(8) != 0) {
      }
  if (flags & 2) bits(16);
}

inline void Gunzip::Codes::set(const std::uint8_t* lengths, int count) {
  std::array<int, kLongest + 1> counts{}, next{};
  for (int i = 0; i < count; ++i) ++counts[lengths[i]];
  counts[0] = 0;
  for (int length = 1; length <= kLongest; ++length) {
    next[length] = (next[length - 1] + counts[length - 1]) << 1;
    if (next[length] + counts[length] > 1 << length) fail("more codes than their bits can tell");
  }
  at.assign(at.size(), 0);
  for (int i = 0; i < count; ++i) {
    const int length = lengths[i];
    if (length == 0) continue;
    const int code = next[length]++;
    int turned = 0;  // codes come with their highest bit first
    for (int b = 0; b < length; ++b) turned |= (code >> b & 1) << (length - 1 - b);
    for (int k = turned; k < 1 << kLongest; k += 1 << length) at[k] = static_cast<std::uint16_t>(16 * i + length);
  }
}

inline void Gunzip::stored() {
  drop(held_ % 8);
  std::uint32_t length = bits(16);
  if ((length ^ bits(16)) != 0xffff) fail("a stored block whose lengths differ");
  for (; length > 0; --length) out_.push_back(static_cast<char>(bits(8)));
}

inline void Gunzip::fixed() {
  std::array<std::uint8_t, 288> lengths;
  for (int i = 0; i < 288; ++i) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
  Codes literals, distances;
  literals.set(lengths.data(), 288);
  lengths.fill(5);
  distances.set(lengths.data(), 30);
  block(literals, distances);
}

inline void Gunzip::dynamic() {
  constexpr std::array<std::uint8_t, 19> order{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
  const int literal = static_cast<int>(bits(5)) + 257, distance = static_cast<int>(bits(5)) + 1;
  std::array<std::uint8_t, 19> of_lengths{};
  for (std::uint32_t i = 0, count = bits(4) + 4; i < count; ++i) of_lengths[order[i]] = static_cast<std::uint8_t>(bits(3));
  Codes codes;
  codes.set(of_lengths.data(), 19);
  std::array<std::uint8_t, 288 + 32> lengths{};
  for (int i = 0; i < literal + distance;) {
    const int what = symbol(codes);
    if (what < 16) {
      lengths[i++] = static_cast<std::uint8_t>(what);
      continue;
    }
    if (what == 16 && i == 0) fail("a repetition of nothing");
    const std::uint8_t value = what == 16 ? lengths[i - 1] : 0;
    int times = what == 16 ? 3 + bits(2) : what == 17 ? 3 + bits(3) : 11 + bits(7);
    if (i + times > literal + distance) fail("more lengths than codes");
    while (times-- > 0) lengths[i++] = value;
  }
  Codes distances;
  codes.set(lengths.data(), literal);
  distances.set(lengths.data() + literal, distance);
  block(codes, distances);
}

inline void Gunzip::block(const Codes& literals, const Codes& distances) {
  constexpr std::array<std::uint16_t, 29> length_from{3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                                      31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
  for (;;) {
    int what = symbol(literals);
    if (what < 256) {
      out_.push_back(static_cast<char>(what));
      continue;
    }
    if (what == 256) return;
    if ((what -= 257) > 28) fail("a length that is none");
    std::size_t length = length_from[what] + (what < 8 || what == 28 ? 0 : bits(what / 4 - 1));
    const int slot = symbol(distances);
    if (slot > 29) fail("a distance that is none");
    const std::size_t back =
        slot < 4 ? slot + 1 : (std::size_t{2} + slot % 2) * (std::size_t{1} << (slot / 2 - 1)) + 1 + bits(slot / 2 - 1);
    if (back > out_.size()) fail("a copy from before the beginning");
    for (std::size_t from = out_.size() - back; length > 0; --length) out_.push_back(out_[from++]);
  }
}

inline std::uint32_t Gunzip::crc32() const {
  std::array<std::uint32_t, 256> table;
  for (std::uint32_t i = 0; i < 256; ++i) {
    table[i] = i;
    for (int b = 0; b < 8; ++b) table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
  }
  std::uint32_t crc = 0xffffffffu;
  for (const char c : out_) crc = crc >> 8 ^ table[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return ~crc;
}

}  // namespace tkpy::runtime
