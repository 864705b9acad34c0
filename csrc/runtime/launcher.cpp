#include "launcher.h"

namespace tkpy::runtime {

std::string describe(const Value& value) {
  struct {
    std::string operator()(std::monostate) const { return "None"; }
    std::string operator()(bool truth) const { return truth ? "True" : "False"; }
    std::string operator()(std::int64_t number) const { return std::to_string(number); }
    std::string operator()(double number) const { return std::to_string(number); }
    std::string operator()(std::string_view text) const { return '"' + std::string(text) + '"'; }
    std::string operator()(const View& view) const { return view.describe(); }
  } in_words;
  return std::visit(in_words, value);
}

// A function's own static: launchers register while static objects are still being made.
Launcher::Registry& Launcher::registry() {
  static Registry launchers;
  return launchers;
}

const Launcher& Launcher::named(std::string_view name) {
  const auto [first, last] = registry().equal_range(name);
  if (first == last) {
    std::string known;
    for (const auto& [each, launcher] : registry()) known += (known.empty() ? "" : ", ") + each;
    throw std::invalid_argument("no launcher " + std::string(name) + "; there are: " + known);
  }
  if (std::next(first) != last) throw std::invalid_argument("two launchers are called " + std::string(name));
  return *first->second;
}

std::string Launcher::operator()(Machine& machine, void* stream, std::span<const Value> values) const {
  if (values.size() != parameters_.size())
    throw std::invalid_argument(name_ + ": need " + std::to_string(parameters_.size()) + " arguments, got " +
                                std::to_string(values.size()));
  return call_(machine, stream, values);
}

}  // namespace tkpy::runtime
