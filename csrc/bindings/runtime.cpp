// The part of tkpy._C that launches compiled kernels: Machine (CUDA driver or emulator), and launch(), which calls any
// launcher that a kernel registered. Tensors arrive as tuples (address, dtype, shape, strides in elements, device ordinal or
// -1 for the CPU); torch is not known here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <vector>

#include "runtime/driver_machine.h"
#include "counts.h"
#include "runtime/emulator_machine.h"
#include "runtime/launcher.h"
#include "signals.h"

namespace py = pybind11;
using namespace tkpy::runtime;

namespace {

DType dtype_named(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(DType::e5m2); ++i)
    if (name == dtype_name(static_cast<DType>(i))) return static_cast<DType>(i);
  throw py::value_error("no kernel knows the dtype " + name);
}

View view_of(const py::tuple& tensor) {
  if (tensor.size() != 5) throw py::value_error("a view is (address, dtype, shape, strides, device)");
  const auto shape = tensor[2].cast<py::tuple>(), stride = tensor[3].cast<py::tuple>();
  if (shape.size() != stride.size() || shape.size() > kMaxRank)
    throw py::value_error("a view has as many strides as dimensions, and at most 8");
  View v;
  v.data = reinterpret_cast<void*>(tensor[0].cast<std::uintptr_t>());
  v.dtype = dtype_named(tensor[1].cast<std::string>());
  v.rank = static_cast<int>(shape.size());
  for (int d = 0; d < v.rank; ++d) {
    v.shape[d] = shape[static_cast<std::size_t>(d)].cast<std::int64_t>();
    v.stride[d] = stride[static_cast<std::size_t>(d)].cast<std::int64_t>();
    if (v.shape[d] < 0 || v.stride[d] < 0) throw py::value_error("sizes and strides must not be negative");
  }
  v.device = tensor[4].cast<int>();
  if (!v.data && v.elements() > 0) throw py::value_error("a tensor without storage: " + v.describe());
  return v;
}

std::string device_name(int device) { return device < 0 ? "the CPU" : "cuda:" + std::to_string(device); }

// Launches on the driver are queued and return at once. The emulator runs to the end, one launch at a time, and lets
// other Python threads go on.
class PyMachine {
 public:
  static std::unique_ptr<PyMachine> driver(const std::string& kernels, const std::string& library) {
    return std::make_unique<PyMachine>(std::make_unique<DriverMachine>(kernels, library), false);
  }
  static std::unique_ptr<PyMachine> emulator(const std::string& kernels, std::uint64_t seed, std::uint32_t checks,
                                             std::uint32_t threads, int multiprocessors, bool counters, bool rough) {
    EmulatorOptions options;
    options.seed = seed;
    options.checks = checks;
    options.threads = threads;
    options.multiprocessors = multiprocessors;
    options.counters = counters;
    options.rough = rough;
    options.poll = raise_signals;
    auto emulator = std::make_unique<EmulatorMachine>(kernels, options);
    const EmulatorMachine* const counted = counters ? emulator.get() : nullptr;
    auto made = std::make_unique<PyMachine>(std::move(emulator), true);
    made->counted_ = counted;
    return made;
  }
  PyMachine(std::unique_ptr<Machine> machine, bool emulated) : machine_(std::move(machine)), emulated_(emulated) {}

  std::string name() const { return machine_->name(); }

  // A kernel on the driver must not meet host memory, nor the emulator a GPU's: either would end the process.
  void require_tensors_here(const std::string& name, const Launcher& launcher, std::span<const Value> values) const {
    const View* first = nullptr;
    for (std::size_t i = 0; i < values.size() && i < launcher.parameters().size(); ++i) {
      const View* view = std::get_if<View>(&values[i]);
      if (!view) continue;
      const std::string where = name + ": " + launcher.parameters()[i].name + ": need a tensor on ";
      const std::string got = ", got one on " + device_name(view->device);
      if ((view->device < 0) != emulated_)
        throw py::value_error(where + (emulated_ ? "the CPU for the emulator" : "a GPU for the CUDA driver") + got);
      if (!first) first = view;
      if (view->device != first->device) throw py::value_error(where + device_name(first->device) + " like the others" + got);
    }
  }

  template <class Launch>
  std::string run(const Launch& launch) {
    if (!emulated_) return launch(*machine_);
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    return launch(*machine_);
  }

  // What all launches of an emulator made with counters have counted so far, by kernel: module, launches, distinct sectors
  // read and written by each launch, and of each instruction that ran the function, its place and its numbers.
  py::dict counters() {
    if (!counted_) throw py::value_error("this machine does not count");
    const std::lock_guard lock(mutex_);
    py::dict out;
    for (const auto& [kernel, sum] : counted_->counted()) {
      py::list rows;
      for (std::size_t f = 0; f < sum.counters.size(); ++f) {
        const tkpy::emulator::FunctionAst& function = sum.code->ast->functions[f];
        for (std::size_t i = 0; i < sum.counters[f].size(); ++i)
          if (const tkpy::emulator::InstrCount& n = sum.counters[f][i]; n.issues)
            rows.append(py::make_tuple(std::string(function.name), place_of(*sum.code, function.code[i]), numbers_of(n)));
      }
      out[py::str(kernel)] = py::make_tuple(sum.module, sum.launches, sum.sectors_read, sum.sectors_written, rows);
    }
    return out;
  }

 private:
  std::unique_ptr<Machine> machine_;
  bool emulated_;
  const EmulatorMachine* counted_ = nullptr;  // machine_, if it counts
  std::mutex mutex_;  // an emulator keeps the result of its last launch
};

std::uint32_t positive(const char* what, std::int64_t value) {
  if (value < 1 || value > 0x7fffffff) throw py::value_error(std::string(what) + " must be 1 .. 2^31 - 1");
  return static_cast<std::uint32_t>(value);
}

// Kernels that have no launcher of their own, such as the microbenchmarks: one dimension, a parameter block made in
// Python. `views` are the tensors that it points to.
void launch_kernel(PyMachine& machine, const std::string& module, const std::string& kernel, std::int64_t grid,
                   std::int64_t block, std::int64_t cluster, std::uint32_t shared, const py::bytes& params,
                   const std::vector<py::tuple>& views, std::uintptr_t stream, int device, bool dependent,
                   bool cooperative) {
  std::vector<View> bounds;
  for (const py::tuple& view : views) bounds.push_back(view_of(view));
  const std::string_view bytes = params;
  LaunchSpec spec;
  spec.grid = {positive("grid", grid), 1, 1};
  spec.block = {positive("block", block), 1, 1};
  spec.cluster = {positive("cluster", cluster), 1, 1};
  spec.shared = shared;
  spec.params = std::as_bytes(std::span(bytes.data(), bytes.size()));
  spec.views = bounds;
  spec.stream = reinterpret_cast<void*>(stream);
  spec.device = device;
  spec.dependent = dependent;
  spec.cooperative = cooperative;
  machine.run([&](Machine& on) {
    on.launch(on.kernel(module, kernel), spec);
    return kernel;
  });
}

// Of `cluster` CTAs with so much shared memory, how many run at once.
int resident_clusters(PyMachine& machine, const std::string& module, const std::string& kernel, std::int64_t block,
                      std::int64_t cluster, std::uint32_t shared, int device) {
  LaunchSpec spec;
  spec.block = {positive("block", block), 1, 1};
  spec.cluster = {positive("cluster", cluster), 1, 1};
  spec.shared = shared;
  spec.device = device;
  int clusters = 0;
  machine.run([&](Machine& on) {
    clusters = on.resident_clusters(on.kernel(module, kernel), spec);
    return std::string();
  });
  return clusters;
}

// The 128 bytes of a tensor map; box in the tensor's own order of dimensions.
py::bytes encode_map(PyMachine& machine, const py::tuple& tensor, const std::vector<std::uint32_t>& box, int swizzle) {
  const View view = view_of(tensor);
  tk::tensor_map map;
  machine.run([&](Machine& on) {
    map = on.encode(tensor_map_of(view, box, swizzle));
    return std::string();
  });
  return py::bytes(reinterpret_cast<const char*>(map.opaque), sizeof map.opaque);
}

// An argument of a launcher: a tensor arrives as its view. Text is borrowed from `argument`.
Value value_of(py::handle argument) {
  PyObject* const object = argument.ptr();
  if (object == Py_None) return {};
  if (PyBool_Check(object)) return object == Py_True;
  if (PyTuple_Check(object)) return view_of(py::reinterpret_borrow<py::tuple>(argument));
  if (PyFloat_Check(object)) return PyFloat_AS_DOUBLE(object);
  if (PyLong_Check(object)) {
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow) throw py::value_error("an int argument must fit 64 bits, got " + py::str(argument).cast<std::string>());
    return std::int64_t{number};
  }
  if (PyUnicode_Check(object)) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(object, &size);
    if (!text) throw py::error_already_set();
    return std::string_view(text, static_cast<std::size_t>(size));
  }
  throw py::type_error("an argument is a view, bool, int, float, str or None, got " +
                       py::str(py::type::of(argument)).cast<std::string>());
}

// Calls a launcher by name (runtime/launcher.h); returns the name of the kernel that ran.
std::string launch(const std::string& name, PyMachine& machine, std::uintptr_t stream, const py::args& arguments) {
  const Launcher& launcher = Launcher::named(name);
  std::vector<Value> values;
  values.reserve(arguments.size());
  for (const py::handle argument : arguments) values.push_back(value_of(argument));
  machine.require_tensors_here(name, launcher, values);
  return machine.run([&](Machine& on) { return launcher(on, reinterpret_cast<void*>(stream), values); });
}

// Launcher -> [(parameter, type in words), ..]
py::dict launchers() {
  py::dict all;
  for (const auto& [name, launcher] : Launcher::registry()) {
    py::list parameters;
    for (const auto& parameter : launcher->parameters())
      parameters.append(py::make_tuple(parameter.name, parameter.type));
    all[py::str(name)] = parameters;
  }
  return all;
}

}  // namespace

void bind_runtime(py::module_& m) {
  py::register_exception<MachineError>(m, "MachineError", PyExc_RuntimeError);
  py::register_exception<MachineUnavailable>(m, "MachineUnavailable", PyExc_RuntimeError);
  py::class_<PyMachine>(m, "Machine")
      .def_static("driver", &PyMachine::driver, py::arg("kernels"), py::arg("library") = "libcuda.so.1")
      .def_static("emulator", &PyMachine::emulator, py::arg("kernels"), py::arg("seed") = 0, py::arg("checks") = ~0u,
                  py::arg("threads") = 1, py::arg("multiprocessors") = 132, py::arg("counters") = false,
                  py::arg("rough") = false)
      .def("counters", &PyMachine::counters)
      .def("launch_kernel", &launch_kernel, py::kw_only(), py::arg("module"), py::arg("kernel"), py::arg("grid"),
           py::arg("block"), py::arg("cluster") = 1, py::arg("shared") = 0, py::arg("params"), py::arg("views"),
           py::arg("stream") = 0, py::arg("device") = 0, py::arg("dependent") = false,
           py::arg("cooperative") = false)
      .def("resident_clusters", &resident_clusters, py::kw_only(), py::arg("module"), py::arg("kernel"), py::arg("block"),
           py::arg("cluster"), py::arg("shared"), py::arg("device") = 0)
      .def("encode", &encode_map, py::arg("tensor"), py::arg("box"), py::arg("swizzle") = 0)
      .def_property_readonly("name", &PyMachine::name);
  m.def("launch", &launch);
  m.def("launchers", &launchers);
}
