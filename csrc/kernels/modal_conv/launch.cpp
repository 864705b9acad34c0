// Host side of modal_conv: checks, and the launches of its three kinds of kernels.
#include <algorithm>
#include <limits>
#include <vector>

#include "params.h"
#include "runtime/launcher.h"

namespace tkpy::modal_conv {

namespace {

using runtime::DType;
using runtime::Machine;
using runtime::View;
using Optional = std::optional<View>;

void check(bool holds, const char* what, const std::string& needed, const View& got) {
  if (!holds) throw std::invalid_argument(std::string("modal_conv: ") + what + ": need " + needed + ", got " + got.describe());
}

bool is_sample(DType dtype) { return dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f32; }
std::string type_name(DType dtype) { return dtype == DType::bf16 ? "bf16" : dtype == DType::f16 ? "fp16" : "f32"; }

// What the launches share: the first signal, the modes, and every tensor that a kernel may touch.
struct Call {
  const View& x;
  const View& poles;
  std::vector<View> views{};

  std::int64_t batch() const { return x.shape[0]; }
  std::int64_t channels() const { return x.shape[1]; }
  std::int64_t length() const { return x.shape[2]; }
  std::int64_t modes() const { return poles.shape[1]; }

  void check_modes() const {
    check(x.rank == 3 && is_sample(x.dtype), "x", "three dimensions of bf16, f16 or f32", x);
    check(poles.rank == 3 && poles.shape[0] == x.shape[1] && poles.shape[1] <= kMostModes, "poles",
          "a row of at most " + std::to_string(kMostModes) + " complex numbers for each channel of x", poles);
    constexpr std::int64_t most = std::numeric_limits<int>::max() / 4;
    check(x.shape[0] < most && x.shape[1] < most && x.shape[2] < most, "x", "sizes below 2^29", x);
  }
  Signal signal(const char* what, const Optional& v, bool written = false) {
    if (!v) return {};
    check(v->rank == 3 && v->dtype == x.dtype && v->device == x.device && std::equal(x.shape, x.shape + 3, v->shape), what,
          "the shape, type and device of x", *v);
    check(v->stride[2] == 1 || v->shape[2] == 1, what, "neighbouring samples side by side", *v);
    views.push_back(written ? *v : v->read_only());
    return {v->data, v->stride[0], v->stride[1]};
  }
  // `elements` contiguous numbers.
  template <class T>
  T* numbers(const char* what, const Optional& v, DType dtype, std::int64_t elements, bool written = false) {
    if (!v) return nullptr;
    check(v->dtype == dtype && v->elements() == elements && v->extent() == elements * dtype_bytes(dtype) &&
              v->device == x.device,
          what, std::to_string(elements) + " contiguous elements of " + dtype_name(dtype) + " on the device of x", *v);
    if (elements == 0) return nullptr;
    views.push_back(written ? *v : v->read_only());
    return static_cast<T*>(v->data);
  }
  Complex* complex(const char* what, const Optional& v, std::int64_t count, bool written = false) {
    return numbers<Complex>(what, v, DType::f32, 2 * count, written);
  }
  WideComplex* wide(const char* what, const Optional& v, std::int64_t count, bool written = false) {
    return numbers<WideComplex>(what, v, DType::f64, 2 * count, written);
  }
  std::int64_t states() const { return batch() * channels() * modes(); }

  template <class Params>
  void run(Machine& machine, void* stream, const char* module, const std::string& kernel, std::int64_t grid, int threads,
           int shared, const Params& params) {
    if (grid > std::numeric_limits<int>::max())
      throw std::invalid_argument("modal_conv: need fewer than 2^31 blocks, got " + std::to_string(grid));
    machine.launch(machine.kernel(module, kernel), {.grid = {static_cast<std::uint32_t>(grid), 1, 1},
                                                    .block = {static_cast<std::uint32_t>(threads), 1, 1},
                                                    .cluster = {},
                                                    .shared = static_cast<std::uint32_t>(shared),
                                                    .params = runtime::bytes_of(params),
                                                    .views = views,
                                                    .stream = stream,
                                                    .device = x.device});
  }
};

// Tiles and segments of a length.
template <class P>
void cut(P& p, const Call& call, std::int64_t chunks, std::int64_t segment_tiles) {
  p.batch = static_cast<int>(call.batch());
  p.channels = static_cast<int>(call.channels());
  p.modes = static_cast<int>(call.modes());
  p.groups = std::max((p.modes + kGroup - 1) / kGroup, 1);  // without modes there is still the skip
  p.chunks = static_cast<int>(chunks);
  p.tiles = (p.chunks + kRows - 1) / kRows;
  p.segment_tiles = static_cast<int>(std::clamp<std::int64_t>(segment_tiles, 1, std::max(p.tiles, 1)));
  p.segments = (p.tiles + p.segment_tiles - 1) / p.segment_tiles;
}

std::string conv(Machine& machine, void* stream, const View& x, const Optional& gate, const Optional& post,
                 const Optional& out, const View& poles, const View& residues, const Optional& skip, const Optional& start,
                 const Optional& local, const Optional& end, std::int64_t segment_tiles) {
  Call call{x, poles};
  call.check_modes();
  check(x.shape[2] % kChunk == 0, "x", "whole chunks of 64 samples", x);
  Params p{};
  p.in[0] = call.signal("x", x);
  p.in[1] = call.signal("gate", gate);
  p.in[2] = call.signal("post", post);
  p.out = call.signal("out", out, true);
  cut(p, call, call.length() / kChunk, segment_tiles);
  const std::int64_t modes = call.channels() * call.modes();
  p.poles = call.complex("poles", poles, modes);
  p.residues = call.complex("residues", residues, modes);
  p.skip = call.numbers<float>("skip", skip, DType::f32, call.channels());
  p.start = call.complex("start", start, call.states());
  p.local = call.wide("local", local, (p.segments - 1) * call.states(), true);
  p.end = call.wide("end", end, call.states(), true);
  check(p.segments <= 1 || local, "local", "a state for each segment but the last", x);
  const int bytes = dtype_bytes(x.dtype);
  const std::string kernel = "modal_conv_" + type_name(x.dtype);
  if (x.elements() == 0) return kernel;
  const char* module = x.dtype == DType::f32 ? "modal_conv_f32" : "modal_conv";
  const std::int64_t units = call.batch() * call.channels();
  if (p.segments > 1 && p.modes > 0) {
    Params first = p;
    first.only_local = 1;
    first.in[2] = first.out = {};
    call.run(machine, stream, module, kernel, units * (p.segments - 1), 32, conv_bytes(bytes, p.groups), first);
  }
  call.run(machine, stream, module, kernel, units * p.segments, 32, conv_bytes(bytes, p.groups), p);
  return kernel;
}

std::string steps(Machine& machine, void* stream, const View& u, const Optional& pre, const Optional& post,
                  const View& out, const View& poles, const View& residues, const Optional& skip, const Optional& start,
                  const Optional& wide_start, const Optional& end) {
  Call call{u, poles};
  call.check_modes();
  StepParams p{};
  p.u = call.signal("u", u);
  p.pre = call.signal("pre_gate", pre);
  p.post = call.signal("post_gate", post);
  p.out = call.signal("out", out, true);
  p.batch = static_cast<int>(call.batch());
  p.channels = static_cast<int>(call.channels());
  p.modes = static_cast<int>(call.modes());
  p.steps = static_cast<int>(call.length());
  const std::int64_t modes = call.channels() * call.modes();
  p.poles = call.complex("poles", poles, modes);
  p.residues = call.complex("residues", residues, modes);
  p.skip = call.numbers<float>("skip", skip, DType::f32, call.channels());
  p.start = call.complex("start", start, call.states());
  p.wide_start = call.wide("wide_start", wide_start, call.states());
  p.end = call.complex("end", end, call.states(), true);
  const std::string kernel = "modal_steps_" + type_name(u.dtype);
  if (u.elements() == 0) return kernel;
  call.run(machine, stream, "modal_conv_steps", kernel, (call.batch() * call.channels() + 15) / 16, 128, 0, p);
  return kernel;
}

std::string backward(Machine& machine, void* stream, const View& u, const Optional& pre, const View& dy,
                     const Optional& post, const Optional& du, const Optional& dpre, const Optional& dpost,
                     const View& poles, const View& residues, const Optional& skip, const Optional& start,
                     const Optional& end, const Optional& starts, const Optional& local, const Optional& dstart,
                     const Optional& dpoles, const Optional& dresidues, const Optional& dskip, std::int64_t segment_tiles) {
  Call call{u, poles};
  call.check_modes();
  BackwardParams p{};
  p.in[0] = call.signal("u", u);
  p.in[1] = call.signal("pre_gate", pre);
  p.in[2] = call.signal("dy", dy);
  p.in[3] = call.signal("post_gate", post);
  p.out[0] = call.signal("du", du, true);
  p.out[1] = call.signal("dpre", dpre, true);
  p.out[2] = call.signal("dpost", dpost, true);
  cut(p, call, (call.length() + kChunk - 1) / kChunk, segment_tiles);
  p.length = static_cast<int>(call.length());
  p.kept = p.segment_tiles <= kMostKept ? p.segment_tiles : kLeastKept;
  p.parameters = dpoles.has_value();
  p.forth = p.parameters || dpost;
  check(dresidues.has_value() == dpoles.has_value() && dskip.has_value() == dpoles.has_value(), "dpoles",
        "dresidues and dskip beside it", u);
  check(!end || call.length() % kChunk == 0, "u", "whole chunks of 64 samples where the last state has a gradient", u);
  check(!p.forth || starts, "starts", "a state for each tile", u);
  check(p.segments <= 1 || local, "local", "two states for each segment", u);
  const std::int64_t modes = call.channels() * call.modes(), shares = p.segments * call.batch();
  p.poles = call.complex("poles", poles, modes);
  p.residues = call.complex("residues", residues, modes);
  p.skip = call.numbers<float>("skip", skip, DType::f32, call.channels());
  p.start = call.complex("start", start, call.states());
  p.end = call.complex("end", end, call.states());
  p.starts = call.complex("starts", starts, p.tiles * call.states(), true);
  p.local = call.wide("local", local, 2 * p.segments * call.states(), true);
  p.dstart = call.wide("dstart", dstart, call.states(), true);
  p.dpoles = call.complex("dpoles", dpoles, shares * modes, true);
  p.dresidues = call.complex("dresidues", dresidues, shares * modes, true);
  p.dskip = call.numbers<float>("dskip", dskip, DType::f32, shares * call.channels(), true);
  // What nobody multiplies by is not read.
  if (!p.forth && !dpre) p.in[0] = {};
  if (!p.forth && !du) p.in[1] = {};
  const std::string kernel = "modal_backward_" + type_name(u.dtype);
  if (u.elements() == 0) return kernel;
  const int shared = backward_bytes(dtype_bytes(u.dtype), p.kept, p.groups);
  const std::int64_t grid = call.batch() * call.channels() * p.segments;
  if (p.segments > 1 && p.modes > 0) {
    BackwardParams first = p;
    first.only_local = 1;
    call.run(machine, stream, "modal_conv_backward", kernel, grid, 32, shared, first);
  }
  call.run(machine, stream, "modal_conv_backward", kernel, grid, 32, shared, p);
  return kernel;
}

const runtime::Launcher conv_registered("modal_conv", conv,
                                        {"x", "gate", "post", "out", "poles", "residues", "skip", "start", "local", "end",
                                         "segment_tiles"});
const runtime::Launcher backward_registered("modal_backward", backward,
                                            {"u", "pre_gate", "dy", "post_gate", "du", "dpre_gate", "dpost_gate", "poles",
                                             "residues", "skip", "start", "end", "starts", "local", "dstart", "dpoles",
                                             "dresidues", "dskip", "segment_tiles"});
const runtime::Launcher steps_registered("modal_steps", steps,
                                         {"u", "pre_gate", "post_gate", "out", "poles", "residues", "skip", "start",
                                          "wide_start", "end"});

}  // namespace

}  // namespace tkpy::modal_conv
