// What the emulator has counted, as Python sees it: tkpy/emulator/run.py.
#pragma once

#include <pybind11/pybind11.h>

#include "emulator/machine.h"

namespace tkpy::emulator {

// The fields of run.Count, but for tensor_flops, which follow from the text.
inline pybind11::tuple numbers_of(const InstrCount& n) {
  return pybind11::make_tuple(n.issues, n.lanes, n.shared_requests, n.shared_wavefronts, n.bank_conflicts, n.global_requests,
                              n.global_sectors, n.global_bytes, n.shared_bytes, n.local_bytes, n.flops);
}

// PTX line, text and source position of an instruction: what its counters are printed beside.
inline pybind11::tuple place_of(const Module& module, const Instr& in) {
  const Loc& loc = module.ast->locs[in.loc];
  const auto file = module.ast->files.find(loc.file);
  return pybind11::make_tuple(in.line, std::string(in.text),
                              loc.line && file != module.ast->files.end() ? file->second : "", loc.line);
}

}  // namespace tkpy::emulator
