// An address as a user or a manager writes it, and a page server's.
#include <cstdint>
#include <string>

#include "base/ensure.h"
#include "runtime/options.h"

using towline::runtime::PageServerChoice;
using towline::runtime::Uri;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string words(reinterpret_cast<const char*>(data), size);
  const auto server = PageServerChoice::parse(words);
  ENSURE(server.ok() || !server.error().detail.empty(), "says what is wrong");
  const auto uri = Uri::parse(words);
  if (!uri.ok()) {
    ENSURE(uri.error().detail.find("tcp:HOST:PORT") != std::string::npos, "names what is good");
    return 0;
  }
  const std::string text = uri.value().to_string();
  ENSURE(text.find_first_of(std::string("\0\n\r", 3)) == std::string::npos, "one line");
  const auto again = Uri::parse(text);
  ENSURE(again.ok() && again.value().to_string() == text, "what is written is read the same");
  ENSURE(again.value().is_local() == uri.value().is_local(), "and is as far away");
  return 0;
}
