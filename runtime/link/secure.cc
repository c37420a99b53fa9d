#include "runtime/link/secure.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include "base/ensure.h"

namespace towline::runtime {

void random_bytes(std::span<std::byte> into) {
  ENSURE(
      RAND_bytes(reinterpret_cast<unsigned char*>(into.data()), static_cast<int>(into.size())) == 1,
      "the system has no random numbers");
}

std::uint64_t random_number() {
  std::uint64_t number = 0;
  random_bytes(std::as_writable_bytes(std::span(&number, 1)));
  return number;
}

Mac hmac_sha256(std::span<const std::byte> key, std::span<const std::byte> message) {
  Mac mac{};
  unsigned int length = 0;
  const unsigned char* made =
      HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
           reinterpret_cast<const unsigned char*>(message.data()), message.size(),
           reinterpret_cast<unsigned char*>(mac.data()), &length);
  ENSURE(made != nullptr && length == mac.size(), "HMAC-SHA256 is always available");
  return mac;
}

bool equal_in_constant_time(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace towline::runtime
