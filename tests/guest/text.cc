#include "tests/guest/text.h"

namespace guest {

void Line::put(char c) {
  if (size_ < kCapacity) {
    bytes_[size_++] = c;
  }
}

Line& Line::text(const char* words) {
  for (; *words != '\0'; ++words) {
    put(*words);
  }
  return *this;
}

void Line::number(std::uint64_t value, unsigned base) {
  char digits[20];
  unsigned count = 0;
  do {
    digits[count++] = "0123456789abcdef"[value % base];
    value /= base;
  } while (value != 0);
  while (count != 0) {
    put(digits[--count]);
  }
}

Line& Line::decimal(std::uint64_t value) {
  number(value, 10);
  return *this;
}

Line& Line::hex(std::uint64_t value) {
  text("0x");
  number(value, 16);
  return *this;
}

Line& Line::field(const char* key, std::uint64_t value) {
  return text(" ").text(key).text("=").decimal(value);
}

Line& Line::field(const char* key, const char* value) {
  return text(" ").text(key).text("=").text(value);
}

Line& Line::hex_field(const char* key, std::uint64_t value) {
  return text(" ").text(key).text("=").hex(value);
}

bool Word::operator==(const char* other) const {
  for (std::uint32_t i = 0; i < size; ++i) {
    if (other[i] == '\0' || other[i] != first[i]) {
      return false;
    }
  }
  return other[size] == '\0';
}

namespace {

int digit_of(char c) {
  if (c >= '0' && c <= '9') {
    return c - '0';
  }
  if (c >= 'a' && c <= 'f') {
    return c - 'a' + 10;
  }
  return -1;
}

unsigned unit_shift(char c) {
  switch (c) {
    case 'K':
      return 10;
    case 'M':
      return 20;
    case 'G':
      return 30;
    default:
      return 0;
  }
}

}  // namespace

bool parse_number(Word word, std::uint64_t& value) {
  unsigned shift = 0;
  if (word.size != 0) {
    shift = unit_shift(word.first[word.size - 1]);
    word.size -= shift != 0 ? 1 : 0;
  }
  unsigned base = 10;
  if (word.size > 2 && word.first[0] == '0' && word.first[1] == 'x') {
    base = 16;
    word = Word{word.first + 2, word.size - 2};
  }
  if (word.size == 0 || word.size > 18) {
    return false;
  }
  std::uint64_t sum = 0;
  for (std::uint32_t i = 0; i < word.size; ++i) {
    const int digit = digit_of(word.first[i]);
    if (digit < 0 || digit >= static_cast<int>(base)) {
      return false;
    }
    sum = sum * base + static_cast<unsigned>(digit);
  }
  if (shift != 0 && sum >> (64U - shift) != 0) {
    return false;
  }
  value = sum << shift;
  return true;
}

}  // namespace guest
