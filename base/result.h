#pragma once

#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

namespace towline::base {

/// The failing half of a Result. `return Err{error};` reads like the sentence it is.
template <typename E>
struct [[nodiscard]] Err {
  E error;
};

template <typename E>
Err(E) -> Err<E>;

/// Either a T or the reason there is none.
///
/// Expected outcomes belong in T (an enum, a variant, an optional); E is for what the caller
/// cannot be asked to plan for. Stand-in for std::expected, which clang-tidy 14 cannot parse out
/// of libstdc++ 12.
template <typename T, typename E>
class [[nodiscard]] Result {
 public:
  using Value = T;
  using Error = E;

  Result(T value)  // NOLINT(google-explicit-constructor): `return value;` is the point.
      : state_(std::in_place_index<0>, std::move(value)) {}

  template <typename F>
  Result(Err<F> err)  // NOLINT(google-explicit-constructor): `return Err{...};` is the point.
      : state_(std::in_place_index<1>, E(std::move(err.error))) {}

  [[nodiscard]] bool ok() const { return state_.index() == 0; }

  [[nodiscard]] T& value() & { return *std::get_if<0>(&state_); }

  [[nodiscard]] const T& value() const& { return *std::get_if<0>(&state_); }

  [[nodiscard]] T&& value() && { return std::move(*std::get_if<0>(&state_)); }

  [[nodiscard]] const E& error() const& { return *std::get_if<1>(&state_); }

  [[nodiscard]] E&& error() && { return std::move(*std::get_if<1>(&state_)); }

 private:
  std::variant<T, E> state_;
};

struct Done {};

/// A Result with nothing to say on success: `return Done{};`.
template <typename E>
using Status = Result<Done, E>;

}  // namespace towline::base

/// Evaluates to the value of `expr`, or returns its error from the enclosing function.
#define TRY(expr)                                                 \
  __extension__({                                                 \
    auto&& try_result = (expr);                                   \
    if (!try_result.ok()) [[unlikely]] {                          \
      return ::towline::base::Err{std::move(try_result).error()}; \
    }                                                             \
    std::move(try_result).value();                                \
  })
