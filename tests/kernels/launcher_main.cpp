// A launcher with a parameter of every kind, called with what the command line says; prints what arrived or the refusal.
#include "runtime/launcher.h"

#include <cstdio>

using namespace tkpy::runtime;

namespace {

std::string everything(Machine& machine, void* stream, const View& x, const std::optional<View>& mask, int small,
                       std::int64_t large, std::uint32_t count, double factor, float narrow, bool flag,
                       std::string_view text, std::optional<double> scale) {
  std::printf("%s %p | %s | %s | %d %lld %u | %g %g | %d %s | %s\n", machine.name(), stream, x.describe().c_str(),
              mask ? mask->describe().c_str() : "None", small, static_cast<long long>(large), count, factor, narrow, flag,
              std::string(text).c_str(), scale ? std::to_string(*scale).c_str() : "None");
  return "ran";
}
const Launcher registered("everything", everything,
                          {"x", "mask", "small", "large", "count", "factor", "narrow", "flag", "text", "scale"});

std::string nothing(Machine&, void*, int) { return ""; }
const Launcher one("twice", nothing, {"n"}), other("twice", nothing, {"n"});

struct NoMachine final : Machine {
  const char* name() const override { return "none"; }
  int multiprocessors(int) override { return 1; }
  int resident_clusters(const Kernel&, const LaunchSpec&) override { return 1; }
  const Kernel& kernel(std::string_view, std::string_view) override { throw MachineError("no kernel"); }
  void add_image(std::string_view, std::string) override {}
  tk::tensor_map encode(const TensorMapSpec&) override { return {}; }
  void launch(const Kernel&, const LaunchSpec&) override {}
};

void attempt(const char* name, const std::vector<Value>& values) {
  NoMachine machine;
  try {
    std::printf("%s\n", Launcher::named(name)(machine, reinterpret_cast<void*>(0x10), values).c_str());
  } catch (const std::invalid_argument& error) {
    std::printf("%s\n", error.what());
  }
}

}  // namespace

int main() {
  View x{.data = reinterpret_cast<void*>(16), .rank = 1, .shape = {3}, .stride = {1}};
  const std::vector<Value> right = {x, {}, std::int64_t{-7}, std::int64_t{1} << 40, std::int64_t{4000000000}, 2.5,
                                    std::int64_t{3}, true, std::string_view("silu"), {}};
  attempt("everything", right);
  const auto with = [&](std::size_t at, Value value) {
    std::vector<Value> changed = right;
    changed[at] = value;
    attempt("everything", changed);
  };
  with(1, x), with(9, 0.5);
  with(0, {}), with(1, true), with(2, std::int64_t{1} << 31), with(2, true), with(3, 2.0), with(4, std::int64_t{-1});
  with(5, std::string_view("2")), with(7, std::int64_t{1}), with(8, {}), with(9, x);
  attempt("everything", {});
  attempt("twice", {std::int64_t{1}});
  attempt("nowhere", {});
}
