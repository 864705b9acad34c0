#include "tensor_map.h"

#include <bit>

#include "numbers.h"

namespace tkpy::emulator::tensor {

namespace {

constexpr u64 kMagic = 0x54504d61704b5431u;
constexpr u64 kDimensionLimit = u64{1} << 32, kStrideLimit = u64{1} << 40;

struct Packed {
  u64 magic;
  u64 address;
  u64 dim[kMaxRank];
  u64 stride[kMaxRank - 1];
  u32 box[kMaxRank];
  u8 element_stride[kMaxRank];
  u8 type, rank, interleave, swizzle, promotion, fill;
};
static_assert(sizeof(Packed) <= kTensorMapBytes, "the private layout must fit the opaque object");

struct TypeRow {
  const char* name;
  u32 bytes;
};
constexpr TypeRow kTypes[] = {{"u8", 1},  {"u16", 2}, {"u32", 4},     {"s32", 4}, {"u64", 8},  {"s64", 8}, {"f16", 2},
                              {"f32", 4}, {"f32.ftz", 4}, {"f64", 8}, {"bf16", 2}, {"tf32", 4}, {"tf32.ftz", 4}};
// CU_TENSOR_MAP_DATA_TYPE_* from UINT8 on.
constexpr MapType kDriverTypes[] = {MapType::u8,  MapType::u16, MapType::u32, MapType::s32,  MapType::u64,
                                    MapType::s64, MapType::f16, MapType::f32, MapType::f64,  MapType::bf16,
                                    MapType::f32_ftz, MapType::tf32, MapType::tf32_ftz};
constexpr const char* kFields[] = {"global_address", "rank",     "box_dim",           "global_dim",   "global_stride",
                                   "element_stride", "elemtype", "interleave_layout", "swizzle_mode", "fill_mode"};

std::string indexed(const char* name, u32 i, const std::string& rule, u64 got) {
  return std::string(name) + "[" + std::to_string(i) + "] must be " + rule + ", got " + std::to_string(got);
}

bool is_floating(MapType type) { return type >= MapType::f16; }

Packed read(const u8* bytes) {
  Packed p;
  std::memcpy(&p, bytes, sizeof p);
  return p;
}

void write(const Packed& p, u8* bytes) {
  std::memset(bytes, 0, kTensorMapBytes);
  std::memcpy(bytes, &p, sizeof p);
}

std::string strides_reason(const TensorMap& map) {
  const u64 multiple = map.interleave == Interleave::b32 ? 32 : 16;
  const std::string rule = "a multiple of " + std::to_string(multiple);
  if (map.address % multiple) {
    return "globalAddress must be " + rule + " bytes, is " + std::to_string(map.address % multiple) + " over";
  }
  for (u32 i = 0; i + 1 < map.rank; ++i) {
    if (map.stride[i] % multiple) return indexed("globalStrides", i, rule + " bytes", map.stride[i]);
    if (map.stride[i] >= kStrideLimit) return indexed("globalStrides", i, "less than 2^40 bytes", map.stride[i]);
  }
  return {};
}

std::string box_reason(const TensorMap& map) {
  for (u32 i = 0; i < map.rank; ++i) {
    if (map.dim[i] == 0 || map.dim[i] > kDimensionLimit) return indexed("globalDim", i, "1 to 2^32", map.dim[i]);
    if (map.box[i] == 0 || map.box[i] > 256) return indexed("boxDim", i, "1 to 256", map.box[i]);
    // Without interleave the driver ignores elementStrides[0]; so may a program that replaces fields.
    if (i == 0 && map.interleave == Interleave::none) continue;
    if (map.element_stride[i] == 0 || map.element_stride[i] > 8) {
      return indexed("elementStrides", i, "1 to 8", map.element_stride[i]);
    }
  }
  if (map.interleave != Interleave::none) return {};
  const u32 inner = map.box[0] * map_type_bytes(map.type);
  if (inner % 16) {
    return "boxDim[0] times the element size must be a multiple of 16 bytes, got " + std::to_string(inner);
  }
  if (map.swizzle != Swizzle::none && inner > swizzle_width(map.swizzle)) {
    const std::string width = std::to_string(swizzle_width(map.swizzle));
    return "boxDim[0] times the element size must be at most " + width + " bytes with swizzle " + width + ", got " +
           std::to_string(inner);
  }
  return {};
}

}  // namespace

u32 map_type_bytes(MapType type) { return kTypes[static_cast<u32>(type)].bytes; }
const char* map_type_name(MapType type) { return kTypes[static_cast<u32>(type)].name; }

bool map_type_from_driver(u32 number, MapType* type) {
  if (number >= std::size(kDriverTypes)) return false;
  *type = kDriverTypes[number];
  return true;
}

std::string tensor_map_reason(const TensorMap& map) {
  if (map.rank == 0 || map.rank > kMaxRank) return "tensorRank must be 1 to 5, got " + std::to_string(map.rank);
  if (map.interleave != Interleave::none && map.rank < 3) {
    return "tensorRank must be at least 3 with interleave, got " + std::to_string(map.rank);
  }
  if (map.interleave == Interleave::b32 && map.swizzle != Swizzle::b32) return "interleave 32 needs swizzle 32";
  if (map.nan_fill && !is_floating(map.type)) {
    return std::string("NaN fill needs a floating-point type, got ") + map_type_name(map.type);
  }
  if (std::string text = strides_reason(map); !text.empty()) return text;
  return box_reason(map);
}

void encode_tensor_map(const TensorMap& map, u8* bytes) {
  Packed p{};
  p.magic = kMagic;
  p.address = map.address;
  std::copy(map.dim.begin(), map.dim.end(), p.dim);
  std::copy(map.stride.begin(), map.stride.end(), p.stride);
  std::copy(map.box.begin(), map.box.end(), p.box);
  for (u32 i = 0; i < kMaxRank; ++i) p.element_stride[i] = static_cast<u8>(std::min(map.element_stride[i], 255u));
  p.type = static_cast<u8>(map.type);
  p.rank = static_cast<u8>(map.rank);
  p.interleave = static_cast<u8>(map.interleave);
  p.swizzle = static_cast<u8>(map.swizzle);
  p.promotion = static_cast<u8>(map.promotion);
  p.fill = map.nan_fill;
  write(p, bytes);
}

std::string decode_tensor_map(const u8* bytes, TensorMap* map) {
  const Packed p = read(bytes);
  if (p.magic != kMagic) return "these 128 bytes are not a tensor map (uninitialised, overwritten, or a wrong address)";
  if (p.type >= std::size(kTypes) || p.interleave > 2 || p.swizzle > 3 || p.promotion > 3 || p.fill > 1) {
    return "the tensor map's fields were overwritten";
  }
  map->address = p.address;
  std::copy(std::begin(p.dim), std::end(p.dim), map->dim.begin());
  std::copy(std::begin(p.stride), std::end(p.stride), map->stride.begin());
  std::copy(std::begin(p.box), std::end(p.box), map->box.begin());
  std::copy(std::begin(p.element_stride), std::end(p.element_stride), map->element_stride.begin());
  map->type = static_cast<MapType>(p.type);
  map->rank = p.rank;
  map->interleave = static_cast<Interleave>(p.interleave);
  map->swizzle = static_cast<Swizzle>(p.swizzle);
  map->promotion = static_cast<Promotion>(p.promotion);
  map->nan_fill = p.fill;
  return tensor_map_reason(*map);
}

bool map_field_from_name(std::string_view name, MapField* field) {
  for (u8 i = 0; i < std::size(kFields); ++i) {
    if (name != kFields[i]) continue;
    *field = static_cast<MapField>(i);
    return true;
  }
  return false;
}

std::string replace_tensor_map(u8* bytes, MapField field, u32 ordinal, u64 value) {
  Packed p = read(bytes);
  if (p.magic != kMagic) {
    if (!std::all_of(bytes, bytes + kTensorMapBytes, [](u8 b) { return b == 0; })) {
      return "tensormap.replace on 128 bytes that are neither a tensor map nor zero";
    }
    encode_tensor_map(TensorMap{}, bytes);
    p = read(bytes);
  }
  const char* name = kFields[static_cast<u32>(field)];
  const auto limited = [&](u64 limit) -> std::string {
    if (value < limit) return {};
    return std::string(name) + " has no value " + std::to_string(value);
  };
  const bool of_dimension = field == MapField::box_dim || field == MapField::global_dim ||
                            field == MapField::element_stride || field == MapField::global_stride;
  const u32 ordinals = field == MapField::global_stride ? kMaxRank - 1 : kMaxRank;
  if (of_dimension && ordinal >= ordinals) return std::string(name) + " has no ordinal " + std::to_string(ordinal);
  std::string text;
  switch (field) {
    case MapField::global_address: p.address = value; break;
    case MapField::rank:
      text = limited(kMaxRank);
      p.rank = static_cast<u8>(value + 1);
      break;
    case MapField::box_dim: p.box[ordinal] = static_cast<u32>(value); break;
    case MapField::global_dim: p.dim[ordinal] = static_cast<u32>(value); break;
    case MapField::global_stride: p.stride[ordinal] = value; break;
    case MapField::element_stride: p.element_stride[ordinal] = static_cast<u8>(std::min<u64>(value, 255)); break;
    case MapField::elemtype:
      text = limited(std::size(kTypes));
      p.type = static_cast<u8>(value);
      break;
    case MapField::interleave_layout:
      text = limited(3);
      p.interleave = static_cast<u8>(value);
      break;
    case MapField::swizzle_mode:
      text = limited(4);
      p.swizzle = static_cast<u8>(value);
      break;
    case MapField::fill_mode:
      text = limited(2);
      p.fill = static_cast<u8>(value);
      break;
  }
  if (text.empty()) write(p, bytes);
  return text;
}

std::string tile_reason(const TensorMap& map, u32 shared) {
  if (map.interleave != Interleave::none) return "interleaved tensor maps are not modelled";
  if (shared % 128) {
    return "the shared-memory address of a tile must be a multiple of 128, got " + std::to_string(shared) + " (" +
           std::to_string(shared % 128) + " over)";
  }
  return {};
}

std::string tile_doubt(const TensorMap& map, u32 shared) {
  const u32 repeat = swizzle_repeat(map.swizzle);
  if (map.swizzle == Swizzle::none || shared % repeat == 0) return {};
  return "the tile starts in row " + std::to_string(shared / 128 % (repeat / 128)) +
         " of its swizzle pattern: align it to " + std::to_string(repeat) + " bytes, or read it with the same offset";
}

void fill_run(const TensorMap& map, u8* to, u32 bytes) {
  if (!map.nan_fill) {
    std::memset(to, 0, bytes);
    return;
  }
  const u32 size = map_type_bytes(map.type);
  for (u32 i = 0; i < bytes; ++i) to[i] = i % size == size - 1 ? 0x7f : 0xff;  // 0x7fff, 0x7fffffff, ...
}

void load_run(const TensorMap& map, const u8* from, u8* to, u32 bytes) {
  std::memcpy(to, from, bytes);
  const bool flush = map.type == MapType::f32_ftz || map.type == MapType::tf32_ftz;
  const bool round = map.type == MapType::tf32 || map.type == MapType::tf32_ftz;
  if (!flush && !round) return;
  for (u32 i = 0; i < bytes; i += 4) {
    u32 bits;
    std::memcpy(&bits, to + i, sizeof bits);
    if (flush && (bits & 0x7f800000u) == 0) bits &= 0x80000000u;
    if (round) bits = f32_to_tf32(std::bit_cast<float>(bits), Round::rn);
    std::memcpy(to + i, &bits, sizeof bits);
  }
}

Type tile_reduce_type(const TensorMap& map, ReduceOp op) {
  const bool bitwise = op == ReduceOp::and_ || op == ReduceOp::or_ || op == ReduceOp::xor_;
  switch (map.type) {
    case MapType::u8: return Type::u8;
    case MapType::u16: return Type::u16;
    case MapType::u32: return bitwise ? Type::b32 : Type::u32;
    case MapType::s32: return bitwise ? Type::b32 : Type::s32;
    case MapType::u64: return bitwise ? Type::b64 : Type::u64;
    case MapType::s64: return bitwise ? Type::b64 : op == ReduceOp::add ? Type::u64 : Type::s64;
    case MapType::f16: return Type::f16;
    case MapType::bf16: return Type::bf16;
    case MapType::f64: return Type::f64;
    case MapType::f32:
    case MapType::f32_ftz:
    case MapType::tf32:
    case MapType::tf32_ftz: return Type::f32;
  }
  return Type::none;
}

std::string tile_reduce_reason(const TensorMap& map, ReduceOp op) {
  return reduce_reason(op, tile_reduce_type(map, op), false);
}

void tile_load(const TensorMap& map, const i32* coordinates, u32 shared, const SharedBytes& memory) {
  const bool plain = map.type != MapType::f32_ftz && map.type != MapType::tf32 && map.type != MapType::tf32_ftz;
  for_each_run(map, coordinates, shared, [&](const TileRun& run) {
    if (run.inside && plain && run.bytes == 16) {
      std::memcpy(memory.at(run.shared), reinterpret_cast<const u8*>(run.global), 16);
    } else if (run.inside) {
      load_run(map, reinterpret_cast<const u8*>(run.global), memory.at(run.shared), run.bytes);
    } else {
      fill_run(map, memory.at(run.shared), run.bytes);
    }
  });
}

void tile_store(const TensorMap& map, const i32* coordinates, u32 shared, const SharedBytes& memory) {
  for_each_run(map, coordinates, shared, [&](const TileRun& run) {
    if (run.inside) std::memcpy(reinterpret_cast<u8*>(run.global), memory.at(run.shared), run.bytes);
  });
}

void tile_reduce(const TensorMap& map, ReduceOp op, const i32* coordinates, u32 shared, const SharedBytes& memory) {
  const Type type = tile_reduce_type(map, op);
  for_each_run(map, coordinates, shared, [&](const TileRun& run) {
    if (run.inside) reduce_elements(op, type, memory.at(run.shared), reinterpret_cast<u8*>(run.global), run.bytes);
  });
}

}  // namespace tkpy::emulator::tensor
