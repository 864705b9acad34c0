#include "decode.h"

namespace tkpy::emulator {
bool Decoder::decode_matrix() { return false; }
bool Decoder::decode_async() { return false; }
}  // namespace tkpy::emulator
