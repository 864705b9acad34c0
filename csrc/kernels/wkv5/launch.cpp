// Host side of wkv5: which kernels serve a call, and the call itself: with segments the states at their starts first.
#include <algorithm>
#include <limits>
#include <vector>

#include "params.h"
#include "runtime/launcher.h"

namespace tkpy::wkv5 {

namespace {

using runtime::DType;
using runtime::Machine;
using runtime::View;
using Optional = std::optional<View>;

constexpr std::int64_t kLongest = std::int64_t{1} << 30;
constexpr std::int64_t kGrid = 65535;  // of the second dimension

// Rows after rows, in the order of the dimensions.
bool contiguous(const View& v) {
  std::int64_t step = 1;
  for (int d = v.rank - 1; d >= 0; step *= v.shape[d--])
    if (v.shape[d] != 1 && v.stride[d] != step) return v.elements() == 0;
  return true;
}

// What both directions check, launch and have in common.
struct Call {
  const char* op;
  View r, k, v, w, u;
  Optional initial, cu_seqlens;
  std::int64_t segment;

  std::int64_t batch() const { return r.shape[0]; }
  std::int64_t length() const { return r.shape[1]; }
  std::int64_t heads() const { return r.shape[2]; }
  std::int64_t size() const { return r.shape[3]; }
  std::int64_t sequences() const { return cu_seqlens ? cu_seqlens->elements() - 1 : batch(); }
  std::int64_t segments() const { return std::max<std::int64_t>((length() + segment - 1) / segment, 1); }
  std::int64_t slots() const { return cu_seqlens ? length() / segment + sequences() : batch() * segments(); }
  std::int64_t states(std::int64_t count) const { return count * heads() * size() * size(); }

  void check(bool holds, const char* what, const std::string& needed, const View& got) const {
    if (!holds) throw std::invalid_argument(std::string(op) + ": " + what + ": need " + needed + ", got " + got.describe());
  }
  void check_data(const char* what, const View& v_) const {
    check(v_.rank == 4 && v_.dtype == r.dtype && (r.dtype == DType::bf16 || r.dtype == DType::f16) &&
              v_.device == r.device && std::equal(r.shape, r.shape + 4, v_.shape),
          what, "four dimensions of bf16 or f16, as r has them", v_);
    bool fits = v_.stride[3] == 1 && reinterpret_cast<std::uintptr_t>(v_.data) % 16 == 0;
    for (int d = 0; d < 3; ++d) fits = fits && (v_.shape[d] == 1 || (v_.stride[d] > 0 && v_.stride[d] % 8 == 0));
    check(fits, what, "channels contiguous, and the address and every other stride a multiple of 16 bytes", v_);
  }
  void check_output(const char* what, const View& v_) const {
    check_data(what, v_);
    check(contiguous(v_), what, "a contiguous tensor", v_);
  }
  void check_f32(const char* what, const Optional& v_, std::int64_t elements) const {
    if (!v_) return;
    check(v_->dtype == DType::f32 && v_->elements() == elements && contiguous(*v_) && v_->device == r.device &&
              reinterpret_cast<std::uintptr_t>(v_->data) % 16 == 0,
          what, std::to_string(elements) + " contiguous elements of f32 on the device of r, at a multiple of 16 bytes", *v_);
  }
  void check_inputs() const {
    check_data("r", r);
    check_data("k", k);
    check_data("v", v);
    check(r.elements() > 0 && size() <= 128 && size() % 8 == 0, "r",
          "tokens, and heads of 8 to 128 channels, a multiple of 8", r);
    check(heads() <= kGrid && length() < kLongest && batch() < kLongest, "r",
          "at most 65535 heads, rows and tokens below 2^30", r);
    check(segment >= kChunk && segment % kChunk == 0 && segment < kLongest, "segment", "a multiple of 16 tokens", r);
    check_f32("w", w, heads() * size());
    check_f32("u", u, heads() * size());
    check_f32("initial_state", initial, states(sequences()));
    if (!cu_seqlens) return;
    check(batch() == 1, "r", "one row where there is cu_seqlens", r);
    check(cu_seqlens->dtype == DType::i32 && cu_seqlens->rank == 1 && cu_seqlens->elements() >= 2 &&
              contiguous(*cu_seqlens) && cu_seqlens->device == r.device,
          "cu_seqlens", "two or more contiguous elements of i32 on the device of r", *cu_seqlens);
  }
  // Whether there are as many states as slots, or none of one segment each.
  void check_states(const char* what, const Optional& states_) const {
    check_f32(what, states_, states(slots()));
    if (!states_) check(!cu_seqlens && segments() == 1, what, "states where a sequence may have two segments", r);
  }

  const Shared& shared() const { return kShared[shape_of(width())]; }
  int parts() const { return r.dtype == DType::f16; }  // beyond one
  int width() const { return *std::lower_bound(std::begin(kWidths), std::end(kWidths), static_cast<int>(size())); }
  std::string suffix() const { return (r.dtype == DType::bf16 ? "_bf16_" : "_fp16_") + std::to_string(width()); }
};

template <class T>
T* data_of(const Optional& v) {
  return v ? static_cast<T*>(v->data) : nullptr;
}

Params params_of(const Call& call) {
  Params p{};
  p.w = static_cast<const float*>(call.w.data);
  p.u = static_cast<const float*>(call.u.data);
  p.initial = data_of<const float>(call.initial);
  p.cu_seqlens = data_of<const int>(call.cu_seqlens);
  p.sequences = static_cast<int>(call.sequences());
  p.length = static_cast<int>(call.length());
  p.heads = static_cast<int>(call.heads());
  p.size = static_cast<int>(call.size());
  p.segment = static_cast<int>(call.segment);
  p.segments = static_cast<int>(call.segments());
  p.slots = static_cast<int>(call.slots());
  return p;
}

// The map of [B, T, H, N]: 16 tokens of a head. Strides of single rows are never used, and made fit.
tk::tensor_map map_of(Machine& machine, const Call& call, const View& v) {
  View seen = v;
  for (int d = 0; d < 3; ++d)
    if (seen.shape[d] == 1) seen.stride[d] = seen.shape[3];
  const auto columns = static_cast<std::uint32_t>(std::min(call.width(), 64));
  const std::uint32_t box[4] = {1, static_cast<std::uint32_t>(kChunk), 1, columns};
  return machine.encode(runtime::tensor_map_of(seen, box, static_cast<int>(2 * columns)));
}

struct Run {
  Machine& machine;
  void* stream;
  const Call& call;
  const Params& p;
  std::vector<View> views;

  void kernel(const std::string& module, const std::string& name, std::int64_t x, std::int64_t y, int block, int shared,
              const Params& given) const {
    if (x > std::numeric_limits<int>::max())
      throw std::invalid_argument(std::string(call.op) + ": need fewer than 2^31 blocks, got " + std::to_string(x));
    machine.launch(machine.kernel(module, name), {.grid = {static_cast<std::uint32_t>(x), static_cast<std::uint32_t>(y), 1},
                                                  .block = {static_cast<std::uint32_t>(block), 1, 1},
                                                  .cluster = {},
                                                  .shared = static_cast<std::uint32_t>(shared),
                                                  .params = runtime::bytes_of(given),
                                                  .views = views,
                                                  .stream = stream,
                                                  .device = call.r.device});
  }
  // States of segments alone, then at their starts (backwards: gradients at their ends).
  void states(bool backwards) const {
    Params given = p;
    given.backwards = backwards;
    kernel("wkv5", "wkv5_states" + call.suffix(), p.slots, p.heads, 2 * call.width(), call.shared().states, given);
    const std::int64_t elements = call.size() * call.size();
    kernel("wkv5", "wkv5_join", (elements + 127) / 128, p.sequences * call.heads(), 128, 0, given);
  }
};

std::string launch_forward(Machine& machine, void* stream, const Call& call, const View& y, const Optional& final,
                           const Optional& states) {
  call.check_inputs();
  call.check_output("y", y);
  call.check_f32("final_state", final, call.states(call.sequences()));
  call.check_states("states", states);
  Params p = params_of(call);
  p.data[kR] = map_of(machine, call, call.r);
  p.data[kK] = map_of(machine, call, call.k);
  p.data[kV] = map_of(machine, call, call.v);
  p.y = y.data;
  p.final = data_of<float>(final);
  p.states = data_of<float>(states);
  Run run{machine, stream, call, p, {call.r.read_only(), call.k.read_only(), call.v.read_only(), call.w.read_only(),
                                     call.u.read_only(), y}};
  for (const Optional* extra : {&call.initial, &call.cu_seqlens})
    if (*extra) run.views.push_back((*extra)->read_only());
  for (const Optional* extra : {&final, &states})
    if (*extra) run.views.push_back(**extra);
  if (states) run.states(false);
  const std::string name = "wkv5_forward" + call.suffix();
  run.kernel("wkv5", name, p.slots, p.heads, 2 * call.width(), call.shared().outputs[call.parts()], p);
  return name;
}

std::string forward_from_python(Machine& machine, void* stream, const View& r, const View& k, const View& v, const View& w,
                                const View& u, const Optional& initial, const Optional& cu_seqlens, const View& y,
                                const Optional& final, const Optional& states, std::int64_t segment) {
  return launch_forward(machine, stream, {"wkv5", r, k, v, w, u, initial, cu_seqlens, segment}, y, final, states);
}

const runtime::Launcher forward("wkv5", forward_from_python,
                                {"r", "k", "v", "w", "u", "initial_state", "cu_seqlens", "y", "final_state", "states",
                                 "segment"});

struct Gradients {
  View gy;
  Optional g_final;
  View gr, gk, gv;
  Optional g_initial;
  View g_log_w, g_u;                      // [2, slots, H, N], [slots, H, N]
  Optional states, spread, g_states;
};

void check_gradients(const Call& call, const Gradients& to) {
  call.check_inputs();
  call.check_data("gy", to.gy);
  call.check_output("gr", to.gr);
  call.check_output("gk", to.gk);
  call.check_output("gv", to.gv);
  const std::int64_t states = call.states(call.sequences()), shares = call.slots() * call.heads() * call.size();
  call.check_f32("g_final_state", to.g_final, states);
  call.check_f32("g_initial_state", to.g_initial, states);
  call.check_f32("g_log_w", to.g_log_w, 2 * shares);
  call.check_f32("g_u", to.g_u, shares);
  call.check_states("states", to.states);
  call.check_states("spread", to.spread);
  call.check_states("g_states", to.g_states);
}

std::string launch_backward(Machine& machine, void* stream, const Call& call, const Gradients& to) {
  check_gradients(call, to);
  Params p = params_of(call);
  p.data[kR] = map_of(machine, call, call.r);
  p.data[kK] = map_of(machine, call, call.k);
  p.data[kV] = map_of(machine, call, call.v);
  p.data[kGy] = map_of(machine, call, to.gy);
  p.gr = to.gr.data;
  p.gk = to.gk.data;
  p.gv = to.gv.data;
  p.g_final = data_of<const float>(to.g_final);
  p.g_initial = data_of<float>(to.g_initial);
  p.g_log_w[0] = static_cast<float*>(to.g_log_w.data);
  p.g_log_w[1] = p.g_log_w[0] + call.slots() * call.heads() * call.size();
  p.g_u = static_cast<float*>(to.g_u.data);
  p.states = data_of<float>(to.states);
  p.spread = data_of<float>(to.spread);
  p.g_states = data_of<float>(to.g_states);
  Run run{machine, stream, call, p, {call.r.read_only(), call.k.read_only(), call.v.read_only(), to.gy.read_only(),
                                     call.w.read_only(), call.u.read_only(), to.gr, to.gk, to.gv, to.g_log_w, to.g_u}};
  for (const Optional* extra : {&call.initial, &call.cu_seqlens, &to.g_final})
    if (*extra) run.views.push_back((*extra)->read_only());
  for (const Optional* extra : {&to.g_initial, &to.states, &to.spread, &to.g_states})
    if (*extra) run.views.push_back(**extra);
  const std::string name = "wkv5_backward" + call.suffix();
  for (const bool backwards : {false, true}) {  // gr; gk and gv
    if (backwards ? to.g_states : to.states) run.states(backwards);
    p.backwards = backwards;
    run.kernel("wkv5_backward", name, p.slots, p.heads, 2 * call.width(), call.shared().backward[call.parts()], p);
  }
  return name;
}

std::string backward_from_python(Machine& machine, void* stream, const View& r, const View& k, const View& v, const View& w,
                                 const View& u, const Optional& initial, const Optional& cu_seqlens, const View& gy,
                                 const Optional& g_final, const View& gr, const View& gk, const View& gv,
                                 const Optional& g_initial, const View& g_log_w, const View& g_u, const Optional& states,
                                 const Optional& spread, const Optional& g_states, std::int64_t segment) {
  return launch_backward(machine, stream, {"wkv5_backward", r, k, v, w, u, initial, cu_seqlens, segment},
                         {gy, g_final, gr, gk, gv, g_initial, g_log_w, g_u, states, spread, g_states});
}

const runtime::Launcher backward("wkv5_backward", backward_from_python,
                                 {"r", "k", "v", "w", "u", "initial_state", "cu_seqlens", "gy", "g_final_state", "gr", "gk",
                                  "gv", "g_initial_state", "g_log_w", "g_u", "states", "spread", "g_states", "segment"});

}  // namespace

}  // namespace tkpy::wkv5
