#pragma once

#include <cstdint>

namespace guest {

/// One line of text in a fixed buffer. What does not fit is cut off.
class Line {
 public:
  explicit Line(const char* event) { text(event); }

  Line& text(const char* words);
  Line& decimal(std::uint64_t value);
  Line& hex(std::uint64_t value);
  /// " key=value"
  Line& field(const char* key, std::uint64_t value);
  Line& field(const char* key, const char* value);
  Line& hex_field(const char* key, std::uint64_t value);

  [[nodiscard]] const char* data() const { return bytes_; }

  [[nodiscard]] std::uint32_t size() const { return size_; }

 private:
  static constexpr std::uint32_t kCapacity = 768;

  void put(char c);
  void number(std::uint64_t value, unsigned base);

  std::uint32_t size_ = 0;
  char bytes_[kCapacity];
};

/// Words of a longer text. Not terminated.
struct Word {
  const char* first = nullptr;
  std::uint32_t size = 0;

  bool operator==(const char* other) const;
};

/// Decimal, 0x-hexadecimal, with an optional K, M or G (powers of 1024). False if it is none.
bool parse_number(Word word, std::uint64_t& value);

}  // namespace guest
