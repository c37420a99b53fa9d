#include "tools/human.h"

#include <array>

#include <fmt/format.h>

namespace towline::tools {

std::string human_bytes(std::uint64_t bytes) {
  constexpr std::array kUnits{"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes < 1024) {
    return fmt::format("{} B", bytes);
  }
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  while (value >= 1000 && unit + 1 < kUnits.size()) {  // Not 1024: never "1010 MiB".
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", value, value < 10 ? 2 : 1, kUnits.at(unit));
}

std::string human_us(double us) {
  if (us < 1000) {
    return fmt::format("{:.0f} us", us);
  }
  if (us < 1'000'000) {
    return fmt::format("{:.1f} ms", us / 1000);
  }
  return fmt::format("{:.2f} s", us / 1'000'000);
}

}  // namespace towline::tools
