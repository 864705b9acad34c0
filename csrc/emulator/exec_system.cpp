// Functions that the driver provides to kernels: vprintf, __assertfail, malloc, free (CUDA Programming Guide, 10.34 ff.).
#include <algorithm>
#include <bit>

#include "exec.h"

namespace tkpy::emulator {

namespace {

// Reads `bytes` at a generic address as `lane` sees it; false when there is nothing there.
bool read_generic(Exec& x, u32 lane, u64 address, u32 bytes, void* out) {
  if (address >> kWindowShift == 2) {
    const u64 offset = address & ((u64{1} << kWindowShift) - 1);
    if (offset + bytes > x.warp->local_stride) return false;
    std::memcpy(out, x.warp->local.data() + u64{lane} * x.warp->local_stride + offset, bytes);
    return true;
  }
  if (address >> kWindowShift == 1) {
    Cta* cta = nullptr;
    const u8* at = shared_range(x, static_cast<u32>(address), bytes, cta);
    if (at) std::memcpy(out, at, bytes);
    return at != nullptr;
  }
  const u8* at = address >> kWindowShift == 0 ? global_range(x, address, bytes, false) : nullptr;
  if (at) std::memcpy(out, at, bytes);
  return at != nullptr;
}

std::string read_string(Exec& x, u32 lane, u64 address, u32 limit = 4096) {
  std::string text;
  char c = 0;
  while (text.size() < limit && read_generic(x, lane, address + text.size(), 1, &c) && c) text += c;
  return text;
}

// One conversion of a format; `spec` runs from '%' to its letter.
void format_one(Exec& x, u32 lane, const std::string& spec, u64& arguments, std::string& out) {
  const char letter = spec.back();
  const bool longer = spec.find('l') != std::string::npos || spec.find('z') != std::string::npos ||
                      spec.find('j') != std::string::npos || letter == 'p';
  const bool real = std::string_view("fFeEgGaA").find(letter) != std::string_view::npos;
  const bool eight = longer || real || letter == 's';
  if (eight) arguments = align_up(arguments, 8);
  u64 bits = 0;
  if (!read_generic(x, lane, arguments, eight ? 8 : 4, &bits)) bits = 0;
  arguments += eight ? 8 : 4;
  std::string clean;
  for (char c : spec.substr(0, spec.size() - 1))
    if (c != 'l' && c != 'h' && c != 'z' && c != 'j' && c != 't') clean += c;
  if (clean.size() > 16) clean = "%";
  char buffer[512];
  if (real) {
    std::snprintf(buffer, sizeof buffer, (clean + letter).c_str(), std::bit_cast<double>(bits));
  } else if (letter == 's') {
    std::snprintf(buffer, sizeof buffer, (clean + "s").c_str(), read_string(x, lane, bits, 256).c_str());
  } else if (letter == 'c') {
    std::snprintf(buffer, sizeof buffer, (clean + "c").c_str(), static_cast<int>(bits));
  } else if (letter == 'p') {
    std::snprintf(buffer, sizeof buffer, "0x%llx", static_cast<unsigned long long>(bits));
  } else {
    const bool sign = letter == 'd' || letter == 'i';
    const long long v = sign ? (longer ? static_cast<i64>(bits) : i64{static_cast<i32>(bits)}) : static_cast<i64>(bits);
    std::snprintf(buffer, sizeof buffer, (clean + "ll" + letter).c_str(), v);
  }
  out += buffer;
}

std::string format(Exec& x, u32 lane, const std::string& text, u64 arguments) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    const std::size_t end = text.find_first_not_of("0123456789.-+ #lhzjt", i + 1);
    if (end == std::string::npos) break;
    if (text[end] == '%') out += '%';
    else if (std::string_view("diouxXcspfFeEgGaA").find(text[end]) != std::string_view::npos)
      format_one(x, lane, text.substr(i, end - i + 1), arguments, out);
    i = end;
  }
  return out;
}

u64 frame_value(Exec& x, u32 lane, u32 offset, u32 bytes) {
  u64 v = 0;
  const u64 at = u64{x.frame->local_base} + offset;
  if (at + bytes <= x.warp->local_stride) std::memcpy(&v, x.warp->local.data() + u64{lane} * x.warp->local_stride + at, bytes);
  return v;
}

}  // namespace

void exec_vprintf(Exec& x, const Op& op, u32 mask) {
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const std::string text = read_string(x, lane, frame_value(x, lane, list[0], 8));
    if (x.cluster->output.size() < (1u << 22)) x.cluster->output += format(x, lane, text, frame_value(x, lane, list[1], 8));
    const u64 at = u64{x.frame->local_base} + static_cast<u64>(op.imm);
    if (op.imm >= 0 && at + 4 <= x.warp->local_stride) {
      const u32 count = static_cast<u32>(std::count(text.begin(), text.end(), '%'));
      std::memcpy(x.warp->local.data() + u64{lane} * x.warp->local_stride + at, &count, 4);
    }
  }
}

void exec_assertfail(Exec& x, const Op& op, u32 mask) {
  const u32* list = x.frame->fn->function->lists.data() + op.list;
  const u32 lane = static_cast<u32>(std::countr_zero(mask));
  x.report(Check::assertion, op, lane, "assertion failed: " + read_string(x, lane, frame_value(x, lane, list[0], 8)) + " at " +
                                           read_string(x, lane, frame_value(x, lane, list[1], 8)) + ":" +
                                           std::to_string(frame_value(x, lane, list[2], 4)) + " in " +
                                           read_string(x, lane, frame_value(x, lane, list[3], 8)));
}

void exec_malloc(Exec& x, const Op& op, u32 mask) {
  const u32 size = x.frame->fn->function->lists[op.list];
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u64 address = x.launch->linked->module->heap->allocate(frame_value(x, lane, size, 8));
    std::memcpy(x.warp->local.data() + u64{lane} * x.warp->local_stride + x.frame->local_base + static_cast<u64>(op.imm), &address, 8);
  }
}

void exec_free(Exec& x, const Op& op, u32 mask) {
  const u32 pointer = x.frame->fn->function->lists[op.list];
  for (u32 rest = mask; rest; rest &= rest - 1) {
    const u32 lane = static_cast<u32>(std::countr_zero(rest));
    const u64 address = frame_value(x, lane, pointer, 8);
    if (address && !x.launch->linked->module->heap->release(address))
      x.report(Check::out_of_bounds, op, lane, "free of " + std::to_string(address) + ", which is no allocation of malloc's (freed before?)");
  }
}

}  // namespace tkpy::emulator
