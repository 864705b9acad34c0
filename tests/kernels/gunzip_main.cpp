// gunzip_main <in> <out>: unpacks a file. With a third argument also reads what is left of it when it is cut off
// anywhere, and it with each byte changed, which must end in words or in the same bytes.
#include "runtime/gunzip.h"

#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

namespace {

// 'r' refused, 's' the same, '!' other bytes.
char outcome(const std::string& packed, const std::string& right) {
  try {
    return tkpy::runtime::Gunzip(packed).run() == right ? 's' : '!';
  } catch (const std::runtime_error&) {
    return 'r';
  }
}

}  // namespace

int main(int count, char** arguments) {
  std::ostringstream bytes;
  bytes << std::ifstream(arguments[1], std::ios::binary).rdbuf();
  std::string packed = bytes.str(), right;
  try {
    right = tkpy::runtime::Gunzip(packed).run();
  } catch (const std::runtime_error& error) {
    std::cout << error.what() << '\n';
    return 1;
  }
  std::ofstream(arguments[2], std::ios::binary) << right;
  if (count < 4) return 0;
  for (std::size_t i = 0; i < packed.size(); ++i) {
    std::cout << outcome(packed.substr(0, i), right);
    for (const int change : {1, 0x80, 0xff}) {
      std::string changed = packed;
      changed[i] = static_cast<char>(changed[i] ^ change);
      std::cout << outcome(changed, right);
    }
  }
  std::cout << '\n';
}
