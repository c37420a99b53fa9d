#pragma once

#include <cstdint>
#include <string>

/// Quantities as people read them.
namespace towline::tools {

/// "1.5 GiB", "0 B"
std::string human_bytes(std::uint64_t bytes);

/// "85 us", "2.1 ms", "3.20 s"
std::string human_us(double us);

}  // namespace towline::tools
