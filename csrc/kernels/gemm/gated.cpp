// Gated products by one launch of the GEMM, and the products of their backward that no other launcher has.
//   gemm_gated   out_g = act(x b1_g^T) * (x' b2_g^T) for every group g, and both products themselves where they are kept
//                x [M, channels], b1 and b2 [groups, N, K], out, gate and value [M, channels of N]
//     one group    x' = x: K channels
//     halves       groups are half-blocks of x's channels: the gate of group g is made of block g / 2, its value of block
//                  (groups + g) / 2. Channels beyond the last read as 0
//   gemm_gated_backward   dgate, dvalue and out = act(gate) * value from dh_g = dy_g b_g, which is not written
//                dy [M, channels], b [groups, K, N], the others [M, channels of N]
//   gemm_pair    out = a_0 b1 + a_1 b2: a [2, M, K], b1 and b2 [K, N], out [M, N]
#include <algorithm>
#include <initializer_list>
#include <utility>
#include <vector>

#include "launch.h"
#include "runtime/launcher.h"

namespace tkpy::gemm {

namespace {

using runtime::DType;
using runtime::View;

constexpr std::int64_t kMost = (std::int64_t{1} << 31) - 512;

// The checks of one launcher: what it refuses begins with its name.
struct Check {
  const char* launcher;

  void operator()(bool holds, const char* what, const std::string& needed, const View& got) const {
    if (!holds)
      throw std::invalid_argument(std::string(launcher) + ": " + what + ": need " + needed + ", got " + got.describe());
  }
  void like(const char* what, const View& v, const View& x) const {
    (*this)(v.dtype == x.dtype && v.device == x.device, what, "the dtype and device of the first", v);
  }
  void input(const char* what, const View& v, int rank) const {
    (*this)(v.rank == rank && (v.dtype == DType::bf16 || v.dtype == DType::f16), what,
            (rank == 2 ? "two" : "three") + std::string(" dimensions, bf16 or f16"), v);
    for (int d = 0; d < rank; ++d)
      (*this)(v.shape[d] * (rank == 3 ? std::max<std::int64_t>(v.shape[0], 1) : 1) < kMost, what,
              "less than 2^31 - 512 rows and channels", v);
  }
  // [groups, .., ..] as it is read: the last dimension contiguous.
  void weights(const char* what, const View& v, const View& x) const {
    input(what, v, 3);
    like(what, v, x);
    (*this)(contiguous(v, 2), what, "a contiguous last dimension", v);
  }
  // Matrices of one shape, whose rows lie on one pitch; which may be missing, all together.
  void matrices(std::initializer_list<std::pair<const char*, const View*>> all, std::int64_t rows, std::int64_t cols,
                const View& x) const {
    const View* const first = all.begin()->second;
    for (const auto& [what, v] : all) {
      (*this)((v == nullptr) == (first == nullptr), what, "both or neither", v ? *v : View{});
      if (!v) continue;
      like(what, *v, x);
      (*this)(v->rank == 2 && v->shape[0] == rows && v->shape[1] == cols, what,
              std::to_string(rows) + " rows of " + std::to_string(cols), *v);
      (*this)(contiguous(*v, 1) && (rows == 1 || v->stride[0] == first->stride[0]), what,
              "contiguous rows, as far apart as the other's", *v);
    }
  }
};

const View* given(const std::optional<View>& v) { return v ? &*v : nullptr; }

Stored as_stored(const char* what, const View& v, bool transposed) {
  Stored s = matrices(what, v);
  s.transposed = transposed;
  return s;
}

// Whether four columns of every row and block begin on a multiple of 8 bytes.
bool by_fours(const View& v, std::int64_t block) {
  return reinterpret_cast<std::uintptr_t>(v.data) % 8 == 0 && v.stride[0] % 4 == 0 && block % 4 == 0;
}

void keep(Kept& kept, const View& gate, const View& value) {
  kept.gate = gate.data;
  kept.value = value.data;
  kept.pitch = gate.stride[0];
}

// The first view is that of the left operand; nothing is launched where there are no outputs.
std::string run(runtime::Machine& machine, void* stream, Problem& made, const std::vector<View>& views,
                std::int64_t outputs) {
  made.views = views;
  made.dtype = views.front().dtype;
  made.stream = stream;
  made.device = views.front().device;
  const std::string name = kernel_name(made);
  if (outputs > 0) launch(machine, made);
  return name;
}

std::string launch_gated(runtime::Machine& machine, void* stream, const View& x, const View& b1, const View& b2,
                         const std::optional<View>& out, const std::optional<View>& gate,
                         const std::optional<View>& value, bool halves, std::string_view activation) {
  const Check check{"gemm_gated"};
  check.input("x", x, 2);
  check.weights("b1", b1, x);
  check.weights("b2", b2, x);
  check(std::equal(b2.shape, b2.shape + 3, b1.shape), "b2", "the shape of b1", b2);
  check(halves || b1.shape[0] == 1, "b1", "one group", b1);
  const std::int64_t groups = b1.shape[0], channels_out = groups * b1.shape[1];
  check.matrices({{"out", given(out)}}, x.shape[0], channels_out, x);
  check.matrices({{"gate", given(gate)}, {"value", given(value)}}, x.shape[0], channels_out, x);
  check(out || gate, "out", "it, or gate and value", View{});
  Problem made;
  made.gating = halves ? Gating::two : Gating::shared;
  made.a = channels("x", x, 1, groups, b1.shape[2], "consecutive");
  made.b = as_stored("b1", b1, true);  // N x K
  made.b2 = as_stored("b2", b2, true);
  Params& params = made.params;
  params.m = static_cast<int>(x.shape[0]);
  params.n = static_cast<int>(b1.shape[1]);
  params.k = params.share_depth = static_cast<int>(b1.shape[2]);
  params.groups = static_cast<int>(groups);
  params.shares = 1;
  params.out = channels("out", out ? *out : *gate, 1, groups, b1.shape[1], "consecutive").blocks;
  params.activation = activation_from_name(activation);
  std::vector<View> views = {x.read_only(), b1.read_only(), b2.read_only()};
  if (!out) params.out.data = nullptr;
  if (gate) keep(params.kept, *gate, *value);
  for (const std::optional<View>* v : {&out, &gate, &value})
    if (*v) views.push_back(**v);
  return run(machine, stream, made, views, x.shape[0] * channels_out);
}

std::string launch_backward(runtime::Machine& machine, void* stream, const View& dy, const View& b, const View& gate,
                            const View& value, const std::optional<View>& dgate, const std::optional<View>& dvalue,
                            const std::optional<View>& out, std::string_view activation) {
  const Check check{"gemm_gated_backward"};
  check.input("dy", dy, 2);
  check.weights("b", b, dy);
  const std::int64_t groups = b.shape[0], width = b.shape[2], rows = dy.shape[0];
  check(gate.rank == 2 && gate.shape[1] <= groups * width, "gate", "the channels of b's groups", gate);
  check.matrices({{"gate", &gate}, {"value", &value}}, rows, gate.shape[1], dy);
  check.matrices({{"dgate", given(dgate)}, {"dvalue", given(dvalue)}}, rows, gate.shape[1], dy);
  check.matrices({{"out", given(out)}}, rows, gate.shape[1], dy);
  check(out || dgate, "out", "it, or dgate and dvalue", View{});
  Problem made;
  made.gating = Gating::slopes;
  made.a = channels("dy", dy, 1, groups, b.shape[1], "consecutive");
  made.b = as_stored("b", b, false);  // K x N
  Params& params = made.params;
  params.m = static_cast<int>(rows);
  params.n = static_cast<int>(width);
  params.k = params.share_depth = static_cast<int>(b.shape[1]);
  params.groups = static_cast<int>(groups);
  params.shares = 1;
  params.out = channels("out", out ? *out : gate, 1, groups, width, "consecutive").blocks;
  if (!out) params.out.data = nullptr;
  params.activation = activation_from_name(activation);
  keep(params.kept, gate, value);
  if (dgate) {
    params.kept.dgate = dgate->data;
    params.kept.dvalue = dvalue->data;
    params.kept.slopes_pitch = dgate->stride[0];
  }
  std::vector<View> views = {dy.read_only(), b.read_only(), gate.read_only(), value.read_only()};
  params.kept.fours = by_fours(gate, width) && by_fours(value, width);
  for (const std::optional<View>* v : {&dgate, &dvalue, &out}) {
    if (!*v) continue;
    params.kept.fours = params.kept.fours && by_fours(**v, width);
    views.push_back(**v);
  }
  return run(machine, stream, made, views, gate.elements());
}

std::string launch_pair(runtime::Machine& machine, void* stream, const View& a, const View& b1, const View& b2,
                        const View& out) {
  const Check check{"gemm_pair"};
  check.weights("a", a, a);
  check(a.shape[0] == 2, "a", "two groups", a);
  for (const auto& [what, v] : {std::pair{"b1", &b1}, {"b2", &b2}}) {
    check.input(what, *v, 2);
    check.like(what, *v, a);
    check(v->shape[0] == a.shape[2] && v->shape[1] == out.shape[1] && contiguous(*v, 1), what,
          "as many rows as a has columns, the columns of out, contiguous", *v);
  }
  check.matrices({{"out", &out}}, a.shape[1], out.shape[1], a);
  Problem made;
  made.a = as_stored("a", a, false);
  made.b = stored(b1);
  made.b2 = stored(b2);
  made.b.transposed = made.b2.transposed = false;
  made.gating = Gating::pair;
  Params& params = made.params;
  params.m = static_cast<int>(a.shape[1]);
  params.n = static_cast<int>(out.shape[1]);
  params.k = params.share_depth = static_cast<int>(a.shape[2]);
  params.groups = params.shares = 1;
  params.pair = true;
  params.out = {out.data, out.stride[0], 0, params.n, 1, false};
  return run(machine, stream, made, {a.read_only(), b1.read_only(), b2.read_only(), out}, out.elements());
}

const runtime::Launcher registered_gated("gemm_gated", launch_gated,
                                         {"x", "b1", "b2", "out", "gate", "value", "halves", "activation"});
const runtime::Launcher registered_backward("gemm_gated_backward", launch_backward,
                                            {"dy", "b", "gate", "value", "dgate", "dvalue", "out", "activation"});
const runtime::Launcher registered_pair("gemm_pair", launch_pair, {"a", "b1", "b2", "out"});

}  // namespace

}  // namespace tkpy::gemm
