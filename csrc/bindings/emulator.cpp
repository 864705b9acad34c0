// tkpy._C: the emulator as Python sees it. Arguments arrive packed by tkpy/emulator; nothing here knows numpy or torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <tuple>

#include "bindings/counts.h"
#include "machine.h"
#include "signals.h"

namespace py = pybind11;
using namespace tkpy::emulator;

namespace {

py::dict site_dict(const Site& s) {
  py::dict d;
  d["function"] = s.function;
  d["ptx_line"] = s.ptx_line;
  d["text"] = s.text;
  d["file"] = s.file;
  d["source_line"] = s.source_line;
  d["cta"] = s.cta;
  d["warp"] = s.warp;
  d["lane"] = s.lane;
  return d;
}

py::dict finding_dict(const Finding& f) {
  py::dict d;
  d["code"] = check_name(f.check);
  d["message"] = f.message;
  d["times"] = f.times;
  d["site"] = site_dict(f.site);
  d["other"] = f.has_other ? py::object(site_dict(f.other)) : py::object(py::none());
  return d;
}

// A tensor map of tiled mode; dimensions innermost first, as the driver has them. Raises ValueError with the broken rule.
py::bytes encode_map(const std::string& type, u64 address, const std::vector<u64>& dims, const std::vector<u64>& strides,
                     const std::vector<u32>& box, const std::vector<u32>& element_strides, u32 swizzle) {
  if (dims.empty() || dims.size() > tensor::kMaxRank) throw py::value_error("a tensor map has 1 to 5 dimensions");
  if (strides.size() + 1 != dims.size() || box.size() != dims.size() || element_strides.size() != dims.size())
    throw py::value_error("box and element_strides need one number for each dimension");
  tensor::TensorMap map;
  bool known = false;
  for (u32 i = 0; i <= static_cast<u32>(tensor::MapType::tf32_ftz) && !known; ++i) {
    map.type = static_cast<tensor::MapType>(i);
    known = type == tensor::map_type_name(map.type);
  }
  if (!known) throw py::value_error("a tensor map has no elements of type " + type);
  map.rank = static_cast<u32>(dims.size());
  map.address = address;
  for (u32 i = 0; i < map.rank; ++i) {
    map.dim[i] = dims[i], map.box[i] = box[i], map.element_stride[i] = element_strides[i];
    if (i) map.stride[i - 1] = strides[i - 1];
  }
  if (swizzle != 0 && swizzle != 32 && swizzle != 64 && swizzle != 128) throw py::value_error("swizzle must be 0, 32, 64 or 128");
  map.swizzle = swizzle == 128 ? tensor::Swizzle::b128 : swizzle == 64 ? tensor::Swizzle::b64
                : swizzle == 32 ? tensor::Swizzle::b32 : tensor::Swizzle::none;
  if (const std::string why = tensor::tensor_map_reason(map); !why.empty()) throw py::value_error("tensor map: " + why);
  u8 bytes[tensor::kTensorMapBytes];
  tensor::encode_tensor_map(map, bytes);
  return py::bytes(reinterpret_cast<const char*>(bytes), sizeof bytes);
}

// A loaded module and the kernels linked so far.
class PyModule {
 public:
  explicit PyModule(const std::string& ptx) : module_(load_module(ptx)) {}

  py::list functions() const {
    py::list out;
    for (std::size_t i = 0; i < module_->ast->functions.size(); ++i) {
      const FunctionAst& f = module_->ast->functions[i];
      const Function& code = module_->functions[i];
      py::dict d;
      d["name"] = f.name;
      d["index"] = i;
      d["is_kernel"] = f.is_entry && f.has_body;
      d["line"] = f.line;
      py::list params;
      u64 at = 0;
      for (const Param& p : f.params) {
        at = align_up(at, p.align);
        py::dict pd;
        pd["name"] = p.name;
        pd["type"] = type_name(p.type);
        pd["offset"] = at;
        pd["bytes"] = p.bytes();
        pd["is_array"] = p.is_array;
        params.append(pd);
        at += p.bytes();
      }
      d["params"] = params;
      py::list unmodelled;
      for (const Unmodelled& u : code.unmodelled) unmodelled.append(py::make_tuple(u.line, u.text, u.reason));
      d["unmodelled"] = unmodelled;
      d["instructions"] = f.code.size();
      d["registers"] = code.rows();
      d["local_bytes"] = code.frame_bytes;
      d["required_threads"] = py::make_tuple(f.required_threads[0], f.required_threads[1], f.required_threads[2]);
      d["max_threads"] = py::make_tuple(f.max_threads[0], f.max_threads[1], f.max_threads[2]);
      d["required_cluster"] = py::make_tuple(f.required_cluster[0], f.required_cluster[1], f.required_cluster[2]);
      out.append(d);
    }
    return out;
  }

  py::dict globals() const {
    py::dict out;
    for (const auto& r : module_->regions) out[py::str(r.name)] = py::make_tuple(r.address, r.bytes, r.writable);
    return out;
  }

  // Text, PTX line and source position of every instruction of a function: what counters are printed beside.
  py::list listing(u32 function) const {
    py::list out;
    const FunctionAst& f = module_->ast->functions.at(function);
    for (const Instr& in : f.code) out.append(place_of(*module_, in));
    return out;
  }

  u32 static_shared(u32 kernel) { return link(kernel).static_shared; }

  py::dict launch(u32 kernel, std::array<u32, 3> grid, std::array<u32, 3> block, std::array<u32, 3> cluster, u32 shared,
                  const py::bytes& params, const std::vector<std::tuple<u64, u64, bool>>& regions, u64 seed, u32 checks,
                  bool counters, u64 budget, u32 threads, u32 registers,
                  u32 trace_slots, bool trace_warm, bool rough) {
    LaunchConfig c;
    c.kernel = kernel;
    c.grid = {grid[0], grid[1], grid[2]};
    c.block = {block[0], block[1], block[2]};
    c.cluster = {cluster[0], cluster[1], cluster[2]};
    c.dynamic_shared = shared;
    const std::string_view bytes = params;
    c.params.assign(bytes.begin(), bytes.end());
    for (const auto& [lo, hi, writable] : regions) c.regions.push_back({lo, hi, writable});
    c.seed = seed;
    c.checks = checks;
    c.counters = counters;
    c.budget = budget;
    c.threads = threads;
    c.registers = registers;
    c.trace_slots = trace_slots;
    c.trace_warm = trace_warm;
    c.rough = rough;
    c.poll = raise_signals;
    const Linked& linked = link(kernel);
    LaunchResult r;
    {
      py::gil_scoped_release release;
      r = run_launch(linked, c);
    }
    py::dict out;
    py::list findings;
    for (const Finding& f : r.findings) findings.append(finding_dict(f));
    out["findings"] = findings;
    out["fatal"] = r.fatal;
    out["output"] = py::bytes(r.output);
    out["warp_instructions"] = r.warp_instructions;
    out["thread_instructions"] = r.thread_instructions;
    py::list counts;
    for (std::size_t f = 0; f < r.counters.size(); ++f) {
      for (std::size_t i = 0; i < r.counters[f].size(); ++i) {
        const InstrCount& n = r.counters[f][i];
        if (n.issues) counts.append(py::make_tuple(f, i, numbers_of(n)));
      }
    }
    out["counters"] = counts;
    out["sectors"] = py::make_tuple(r.sectors_read, r.sectors_written);
    if (trace_slots) {
      static_assert(sizeof(TraceEvent) == 32);
      const auto& t = r.trace;
      out["trace"] = py::make_tuple(
          py::bytes(reinterpret_cast<const char*>(t.events.data()), t.events.size() * sizeof(TraceEvent)),
          py::bytes(reinterpret_cast<const char*>(t.notes.data()), t.notes.size() * sizeof(u64)), t.truncated);
    }
    return out;
  }

 private:
  const Linked& link(u32 kernel) {
    auto& slot = linked_[kernel];
    if (!slot) slot = link_kernel(*module_, kernel);
    return *slot;
  }
  std::unique_ptr<Module> module_;
  std::map<u32, std::unique_ptr<Linked>> linked_;
};

}  // namespace

void bind_runtime(py::module_& m);  // runtime.cpp

PYBIND11_MODULE(_C, m) {
  m.doc() = "tkpy's compiled part";
  bind_runtime(m);
  py::register_exception<PtxError>(m, "PtxError", PyExc_ValueError);
  py::list names;
  for (u32 i = 0; i < static_cast<u32>(Check::count); ++i) names.append(check_name(static_cast<Check>(i)));
  m.attr("CHECKS") = names;
  m.def("encode_tensor_map", &encode_map);
  py::class_<PyModule>(m, "EmulatorModule")
      .def(py::init<const std::string&>())
      .def("functions", &PyModule::functions)
      .def("globals", &PyModule::globals)
      .def("listing", &PyModule::listing)
      .def("static_shared", &PyModule::static_shared)
      .def("launch", &PyModule::launch);
}
