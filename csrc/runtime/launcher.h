// Host functions that Python calls by name. A kernel's launch.cpp registers its own; nothing else has to know it:
//
//   std::string scale(Machine& machine, void* stream, const View& x, const std::optional<View>& mask, double factor);
//   const Launcher registered("scale", scale, {"x", "mask", "factor"});
//
// and Python calls tkpy.machine.launch("scale", x, mask, 2.0). A launcher returns the name of the kernel that ran, and
// throws std::invalid_argument for arguments that it cannot serve. Its parameters may be View (a tensor), integers,
// floating-point numbers, bool, std::string_view, and std::optional of any of them (None).
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "machine.h"

namespace tkpy::runtime {

// An argument as it arrives; None is std::monostate. Text is borrowed from the caller.
using Value = std::variant<std::monostate, bool, std::int64_t, double, std::string_view, View>;

// How a Value becomes a parameter of type T: what T is called in messages, and the conversion, nothing when unfit.
template <class T>
struct Parameter;

template <>
struct Parameter<View> {
  static std::string type() { return "a tensor"; }
  static std::optional<View> from(const Value& value) {
    const View* view = std::get_if<View>(&value);
    return view ? std::optional(*view) : std::nullopt;
  }
};

template <>
struct Parameter<bool> {
  static std::string type() { return "a bool"; }
  static std::optional<bool> from(const Value& value) {
    const bool* truth = std::get_if<bool>(&value);
    return truth ? std::optional(*truth) : std::nullopt;
  }
};

template <std::integral T>
struct Parameter<T> {
  static std::string type() {
    return "an int of " + std::to_string(8 * sizeof(T)) + (std::is_signed_v<T> ? " bits" : " bits, not negative");
  }
  static std::optional<T> from(const Value& value) {
    const std::int64_t* number = std::get_if<std::int64_t>(&value);
    return number && std::in_range<T>(*number) ? std::optional(static_cast<T>(*number)) : std::nullopt;
  }
};

template <std::floating_point T>
struct Parameter<T> {
  static std::string type() { return "a number"; }
  static std::optional<T> from(const Value& value) {
    if (const double* number = std::get_if<double>(&value)) return static_cast<T>(*number);
    if (const std::int64_t* number = std::get_if<std::int64_t>(&value)) return static_cast<T>(*number);
    return std::nullopt;
  }
};

template <>
struct Parameter<std::string_view> {
  static std::string type() { return "a str"; }
  static std::optional<std::string_view> from(const Value& value) {
    const std::string_view* text = std::get_if<std::string_view>(&value);
    return text ? std::optional(*text) : std::nullopt;
  }
};

template <class T>
struct Parameter<std::optional<T>> {
  static std::string type() { return Parameter<T>::type() + " or None"; }
  static std::optional<std::optional<T>> from(const Value& value) {
    if (std::holds_alternative<std::monostate>(value)) return std::optional<T>();
    if (std::optional<T> inner = Parameter<T>::from(value)) return std::optional<std::optional<T>>(std::in_place, inner);
    return std::nullopt;
  }
};

std::string describe(const Value& value);  // "f32[3] stride [1]", "7", "None"

class Launcher {
 public:
  struct Described {
    std::string name, type;
  };

  template <class... Ts, std::size_t N>
  Launcher(std::string name, std::string (*function)(Machine&, void*, Ts...), const char* const (&names)[N])
      : name_(std::move(name)) {
    static_assert(N == sizeof...(Ts), "a launcher gives a name to each parameter after the machine and the stream");
    std::size_t i = 0;  // a fold over commas goes from left to right
    (parameters_.push_back({names[i++], Parameter<std::remove_cvref_t<Ts>>::type()}), ...);
    call_ = [this, function](Machine& machine, void* stream, std::span<const Value> values) {
      const auto converted = [&]<std::size_t... I>(std::index_sequence<I...>) {
        return std::tuple{convert<std::remove_cvref_t<Ts>>(values, I)...};  // braces: from left to right
      }(std::index_sequence_for<Ts...>{});
      return std::apply([&](const auto&... value) { return function(machine, stream, value...); }, converted);
    };
    registry().emplace(name_, this);
  }
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  const std::vector<Described>& parameters() const { return parameters_; }

  // Throws std::invalid_argument that names the argument, what it must be and what came.
  std::string operator()(Machine& machine, void* stream, std::span<const Value> values) const;

  // Throws std::invalid_argument with the names there are.
  static const Launcher& named(std::string_view name);

  using Registry = std::multimap<std::string, const Launcher*, std::less<>>;
  static Registry& registry();

 private:
  template <class T>
  T convert(std::span<const Value> values, std::size_t at) const {
    if (std::optional<T> value = Parameter<T>::from(values[at])) return *std::move(value);
    throw std::invalid_argument(name_ + ": " + parameters_[at].name + ": need " + parameters_[at].type + ", got " +
                                describe(values[at]));
  }

  std::string name_;
  std::vector<Described> parameters_;
  std::function<std::string(Machine&, void*, std::span<const Value>)> call_;
};

}  // namespace tkpy::runtime
