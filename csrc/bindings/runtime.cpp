// The part of tkpy._C that launches compiled kernels: Machine (CUDA driver or emulator), and a function for each kernel.
// Tensors arrive as tuples (address, dtype, shape, strides in elements, device ordinal or -1); torch is not known here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <optional>

#include "kernels/gemm/launch.h"
#include "runtime/driver_machine.h"
#include "runtime/emulator_machine.h"

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
  return v;
}

// Launches on the driver are queued and return at once. The emulator runs to the end, one launch at a time, and lets
// other Python threads go on.
class PyMachine {
 public:
  static std::unique_ptr<PyMachine> driver(const std::string& kernels) {
    return std::make_unique<PyMachine>(std::make_unique<DriverMachine>(kernels), false);
  }
  static std::unique_ptr<PyMachine> emulator(const std::string& kernels, std::uint64_t seed, std::uint32_t checks,
                                             std::uint32_t threads, int multiprocessors) {
    EmulatorOptions options;
    options.seed = seed;
    options.checks = checks;
    options.threads = threads;
    options.multiprocessors = multiprocessors;
    return std::make_unique<PyMachine>(std::make_unique<EmulatorMachine>(kernels, options), true);
  }
  PyMachine(std::unique_ptr<Machine> machine, bool emulated) : machine_(std::move(machine)), emulated_(emulated) {}

  std::string name() const { return machine_->name(); }

  template <class Launch>
  void run(const Launch& launch) {
    if (!emulated_) return launch(*machine_);
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    launch(*machine_);
  }

 private:
  std::unique_ptr<Machine> machine_;
  bool emulated_;
  std::mutex mutex_;  // an emulator keeps the result of its last launch
};

// out = act(a b + bias) + residual; returns the name of the kernel that ran.
std::string gemm(PyMachine& machine, const py::tuple& a, const py::tuple& b, const py::tuple& out,
                 const std::optional<py::tuple>& bias, const std::optional<py::tuple>& residual,
                 const std::string& activation, std::uintptr_t stream) {
  tkpy::gemm::Arguments x;
  x.a = view_of(a);
  x.b = view_of(b);
  x.out = view_of(out);
  if (bias) x.bias = view_of(*bias);
  if (residual) x.residual = view_of(*residual);
  x.activation = tkpy::gemm::activation_from_name(activation);
  x.stream = reinterpret_cast<void*>(stream);
  machine.run([&x](Machine& on) { tkpy::gemm::launch(on, x); });
  return tkpy::gemm::kernel_name(x);
}

}  // namespace

void bind_runtime(py::module_& m) {
  py::register_exception<MachineError>(m, "MachineError", PyExc_RuntimeError);
  py::register_exception<MachineUnavailable>(m, "MachineUnavailable", PyExc_RuntimeError);
  py::class_<PyMachine>(m, "Machine")
      .def_static("driver", &PyMachine::driver, py::arg("kernels"))
      .def_static("emulator", &PyMachine::emulator, py::arg("kernels"), py::arg("seed") = 0, py::arg("checks") = ~0u,
                  py::arg("threads") = 1, py::arg("multiprocessors") = 132)
      .def_property_readonly("name", &PyMachine::name);
  m.def("gemm", &gemm, py::arg("machine"), py::arg("a"), py::arg("b"), py::arg("out"), py::arg("bias") = py::none(),
        py::arg("residual") = py::none(), py::arg("activation") = "none", py::arg("stream") = 0);
}
