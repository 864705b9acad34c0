// multimem (PTX ISA 9.7.9.15 ff.): every multimem address is taken for one of a multicast object with a single device, whose
// one replica lies at that address. A reducing load is then a load, a store a store, a reduction a reduction.
#include "decode.h"

namespace tkpy::emulator {

bool Decoder::decode_multimem() {
  if (has("red")) {
    has("acc::f32"), has("acc::f16");
    return atomic(false), true;
  }
  if (has("st")) return load_store(false), true;
  if (!has("ld_reduce")) return false;
  bool known = false;
  for (std::string_view what : {"add", "min", "max", "and", "or", "xor"}) known = has(what) || known;
  if (!known) throw NotModelled{"no operation"};
  has("acc::f32"), has("acc::f16");  // how replicas are summed
  return load_store(true), true;
}

}  // namespace tkpy::emulator
