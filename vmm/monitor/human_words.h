#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "vmm/monitor/json.h"

/// How the human monitor reads and tells words.
namespace towline::monitor {

/// A line's words. One in double quotes may hold blanks; a backslash there takes the next character
/// as it is. Errors: kRefused: a quote that is not closed.
base::Expected<std::vector<std::string>> split_words(std::string_view line);

/// on, yes, true; off, no, false. None: something else.
std::optional<bool> boolean_word(std::string_view word);

/// A parameter's value as its type wants it. Bandwidths before the switch are in MiB/s when no
/// suffix says otherwise, as in QEMU; every other size is in bytes. Suffixes: B, K, M, G, T, in
/// powers of 1024.
/// Errors: kRefused: no value of that type, or no such parameter.
base::Expected<Json> parameter_word(std::string_view parameter, std::string_view word);

/// "migrate [-d] [-r] uri"
std::string usage(std::string_view name, std::string_view options, std::string_view arguments);

}  // namespace towline::monitor
