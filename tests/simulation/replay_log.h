#pragma once

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "runtime/options.h"

/// Logs of the debug level as traces of a brain.
namespace towline::replay {

/// A log line's fields, by name.
using Fields = std::map<std::string, std::string>;

/// Of `line` from `at` on.
Fields fields_of(const std::string& line, std::size_t at);

template <typename Number = std::uint64_t>
Number number(const std::string& text) {
  const bool hex = text.starts_with("0x");
  Number value{};
  const char* const end = text.data() + text.size();
  std::from_chars(text.data() + (hex ? 2 : 0), end, value, hex ? 16 : 10);
  return value;
}

/// The kind of this name. Ends the program if there is none.
template <typename Kind>
Kind kind_named(const std::string& name) {
  for (int i = 0; i < 64; ++i) {
    const auto kind = static_cast<Kind>(i);
    if (to_string(kind) == name) {
      return kind;
    }
  }
  std::cerr << "replay: no kind is called '" << name << "'\n";
  std::exit(2);
}

/// Ends the program if it is no address.
runtime::Uri uri(const std::string& text);

/// The error of an input, if it has one.
std::optional<base::Error> error_of(const Fields& told);

/// A brain that ships, fed with what one was told in the field.
class Replay {
 public:
  Replay() = default;
  Replay(const Replay&) = delete;
  Replay& operator=(const Replay&) = delete;
  virtual ~Replay() = default;

  /// A line of the trace: its event, behind "source." or "target.", and its fields. False: it asked
  /// for something else then; the difference was printed.
  virtual bool take(const std::string& event, const Fields& told) = 0;

  [[nodiscard]] std::size_t inputs() const { return inputs_; }

  [[nodiscard]] std::size_t outputs() const { return outputs_; }

 protected:
  void note_input() { ++inputs_; }

  /// What the brain asks for now, in order.
  void owe(std::string what) { due_.push_back(std::move(what)); }

  bool compare(const std::string& then);
  bool owes_nothing() const;

 private:
  std::deque<std::string> due_;
  std::size_t inputs_ = 0;
  std::size_t outputs_ = 0;
};

std::unique_ptr<Replay> replay_source(const Fields& brain);
std::unique_ptr<Replay> replay_target(const Fields& brain);

}  // namespace towline::replay
