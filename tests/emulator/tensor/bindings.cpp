// Test bindings of csrc/emulator/tensor: arrays in, arrays out. Not part of the package.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "emulator/tensor/bulk.h"
#include "emulator/tensor/fragments.h"
#include "emulator/tensor/gemm.h"
#include "emulator/tensor/mbarrier.h"
#include "emulator/tensor/mma.h"
#include "emulator/tensor/numbers.h"
#include "emulator/tensor/tensor_map.h"
#include "emulator/tensor/wgmma.h"
#include "emulator/tensor/wmma.h"

namespace py = pybind11;
using namespace tkpy::emulator;
using namespace tkpy::emulator::tensor;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

Type named(const std::string& name) {
  const Type type = type_from_name(name);
  if (type == Type::none) throw std::invalid_argument("type " + name);
  return type;
}

Round rounding(const std::string& name) {
  const char* names[] = {"rn", "rna", "rz", "rm", "rp"};
  for (u8 i = 0; i < 5; ++i) {
    if (name == names[i]) return static_cast<Round>(i);
  }
  throw std::invalid_argument("rounding " + name);
}

py::array_t<u32> narrow_array(const std::string& format, const Array<double>& values, const std::string& mode,
                              bool satfinite, bool relu) {
  py::array_t<u32> out(values.size());
  u32* to = out.mutable_data();
  const Round round = rounding(mode);
  auto run = [&](auto convert) {
    for (py::ssize_t i = 0; i < values.size(); ++i) to[i] = convert(values.data()[i]);
  };
  switch (named(format)) {
    case Type::f16: run([&](double v) { return narrow<kF16>(v, round, satfinite, relu); }); break;
    case Type::bf16: run([&](double v) { return narrow<kBf16>(v, round, satfinite, relu); }); break;
    case Type::e4m3: run([&](double v) { return narrow<kE4m3>(v, round, satfinite, relu); }); break;
    case Type::e5m2: run([&](double v) { return narrow<kE5m2>(v, round, satfinite, relu); }); break;
    case Type::tf32:
      run([&](double v) { return f32_to_tf32(static_cast<float>(v), round, satfinite, relu); });
      break;
    default: throw std::invalid_argument(format);
  }
  return out;
}

void bind_numbers(py::module_& m) {
  m.def("narrow", &narrow_array, py::arg("format"), py::arg("values"), py::arg("mode") = "rn",
        py::arg("satfinite") = false, py::arg("relu") = false);
  m.def("f32_to_bf16", [](const Array<float>& values) {
    py::array_t<u16> out(values.size());
    for (py::ssize_t i = 0; i < values.size(); ++i) out.mutable_data()[i] = f32_to_bf16(values.data()[i]);
    return out;
  });
  m.def("f32_to_f16", [](const Array<float>& values) {
    py::array_t<u16> out(values.size());
    for (py::ssize_t i = 0; i < values.size(); ++i) out.mutable_data()[i] = f32_to_f16(values.data()[i]);
    return out;
  });
  m.def("widen", [](const std::string& type, const Array<u8>& bytes) {
    const u32 count = static_cast<u32>(bytes.size() * 8 / type_bits(named(type)));
    py::array_t<float> out(count);
    widen_packed(named(type), bytes.data(), count, out.mutable_data());
    return out;
  });
}

using Coordinates = std::pair<u32, u32>;
Coordinates pair(const Cell& c) { return {c.row, c.col}; }
std::tuple<u32, u32, u32> triple(const Place& p) { return {p.lane, p.reg, p.element}; }

// Rows of an array [registers, 32] as the pointers that the library takes.
template <class T>
std::vector<T*> rows(Array<std::remove_const_t<T>>& registers) {
  std::vector<T*> out;
  const py::ssize_t width = registers.shape(registers.ndim() - 1);
  for (py::ssize_t i = 0; i < registers.size() / width; ++i) out.push_back(registers.mutable_data() + i * width);
  return out;
}

template <class T>
Array<T> copy(const Array<T>& from) {
  Array<T> out(std::vector<py::ssize_t>(from.shape(), from.shape() + from.ndim()));
  std::memcpy(out.mutable_data(), from.data(), static_cast<std::size_t>(from.nbytes()));
  return out;
}

void bind_fragments(py::module_& m) {
  m.def("a_cell", [](u32 bits, u32 mm, u32 lane, u32 reg, u32 e) { return pair(a_cell(bits, mm, lane, reg, e)); });
  m.def("a_place", [](u32 bits, u32 mm, u32 row, u32 col) { return triple(a_place(bits, mm, row, col)); });
  m.def("b_cell", [](u32 bits, u32 lane, u32 reg, u32 e) { return pair(b_cell(bits, lane, reg, e)); });
  m.def("b_place", [](u32 bits, u32 row, u32 col) { return triple(b_place(bits, row, col)); });
  m.def("c_cell", [](u32 mm, u32 lane, u32 reg) { return pair(c_cell(mm, lane, reg)); });
  m.def("c_place", [](u32 mm, u32 row, u32 col) { return triple(c_place(mm, row, col)); });
  m.def("c_cell_packed", [](u32 mm, u32 lane, u32 r, u32 e) { return pair(c_cell_packed(mm, lane, r, e)); });
  m.def("c_place_packed", [](u32 mm, u32 row, u32 col) { return triple(c_place_packed(mm, row, col)); });
  m.def("wgmma_a_cell", [](u32 bits, u32 w, u32 l, u32 r, u32 e) { return pair(wgmma_a_cell(bits, w, l, r, e)); });
  m.def("wgmma_d_cell", [](u32 w, u32 l, u32 r) { return pair(wgmma_d_cell(w, l, r)); });
  m.def("ldmatrix", [](u32 count, bool trans, const Array<u8>& memory, const std::vector<u32>& addresses) {
    const u8* rows_at[kLanes] = {};
    for (u32 i = 0; i < 8 * count; ++i) rows_at[i] = memory.data() + addresses.at(i);
    Array<u32> out({count, kLanes});
    ldmatrix(count, trans, rows_at, rows<u32>(out).data());
    return out;
  });
  m.def("stmatrix", [](u32 count, bool trans, const Array<u8>& memory, const std::vector<u32>& addresses,
                       Array<u32> registers) {
    Array<u8> out = copy(memory);
    u8* rows_at[kLanes] = {};
    for (u32 i = 0; i < 8 * count; ++i) rows_at[i] = out.mutable_data() + addresses.at(i);
    stmatrix(count, trans, rows<const u32>(registers).data(), rows_at);
    return out;
  });
  m.def("movmatrix", [](const Array<u32>& from) {
    Array<u32> out(kLanes);
    movmatrix(from.data(), out.mutable_data());
    return out;
  });
}

MmaOp mma_op(u32 mm, u32 n, u32 k, const std::string& a, const std::string& b, const std::string& d, bool satfinite,
             bool xor_popc) {
  return {mm, n, k, named(a), named(b), named(d), named(d), satfinite, xor_popc};
}

void bind_mma(py::module_& m) {
  // a [rows, k], b [n, k], d [rows / 16 * n / 2, 32] in accumulator order
  m.def("fragment_gemm", [](const Array<float>& a, const Array<float>& b, const Array<float>& c, bool portable, u32 kept) {
    const u32 count = static_cast<u32>(a.shape(0)), n = static_cast<u32>(b.shape(0)), k = static_cast<u32>(a.shape(1));
    std::vector<float> pa(std::size_t{count} * k * 4), pb(std::size_t{n} * k);
    pack_a(count, k, a.data(), pa.data());
    pack_b(n, k, b.data(), pb.data());
    Array<float> d = copy(c);
    if (portable)
      fragment_gemm_portable(count / 16, n, k, pa.data(), pb.data(), rows<float>(d).data());
    else
      fragment_gemm(count / 16, n, k, pa.data(), pb.data(), rows<float>(d).data(), kept);
    return d;
  }, py::arg("a"), py::arg("b"), py::arg("c"), py::arg("portable") = false, py::arg("kept") = 0);
  m.def("mma_reason", [](u32 mm, u32 n, u32 k, const std::string& a, const std::string& b, const std::string& d,
                         bool satfinite, bool xor_popc) {
    return mma_reason(mma_op(mm, n, k, a, b, d, satfinite, xor_popc));
  });
  m.def("mma_registers", [](u32 mm, u32 n, u32 k, const std::string& a, const std::string& b, const std::string& d) {
    const MmaRegisters r = mma_registers(mma_op(mm, n, k, a, b, d, false, false));
    return std::make_tuple(r.a, r.b, r.c);
  });
  m.def("mma", [](u32 mm, u32 n, u32 k, const std::string& ta, const std::string& tb, const std::string& td,
                  bool satfinite, bool xor_popc, Array<u32> a, Array<u32> b, const Array<u32>& c) {
    Array<u32> d = copy(c);  // in place, as D may be C
    mma(mma_op(mm, n, k, ta, tb, td, satfinite, xor_popc), rows<const u32>(a).data(), rows<const u32>(b).data(),
        rows<const u32>(d).data(), rows<u32>(d).data());
    return d;
  });
  m.def("mma_sp", [](u32 mm, u32 n, u32 k, const std::string& ta, const std::string& tb, const std::string& td, u32 selector,
                     Array<u32> a, Array<u32> b, const Array<u32>& c, const Array<u32>& metadata) {
    MmaOp op = mma_op(mm, n, k, ta, tb, td, false, false);
    op.sparse = true, op.selector = static_cast<u8>(selector);
    if (const std::string why = mma_reason(op); !why.empty()) throw std::invalid_argument(why);
    Array<u32> d = copy(c);
    mma(op, rows<const u32>(a).data(), rows<const u32>(b).data(), rows<const u32>(d).data(), rows<u32>(d).data(),
        metadata.data());
    return d;
  });
  m.def("mma_f64", [](u32 mm, u32 n, u32 k, Array<double> a, Array<double> b, const Array<double>& c) {
    Array<double> d = copy(c);
    mma_f64(mma_op(mm, n, k, "f64", "f64", "f64", false, false), rows<const double>(a).data(),
            rows<const double>(b).data(), rows<const double>(d).data(), rows<double>(d).data());
    return d;
  });
}

WmmaOp wmma_op(const py::kwargs& k) {
  const auto type = [&](const char* name) { return named(k[name].cast<std::string>()); };
  const auto flag = [&](const char* name) { return k.contains(name) && k[name].cast<bool>(); };
  return {k["m"].cast<u32>(), k["n"].cast<u32>(), k["k"].cast<u32>(), type("a"),         type("b"),
          type("c"),          type("d"),          flag("satfinite"),  flag("xor_popc")};
}

void bind_wmma(py::module_& m) {
  m.def("wmma_reason", [](const py::kwargs& k) { return wmma_reason(wmma_op(k)); });
  // [register, lane, element, (row, col)]
  m.def("wmma_cells", [](u32 matrix, const std::string& name, const py::kwargs& k) {
    const WmmaOp op = wmma_op(k);
    const auto which = static_cast<WmmaMatrix>(matrix);
    const u32 registers = wmma_registers(op, which, named(name)), elements = wmma_elements(named(name), which);
    py::array_t<u32> out({registers, kLanes, elements, 2u});
    u32* to = out.mutable_data();
    for (u32 i = 0; i < registers * kLanes * elements; ++i) {
      const u32 reg = i / (kLanes * elements), lane = i / elements % kLanes;
      const Cell at = wmma_cell(op, which, named(name), lane, reg, i % elements);
      to[2 * i] = at.row;
      to[2 * i + 1] = at.col;
    }
    return out;
  });
  m.def("wmma", [](Array<u32> a, Array<u32> b, Array<u32> c, u32 d_registers, const py::kwargs& k) {
    Array<u32> d({d_registers, kLanes});
    wmma(wmma_op(k), rows<const u32>(a).data(), rows<const u32>(b).data(), rows<const u32>(c).data(),
         rows<u32>(d).data());
    return d;
  });
  m.def("wmma_f64", [](Array<double> a, Array<double> b, const Array<double>& c) {
    Array<double> d = copy(c);
    wmma_f64({8, 8, 4, Type::f64, Type::f64, Type::f64, Type::f64}, rows<const double>(a).data(),
             rows<const double>(b).data(), rows<const double>(d).data(), rows<double>(d).data());
    return d;
  });
}

MatrixDescriptor descriptor(u32 start, u32 leading, u32 stride, u32 base_offset, u32 width) {
  Swizzle s = Swizzle::none;
  while (swizzle_width(s) != width) s = static_cast<Swizzle>(static_cast<u32>(s) + 1);
  return {start, leading, stride, base_offset, s};
}

SharedBytes view(const Array<u8>& memory, u32 base) {
  return {const_cast<u8*>(memory.data()), base, static_cast<u32>(memory.size())};
}

void bind_descriptor(py::module_& m) {
  m.def("encode_descriptor", [](u32 start, u32 leading, u32 stride, u32 base_offset, u32 width) {
    return encode_descriptor(descriptor(start, leading, stride, base_offset, width));
  });
  m.def("decode_descriptor", [](u64 bits) {
    const MatrixDescriptor d = decode_descriptor(bits);
    return std::make_tuple(d.start, d.leading, d.stride, d.base_offset, swizzle_width(d.swizzle));
  });
  m.def("operand_addresses", [](u64 bits, u32 mn, u32 element_bytes, bool mn_major) {
    const Operand operand{mn, element_bytes, mn_major};
    py::array_t<u32> out(operand_units(operand));
    operand_addresses(decode_descriptor(bits), operand, out.mutable_data());
    return out;
  });
  m.def("descriptor_reason", [](u64 bits, u32 mn, u32 size, bool mn_major) {
    return descriptor_reason(bits, {mn, size, mn_major});
  });
  m.def("descriptor_doubt", [](u64 bits, u32 mn, u32 size, bool mn_major) {
    return descriptor_doubt(bits, {mn, size, mn_major});
  });
  m.def("swizzle_address", [](u32 address, u32 width, u32 base_offset) {
    return swizzle_address(address, descriptor(0, 0, 0, 0, width).swizzle, base_offset);
  });
}

struct WgmmaKeywords {
  WgmmaOp op;
  explicit WgmmaKeywords(const py::kwargs& k) {
    const auto flag = [&](const char* name) { return k.contains(name) && k[name].cast<bool>(); };
    op.n = k["n"].cast<u32>();
    op.a = named(k["a"].cast<std::string>());
    op.b = named(k["b"].cast<std::string>());
    op.d = named(k["d"].cast<std::string>());
    op.a_in_registers = flag("a_in_registers");
    op.transpose_a = flag("transpose_a");
    op.transpose_b = flag("transpose_b");
    op.negate_a = flag("negate_a");
    op.negate_b = flag("negate_b");
    op.satfinite = flag("satfinite");
    op.sparse = flag("sparse");
    if (k.contains("selector")) op.selector = k["selector"].cast<u8>();
  }
};

void bind_wgmma(py::module_& m) {
  m.def("wgmma_reason", [](const py::kwargs& k) { return wgmma_reason(WgmmaKeywords(k).op); });
  // -> (reason, accumulators); `repeat` runs it again and again, for timing
  m.def("wgmma", [](const Array<u8>& memory, u32 base, Array<u32> a, u64 a_descriptor, u64 b_descriptor,
                    bool accumulate, const Array<u32>& accumulators, u32 repeat, const py::kwargs& k) {
    const WgmmaOp op = WgmmaKeywords(k).op;
    Array<u32> d = copy(accumulators);
    const auto a_rows = rows<const u32>(a);
    const auto d_rows = rows<u32>(d);
    Array<u32> metadata;
    std::vector<const u32*> metadata_rows;
    if (op.sparse) {
      metadata = k["metadata"].cast<Array<u32>>();  // [4][32]
      metadata_rows = rows<const u32>(metadata);
    }
    std::string reason;
    for (u32 i = 0; i < repeat; ++i) {
      reason = wgmma(op, view(memory, base), a_rows.data(), a_descriptor, b_descriptor, accumulate, d_rows.data(),
                     metadata_rows.data());
    }
    return std::make_pair(reason, d);
  });
}

ReduceOp reduction(const std::string& name) {
  ReduceOp op;
  if (!reduce_from_name(name, &op)) throw std::invalid_argument("reduction " + name);
  return op;
}

void bind_bulk(py::module_& m) {
  m.def("bulk_reason", &bulk_reason);
  m.def("reduce_reason", [](const std::string& op, const std::string& type, bool shared) {
    return reduce_reason(reduction(op), named(type), shared);
  });
  m.def("reduce_elements", [](const std::string& op, const std::string& type, const Array<u8>& from,
                              const Array<u8>& to) {
    Array<u8> out = copy(to);
    reduce_elements(reduction(op), named(type), from.data(), out.mutable_data(), static_cast<u32>(to.size()));
    return out;
  });
}

MapType map_type(const std::string& name) {
  for (u32 i = 0; i <= static_cast<u32>(MapType::tf32_ftz); ++i) {
    if (name == map_type_name(static_cast<MapType>(i))) return static_cast<MapType>(i);
  }
  throw std::invalid_argument("map type " + name);
}

template <class T, std::size_t N>
void fill(std::array<T, N>& to, const py::kwargs& k, const char* name) {
  if (!k.contains(name)) return;
  const auto values = k[name].cast<std::vector<T>>();
  std::copy_n(values.begin(), std::min(N, values.size()), to.begin());
}

TensorMap tensor_map(const py::kwargs& k) {
  TensorMap map;
  map.type = map_type(k["type"].cast<std::string>());
  map.rank = k["rank"].cast<u32>();
  map.address = k["address"].cast<u64>();
  fill(map.dim, k, "dim");
  fill(map.stride, k, "stride");
  fill(map.box, k, "box");
  fill(map.element_stride, k, "element_stride");
  if (k.contains("interleave")) map.interleave = static_cast<Interleave>(k["interleave"].cast<u32>() / 16);
  if (k.contains("swizzle")) map.swizzle = descriptor(0, 0, 0, 0, k["swizzle"].cast<u32>()).swizzle;
  map.nan_fill = k.contains("nan_fill") && k["nan_fill"].cast<bool>();
  return map;
}

TensorMap decoded(const Array<u8>& bytes) {
  TensorMap map;
  const std::string reason = decode_tensor_map(bytes.data(), &map);
  if (!reason.empty()) throw std::invalid_argument(reason);
  return map;
}

void bind_tensor_map(py::module_& m) {
  m.def("map_types", [] {
    std::vector<std::pair<std::string, u32>> out;
    MapType type;
    for (u32 i = 0; map_type_from_driver(i, &type); ++i) out.emplace_back(map_type_name(type), static_cast<u32>(type));
    return out;
  });
  m.def("tensor_map_reason", [](const py::kwargs& k) { return tensor_map_reason(tensor_map(k)); });
  m.def("encode_tensor_map", [](const py::kwargs& k) {
    py::array_t<u8> out(kTensorMapBytes);
    encode_tensor_map(tensor_map(k), out.mutable_data());
    return out;
  });
  m.def("decode_tensor_map", [](const Array<u8>& bytes) {
    TensorMap map;
    return decode_tensor_map(bytes.data(), &map);
  });
  m.def("replace_tensor_map", [](const Array<u8>& bytes, const std::string& name, u32 ordinal, u64 value) {
    MapField field;
    if (!map_field_from_name(name, &field)) throw std::invalid_argument(name);
    Array<u8> out = copy(bytes);
    std::string reason = replace_tensor_map(out.mutable_data(), field, ordinal, value);
    return std::make_pair(reason, out);
  });
  m.def("tile_sizes", [](const Array<u8>& bytes) {
    const TensorMap map = decoded(bytes);
    return std::make_tuple(tile_bytes(map), tile_pitch(map), tile_span(map));
  });
  m.def("tile_reason", [](const Array<u8>& bytes, u32 shared) { return tile_reason(decoded(bytes), shared); });
  m.def("tile_doubt", [](const Array<u8>& bytes, u32 shared) { return tile_doubt(decoded(bytes), shared); });
  m.def("tile_reduce_reason", [](const Array<u8>& bytes, const std::string& op) {
    return tile_reduce_reason(decoded(bytes), reduction(op));
  });
  m.def("tile_runs", [](const Array<u8>& bytes, const std::vector<i32>& at, u32 shared) {
    std::vector<std::tuple<bool, u64, u32, u32>> out;
    for_each_run(decoded(bytes), at.data(), shared,
                 [&](const TileRun& r) { out.emplace_back(r.inside, r.global, r.shared, r.bytes); });
    return out;
  });
  // Global memory is read and written in place; shared memory comes and goes by value.
  m.def("tile_load", [](const Array<u8>& bytes, const std::vector<i32>& at, u32 shared, const Array<u8>& memory,
                        u32 base) {
    Array<u8> out = copy(memory);
    tile_load(decoded(bytes), at.data(), shared, view(out, base));
    return out;
  });
  m.def("tile_store", [](const Array<u8>& bytes, const std::vector<i32>& at, u32 shared, const Array<u8>& memory,
                         u32 base) { tile_store(decoded(bytes), at.data(), shared, view(memory, base)); });
  m.def("tile_reduce", [](const Array<u8>& bytes, const std::string& op, const std::vector<i32>& at, u32 shared,
                          const Array<u8>& memory, u32 base) {
    tile_reduce(decoded(bytes), reduction(op), at.data(), shared, view(memory, base));
  });
}

// Each returns (reason, object, ...).
void bind_mbarrier(py::module_& m) {
  m.def("mbarrier_init", [](u64 object, u32 count) {
    std::string reason = mbarrier_init(object, count);
    return std::make_pair(reason, object);
  });
  m.def("mbarrier_inval", [](u64 object) {
    std::string reason = mbarrier_inval(object);
    return std::make_pair(reason, object);
  });
  m.def("mbarrier_expect_tx", [](u64 object, u32 bytes) {
    std::string reason = mbarrier_expect_tx(object, bytes);
    return std::make_pair(reason, object);
  });
  m.def("mbarrier_complete_tx", [](u64 object, u32 bytes) {
    bool completed = false;
    std::string reason = mbarrier_complete_tx(object, bytes, &completed);
    return std::make_tuple(reason, object, completed);
  });
  m.def("mbarrier_arrive", [](u64 object, u32 count, bool no_complete, bool drop, std::optional<u32> bytes) {
    bool completed = false;
    u64 state = 0;
    const MbarrierArrival arrival{count, no_complete, drop, bytes.has_value(), bytes.value_or(0)};
    std::string reason = mbarrier_arrive(object, arrival, &state, &completed);
    return std::make_tuple(reason, object, completed, state);
  }, py::arg("object"), py::arg("count") = 1, py::arg("no_complete") = false, py::arg("drop") = false,
        py::arg("expect_bytes") = std::nullopt);
  m.def("mbarrier_test_state", [](u64 object, u64 state) {
    bool done = false;
    std::string reason = mbarrier_test_state(object, state, &done);
    return std::make_pair(reason, done);
  });
  m.def("mbarrier_test_parity", [](u64 object, u32 parity) {
    bool done = false;
    std::string reason = mbarrier_test_parity(object, parity, &done);
    return std::make_pair(reason, done);
  });
  m.def("mbarrier_pending_count", [](u64 state) {
    u32 count = 0;
    std::string reason = mbarrier_pending_count(state, &count);
    return std::make_pair(reason, count);
  });
  m.def("mbarrier_decode", [](u64 object) {
    const MbarrierState s = mbarrier_decode(object);
    return std::make_tuple(s.pending, s.expected, s.tx, s.parity);
  });
  m.def("mbarrier_describe", &mbarrier_describe);
}

}  // namespace

PYBIND11_MODULE(tensor_native, m) {
  bind_numbers(m);
  bind_fragments(m);
  bind_mma(m);
  bind_wmma(m);
  bind_descriptor(m);
  bind_wgmma(m);
  bind_bulk(m);
  bind_tensor_map(m);
  bind_mbarrier(m);
}
