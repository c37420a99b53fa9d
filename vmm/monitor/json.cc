#include "vmm/monitor/json.h"

#include <algorithm>
#include <type_traits>

#include <fmt/format.h>

#include "base/ensure.h"

#include <nlohmann/json.hpp>

namespace towline::monitor {
namespace {

/// Builds our value from the library's events; refuses depth and doubled members on the way.
class Builder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return take(Json()); }

  bool boolean(bool value) override { return take(Json(value)); }

  bool number_integer(std::int64_t value) override { return take(Json(value)); }

  bool number_unsigned(std::uint64_t value) override { return take(Json(value)); }

  bool number_float(double value, const std::string& /*text*/) override {
    return take(Json(value));
  }

  bool string(std::string& value) override { return take(Json(std::move(value))); }

  bool binary(nlohmann::json::binary_t& /*value*/) override { return refuse("binary value"); }

  bool start_object(std::size_t /*size*/) override { return open(Json::object()); }

  bool start_array(std::size_t /*size*/) override { return open(Json::array()); }

  bool end_array() override { return close(); }

  bool key(std::string& name) override {
    names_.back() = std::move(name);
    return true;
  }

  bool end_object() override { return !has_twice(*open_.back().members()) && close(); }

  bool parse_error(std::size_t position, const std::string& last,
                   const nlohmann::detail::exception& /*why*/) override {
    return refuse(fmt::format("unexpected input at byte {}, near '{}'", position,
                              std::string_view(last).substr(0, 40)));
  }

  Json result;
  std::string problem;

 private:
  bool refuse(std::string why) {
    problem = std::move(why);
    return false;
  }

  bool open(Json container) {
    if (open_.size() == kMaxJsonDepth) {
      return refuse(fmt::format("nesting deeper than {}", kMaxJsonDepth));
    }
    open_.push_back(std::move(container));
    names_.emplace_back();
    return true;
  }

  bool close() {
    Json done = std::move(open_.back());
    open_.pop_back();
    names_.pop_back();
    return take(std::move(done));
  }

  bool take(Json value) {
    if (open_.empty()) {
      result = std::move(value);
    } else if (open_.back().items() != nullptr) {
      open_.back().add(std::move(value));
    } else {
      // Not set(): a search per member would make a large object cost its size squared.
      const_cast<Json::Object*>(open_.back().members())
          ->push_back({std::move(names_.back()), std::move(value)});
    }
    return true;
  }

  bool has_twice(const Json::Object& members) {
    std::vector<std::string_view> names;
    names.reserve(members.size());
    for (const auto& member : members) {
      names.push_back(member.name);
    }
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    return twice != names.end() &&
           !refuse(fmt::format("member '{}' appears twice", twice->substr(0, 40)));
  }

  std::vector<Json> open_;          // Containers not closed yet, outermost first.
  std::vector<std::string> names_;  // For each of them, the member whose value comes next.
};

/// Strings and reals: escaping and shortest digits are the library's.
std::string scalar(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void write(const Json& json, std::string& out, int indent);

template <typename Items, typename Each>
void write_list(const Items& items, char first, char last, std::string& out, int indent,
                Each each) {
  out += first;
  const char* separator = "";
  for (const auto& item : items) {
    out += separator;
    separator = indent < 0 ? ", " : ",";
    if (indent >= 0) {
      out += '\n' + std::string(static_cast<std::size_t>(indent) + 2, ' ');
    }
    each(item);
  }
  if (indent >= 0 && !items.empty()) {
    out += '\n' + std::string(static_cast<std::size_t>(indent), ' ');
  }
  out += last;
}

void write(const Json& json, std::string& out, int indent) {
  const int deeper = indent < 0 ? indent : indent + 2;
  if (const auto* items = json.items()) {
    write_list(*items, '[', ']', out, indent, [&](const Json& item) { write(item, out, deeper); });
  } else if (const auto* members = json.members()) {
    write_list(*members, '{', '}', out, indent, [&](const Json::Member& member) {
      out += scalar(member.name) + ": ";
      write(member.value, out, deeper);
    });
  } else if (const auto* text = json.text()) {
    out += scalar(*text);
  } else if (const auto boolean = json.boolean()) {
    out += *boolean ? "true" : "false";
  } else if (const auto whole = json.whole()) {
    out += fmt::format("{}", *whole);
  } else if (const auto integer = json.integer()) {
    out += fmt::format("{}", *integer);
  } else if (const auto number = json.number()) {
    out += scalar(*number);
  } else {
    out += "null";
  }
}

}  // namespace

Json Json::object(std::initializer_list<Member> members) {
  Json made;
  made.value_ = Object(members);
  return made;
}

Json Json::array() {
  return Json(Array{});
}

base::Expected<Json> Json::parse(std::string_view text) {
  Builder builder;
  bool good = false;
  try {
    good = nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  } catch (const std::exception& error) {
    // The library reports through parse_error(); this is for memory and for its own bugs.
    builder.problem = error.what();
  }
  if (!good) {
    return base::fail(base::ErrorKind::kCorrupt, "read JSON", builder.problem);
  }
  return std::move(builder.result);
}

std::string Json::dump() const {
  std::string out;
  write(*this, out, -1);
  return out;
}

std::string Json::pretty() const {
  std::string out;
  write(*this, out, 0);
  return out;
}

Json& Json::set(std::string name, Json value) {
  auto* members = std::get_if<Object>(&value_);
  ENSURE(members != nullptr, "set() is for objects");
  const auto there = std::find_if(members->begin(), members->end(),
                                  [&](const Member& one) { return one.name == name; });
  if (there != members->end()) {
    there->value = std::move(value);
  } else {
    members->push_back({std::move(name), std::move(value)});
  }
  return *this;
}

Json& Json::add(Json value) {
  auto* items = std::get_if<Array>(&value_);
  ENSURE(items != nullptr, "add() is for arrays");
  items->push_back(std::move(value));
  return *this;
}

const Json* Json::find(std::string_view name) const {
  if (const auto* members = std::get_if<Object>(&value_)) {
    for (const auto& member : *members) {
      if (member.name == name) {
        return &member.value;
      }
    }
  }
  return nullptr;
}

std::optional<bool> Json::boolean() const {
  const auto* value = std::get_if<bool>(&value_);
  return value == nullptr ? std::nullopt : std::optional(*value);
}

std::optional<std::uint64_t> Json::whole() const {
  if (const auto* value = std::get_if<std::uint64_t>(&value_)) {
    return *value;
  }
  const auto* value = std::get_if<std::int64_t>(&value_);
  return value == nullptr || *value < 0 ? std::nullopt
                                        : std::optional(static_cast<std::uint64_t>(*value));
}

std::optional<std::int64_t> Json::integer() const {
  if (const auto* value = std::get_if<std::int64_t>(&value_)) {
    return *value;
  }
  const auto* value = std::get_if<std::uint64_t>(&value_);
  return value == nullptr || !std::in_range<std::int64_t>(*value)
             ? std::nullopt
             : std::optional(static_cast<std::int64_t>(*value));
}

std::optional<double> Json::number() const {
  return std::visit(
      [](const auto& value) -> std::optional<double> {
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
          return static_cast<double>(value);
        } else {
          return std::nullopt;
        }
      },
      value_);
}

std::string text_of(const Json& object, std::string_view name, std::string_view otherwise) {
  const Json* member = object.find(name);
  return member != nullptr && member->text() != nullptr ? *member->text() : std::string(otherwise);
}

std::uint64_t whole_of(const Json& object, std::string_view name, std::uint64_t otherwise) {
  const Json* member = object.find(name);
  return member == nullptr ? otherwise : member->whole().value_or(otherwise);
}

double number_of(const Json& object, std::string_view name, double otherwise) {
  const Json* member = object.find(name);
  return member == nullptr ? otherwise : member->number().value_or(otherwise);
}

}  // namespace towline::monitor
