#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace towline::runtime {

/// How a field's bytes are to be read; enough for a dump tool to print it without the code.
enum class FieldType : std::uint8_t { kUnsigned = 0, kBytes = 1, kText = 2, kWords64 = 3 };

/// One named value of a section, little-endian.
struct Field {
  std::string name;
  FieldType type = FieldType::kBytes;
  std::vector<std::byte> bytes;
};

/// The state of one device or vCPU, described well enough to be read by another version.
struct Section {
  std::string device;  ///< "vcpu", "ioapic", "uart"
  std::uint32_t instance = 0;
  std::uint32_t version = 1;
  std::vector<Field> fields;
  std::vector<Section> subsections;  ///< Present only when needed; one level deep.

  void put(std::string_view name, std::uint64_t value);
  void put_bytes(std::string_view name, std::span<const std::byte> value);
  void put_text(std::string_view name, std::string_view value);

  /// Errors: kCorrupt, naming section, instance, field and what was found instead.
  [[nodiscard]] base::Expected<std::uint64_t> get(std::string_view name) const;
  [[nodiscard]] base::Expected<std::span<const std::byte>> get_bytes(std::string_view name) const;
  /// As get_bytes(), and the length must be `size`.
  [[nodiscard]] base::Expected<std::span<const std::byte>> get_bytes(std::string_view name,
                                                                     std::size_t size) const;
  [[nodiscard]] base::Expected<std::string> get_text(std::string_view name) const;
  [[nodiscard]] bool has(std::string_view name) const;
};

/// A machine, as sections. Used for what a machine *is* (its shape: sent before any memory) and
/// for what it *was doing* (its state: sent with the switch).
struct MachineState {
  std::vector<Section> sections;

  [[nodiscard]] const Section* find(std::string_view device, std::uint32_t instance = 0) const;
  [[nodiscard]] std::size_t count(std::string_view device) const;
};

/// Limits that decode() enforces before it allocates.
inline constexpr std::size_t kMaxStateBytes = 16U << 20U;
inline constexpr std::size_t kMaxSections = 4096;
inline constexpr std::size_t kMaxFields = 4096;
inline constexpr std::size_t kMaxNameBytes = 64;

/// Errors: kFailed when the state exceeds the limits above.
base::Expected<std::vector<std::byte>> encode(const MachineState& state);

/// Errors: kCorrupt, naming section, field, offset. Never allocates more than a small multiple of
/// `bytes.size()`, whatever the bytes say.
base::Expected<MachineState> decode(std::span<const std::byte> bytes);

}  // namespace towline::runtime
