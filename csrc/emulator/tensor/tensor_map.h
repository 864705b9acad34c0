// Tensor maps (CUtensorMap) and the tiles that cp.async.bulk.tensor moves through them.
//
// The 128 bytes are opaque to programs (PTX ISA 5.5.8), so the layout here is private; a magic number tells a map from
// garbage. Rules: CUDA driver API, cuTensorMapEncodeTiled; traversal: PTX ISA 5.5 "Tensors". Dimension 0 is innermost.
#pragma once

#include <algorithm>
#include <array>

#include "bulk.h"
#include "descriptor.h"

namespace tkpy::emulator::tensor {

constexpr u32 kTensorMapBytes = 128;
constexpr u32 kMaxRank = 5;

// Numbered as tensormap.replace's .elemtype (PTX ISA 9.7.9.27, table "tensormap new_val"), which differs from the
// driver's CUtensorMapDataType.
enum class MapType : u8 { u8, u16, u32, s32, u64, s64, f16, f32, f32_ftz, f64, bf16, tf32, tf32_ftz };
enum class Interleave : u8 { none, b16, b32 };
enum class Promotion : u8 { none, l2_64, l2_128, l2_256 };

u32 map_type_bytes(MapType type);
const char* map_type_name(MapType type);
// False for a number that is no type, or one of the packed 4- and 6-bit types of later GPUs.
bool map_type_from_driver(u32 number, MapType* type);

struct TensorMap {
  MapType type = MapType::u8;
  u32 rank = 1;
  u64 address = 0;
  std::array<u64, kMaxRank> dim{1, 1, 1, 1, 1};         // elements
  std::array<u64, kMaxRank - 1> stride{};               // bytes, of dimensions 1..
  std::array<u32, kMaxRank> box{1, 1, 1, 1, 1};         // elements traversed
  std::array<u32, kMaxRank> element_stride{1, 1, 1, 1, 1};
  Interleave interleave = Interleave::none;
  Swizzle swizzle = Swizzle::none;
  Promotion promotion = Promotion::none;
  bool nan_fill = false;
};

// The first broken rule, with what is needed and what was got; empty when the driver would accept it. The driver's
// documentation also derives each stride from the one before; that is not enforced, here or (in practice) there.
std::string tensor_map_reason(const TensorMap& map);

void encode_tensor_map(const TensorMap& map, u8* bytes);
// Text when the bytes are no tensor map, or one that breaks a rule.
std::string decode_tensor_map(const u8* bytes, TensorMap* map);

enum class MapField : u8 {
  global_address, rank, box_dim, global_dim, global_stride, element_stride, elemtype, interleave_layout, swizzle_mode,
  fill_mode
};
// False for text that names no field of sm_90a's tensormap.replace (.swizzle_atomicity needs a later one).
bool map_field_from_name(std::string_view name, MapField* field);

// tensormap.replace.tile. `rank` is given less one. 128 zero bytes become a map, as programs that build maps on the
// device clear them first. Rules are checked when the map is used, not while its fields are being replaced.
std::string replace_tensor_map(u8* bytes, MapField field, u32 ordinal, u64 value);

// Elements moved along a dimension: elementStrides[0] is ignored without interleave; a partial step counts.
inline u32 tile_extent(const TensorMap& map, u32 dimension) {
  if (dimension == 0) return map.box[0];
  return (map.box[dimension] + map.element_stride[dimension] - 1) / map.element_stride[dimension];
}

inline u32 tile_rows(const TensorMap& map) {
  u32 rows = 1;
  for (u32 i = 1; i < map.rank; ++i) rows *= tile_extent(map, i);
  return rows;
}

// What complete_tx receives: the whole box, out-of-bounds elements included (PTX ISA 9.7.9.26.5.1).
inline u32 tile_bytes(const TensorMap& map) { return tile_rows(map) * map.box[0] * map_type_bytes(map.type); }

// From one innermost row to the next in shared memory: a swizzled row fills at least its swizzle width.
inline u32 tile_pitch(const TensorMap& map) {
  return std::max(map.box[0] * map_type_bytes(map.type), swizzle_width(map.swizzle));
}

// Shared memory that the tile spans.
inline u32 tile_span(const TensorMap& map) { return tile_rows(map) * tile_pitch(map); }

// Text when a tile cannot go to or come from this shared-memory address, or uses what is not modelled.
std::string tile_reason(const TensorMap& map, u32 shared);
// Text when the address is legal but the swizzle pattern does not start with the tile.
std::string tile_doubt(const TensorMap& map, u32 shared);

struct TileRun {
  bool inside;  // of the tensor; otherwise `global` has no meaning
  u64 global;   // host address
  u32 shared;   // address after the swizzle
  u32 bytes;
};

// Calls f(const TileRun&) for every contiguous piece of the tile at `coordinates` (which may be negative), in the order
// of the box. Pieces are at most 16 bytes when swizzled, otherwise a whole row.
template <class F>
void for_each_run(const TensorMap& map, const i32* coordinates, u32 shared, F&& f) {
  const u32 size = map_type_bytes(map.type), pitch = tile_pitch(map), rows = tile_rows(map);
  const i64 box = map.box[0], first = coordinates[0];
  const i64 begin = std::clamp<i64>(-first, 0, box);
  const i64 end = std::clamp<i64>(static_cast<i64>(map.dim[0]) - first, begin, box);
  const u32 unit = map.swizzle == Swizzle::none ? ~u32{0} : 16;
  for (u32 row = 0; row < rows; ++row) {
    bool row_inside = true;
    u64 global = map.address;
    u32 rest = row;
    for (u32 i = 1; i < map.rank; ++i) {
      const u32 extent = tile_extent(map, i);
      const i64 at = coordinates[i] + static_cast<i64>(rest % extent) * map.element_stride[i];
      rest /= extent;
      row_inside = row_inside && at >= 0 && at < static_cast<i64>(map.dim[i]);
      global += static_cast<u64>(at) * map.stride[i - 1];
    }
    const auto emit = [&](i64 from, i64 to, bool inside) {
      for (u32 byte = static_cast<u32>(from) * size, last = static_cast<u32>(to) * size; byte < last;) {
        const u32 next = unit == 16 ? std::min(last, byte / 16 * 16 + 16) : last;
        const u32 address = swizzle_address(shared + row * pitch + byte, map.swizzle);
        f(TileRun{inside, inside ? global + static_cast<u64>(first) * size + byte : 0, address, next - byte});
        byte = next;
      }
    };
    if (!row_inside) {
      emit(0, box, false);
      continue;
    }
    emit(0, begin, false);
    emit(begin, end, true);
    emit(end, box, false);
  }
}

// Out-of-bounds elements: zeros, or NaN of the map's type.
void fill_run(const TensorMap& map, u8* to, u32 bytes);
// In-bounds elements of a load: the .ftz types flush subnormals, the tf32 types round to tf32 (to nearest even; the
// rounding is not documented).
void load_run(const TensorMap& map, const u8* from, u8* to, u32 bytes);

// The element type of cp.reduce.async.bulk.tensor; and, or, xor take any 4- or 8-byte integer. Text when impossible.
std::string tile_reduce_reason(const TensorMap& map, ReduceOp op);
Type tile_reduce_type(const TensorMap& map, ReduceOp op);

// Whole tiles, for callers that have checked tile_reason, shared bounds (tile_span) and the runs' global addresses.
void tile_load(const TensorMap& map, const i32* coordinates, u32 shared, const SharedBytes& memory);
void tile_store(const TensorMap& map, const i32* coordinates, u32 shared, const SharedBytes& memory);
void tile_reduce(const TensorMap& map, ReduceOp op, const i32* coordinates, u32 shared, const SharedBytes& memory);

}  // namespace tkpy::emulator::tensor
