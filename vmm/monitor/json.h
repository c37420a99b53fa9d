#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"

namespace towline::monitor {

/// Deepest nesting of arrays and objects that is read.
inline constexpr std::size_t kMaxJsonDepth = 64;

/// A JSON value. Objects keep the order in which their members were put.
///
/// The library that reads and writes the text stays in json.cc, and its exceptions with it.
class Json {
 public:
  struct Member;
  using Array = std::vector<Json>;
  using Object = std::vector<Member>;

  // Implicit on purpose: {"status", "completed"} should read like the text it becomes.
  // NOLINTBEGIN(google-explicit-constructor)
  Json();
  Json(bool value);
  template <std::signed_integral T>
  Json(T value);
  template <std::unsigned_integral T>
  Json(T value);
  Json(double value);
  Json(std::string value);
  Json(std::string_view value);
  Json(const char* value);
  Json(Array value);
  // NOLINTEND(google-explicit-constructor)

  static Json object(std::initializer_list<Member> members = {});

  static Json array();

  /// Reads one value and nothing after it.
  ///
  /// Errors: kCorrupt, saying what is wrong and where: syntax, a member twice, nesting deeper
  /// than kMaxJsonDepth, text that is not UTF-8.
  static base::Expected<Json> parse(std::string_view text);

  /// One line, with a blank after each colon and comma as QEMU writes it (people grep for that).
  [[nodiscard]] std::string dump() const;
  /// Several lines, for people.
  [[nodiscard]] std::string pretty() const;

  /// An object's member, replaced if it is there. ENSUREs an object.
  Json& set(std::string name, Json value);
  /// Appends to an array. ENSUREs an array.
  Json& add(Json value);

  /// A member by name; none when there is none or when this is no object.
  [[nodiscard]] const Json* find(std::string_view name) const;

  // The value as that type, or nothing when it is another.
  [[nodiscard]] bool is_null() const { return value_.index() == 0; }

  [[nodiscard]] std::optional<bool> boolean() const;
  [[nodiscard]] std::optional<std::uint64_t> whole() const;   ///< An integer that is not negative.
  [[nodiscard]] std::optional<std::int64_t> integer() const;  ///< An integer that fits.
  [[nodiscard]] std::optional<double> number() const;         ///< Any number.

  [[nodiscard]] const std::string* text() const { return std::get_if<std::string>(&value_); }

  [[nodiscard]] const Array* items() const { return std::get_if<Array>(&value_); }

  [[nodiscard]] const Object* members() const { return std::get_if<Object>(&value_); }

 private:
  std::variant<std::monostate, bool, std::int64_t, std::uint64_t, double, std::string, Array,
               Object>
      value_;
};

struct Json::Member {
  std::string name;
  Json value;
};

// Below Member, which the variant needs to be whole.

inline Json::Json() = default;

inline Json::Json(bool value) : value_(value) {
}

template <std::signed_integral T>
Json::Json(T value) : value_(static_cast<std::int64_t>(value)) {
}

template <std::unsigned_integral T>
Json::Json(T value) : value_(static_cast<std::uint64_t>(value)) {
}

inline Json::Json(double value) : value_(value) {
}

inline Json::Json(std::string value) : value_(std::move(value)) {
}

inline Json::Json(std::string_view value) : value_(std::string(value)) {
}

inline Json::Json(const char* value) : value_(std::string(value)) {
}

inline Json::Json(Array value) : value_(std::move(value)) {
}

// For readers of answers: a member's value, or `otherwise` when it is not there.
std::string text_of(const Json& object, std::string_view name, std::string_view otherwise = "");
std::uint64_t whole_of(const Json& object, std::string_view name, std::uint64_t otherwise = 0);
double number_of(const Json& object, std::string_view name, double otherwise = 0);

}  // namespace towline::monitor
