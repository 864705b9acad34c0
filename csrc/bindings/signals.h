// What a launch polls: Ctrl-C and other signals that Python has handlers for, raised as Python raises them.
#pragma once

#include <pybind11/pybind11.h>

inline void raise_signals() {
  const pybind11::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
}
