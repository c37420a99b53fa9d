#include "base/crc32c.h"

#include <algorithm>
#include <random>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>

namespace towline::runtime {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

std::vector<std::byte> random_bytes(std::mt19937_64& random, std::size_t size) {
  std::vector<std::byte> bytes(size);
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<std::byte>(random()); });
  return bytes;
}

void check_both(std::span<const std::byte> bytes, std::uint32_t expected) {
  CHECK(base::crc32c(bytes) == expected);
  CHECK(base::crc32c_portable(bytes) == expected);
}

TEST_CASE("CRC32C gives the published check value") {
  check_both(bytes_of("123456789"), 0xe3069283U);
  check_both({}, 0);
}

TEST_CASE("CRC32C gives the values of RFC 3720, appendix B.4") {
  std::vector<std::byte> bytes(32, std::byte{0});
  check_both(bytes, 0x8a9136aaU);
  std::fill(bytes.begin(), bytes.end(), std::byte{0xff});
  check_both(bytes, 0x62a8ab43U);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<std::byte>(i);
  }
  check_both(bytes, 0x46dd794eU);
  std::reverse(bytes.begin(), bytes.end());
  check_both(bytes, 0x113fdb5cU);
}

TEST_CASE("the instruction and the table agree on every length and alignment") {
  std::mt19937_64 random(1);
  const std::vector<std::byte> bytes = random_bytes(random, 20'000);
  const std::span<const std::byte> all(bytes);
  for (std::size_t length = 0; length < 300; ++length) {
    const auto part = all.subspan(random() % 64, length);
    REQUIRE(base::crc32c(part) == base::crc32c_portable(part));
  }
  for (int i = 0; i < 400; ++i) {
    const auto part = all.subspan(random() % 64, random() % 19'000);
    const auto seed = static_cast<std::uint32_t>(random());
    REQUIRE(base::crc32c(part, seed) == base::crc32c_portable(part, seed));
  }
}

TEST_CASE("a checksum can be taken in parts") {
  std::mt19937_64 random(2);
  const std::vector<std::byte> bytes = random_bytes(random, 9000);
  const std::span<const std::byte> all(bytes);
  for (const std::size_t cut : {0U, 1U, 7U, 1360U, 4079U, 4080U, 4096U, 8999U, 9000U}) {
    CHECK(base::crc32c(all.subspan(cut), base::crc32c(all.first(cut))) == base::crc32c(all));
  }
}

TEST_CASE("one flipped bit anywhere in a page changes its checksum") {
  std::mt19937_64 random(3);
  std::vector<std::byte> page = random_bytes(random, 4096);
  const std::uint32_t good = base::crc32c(page);
  for (std::size_t at = 0; at < page.size(); at += 13) {
    page[at] ^= std::byte{0x10};
    REQUIRE(base::crc32c(page) != good);
    page[at] ^= std::byte{0x10};
  }
}

TEST_CASE("a page is all zero unless one of its bytes is not, wherever that is") {
  std::vector<std::byte> bytes(4096 + 16, std::byte{0});
  const std::span<std::byte> page = std::span(bytes).subspan(3, 4096 + 5);
  CHECK(base::all_zero(page));
  CHECK(base::all_zero({}));
  for (std::size_t at = 0; at < page.size(); ++at) {
    page[at] = std::byte{1};
    REQUIRE_FALSE(base::all_zero(page));
    page[at] = std::byte{0};
  }
  bytes[2] = std::byte{1};
  bytes[3 + 4096 + 5] = std::byte{1};
  CHECK(base::all_zero(page));
}

}  // namespace
}  // namespace towline::runtime
