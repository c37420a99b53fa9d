#include "vmm/kvm/kvm.h"

#include <string>

#include <doctest/doctest.h>

#include "vmm/guest_memory.h"
#include "vmm/kvm/dirty_log.h"

namespace towline::vmm {
namespace {

bool mentions(const std::string& text, const std::string& what) {
  return text.find(what) != std::string::npos;
}

TEST_CASE("a /dev/kvm that is not there says what to load") {
  const auto missing = Kvm::open("/nothing/kvm");
  REQUIRE_FALSE(missing.ok());
  CHECK(missing.error().kind == base::ErrorKind::kUnsupported);
  CHECK(mentions(to_string(missing.error()), "/nothing/kvm"));
  CHECK(mentions(to_string(missing.error()), "load the module"));
}

TEST_CASE("a /dev/kvm that is something else says which version it should speak") {
  const auto other = Kvm::open("/dev/null");
  REQUIRE_FALSE(other.ok());
  CHECK(other.error().kind == base::ErrorKind::kUnsupported);
  CHECK(mentions(other.error().detail, "KVM API version -1, needed is 12"));
}

TEST_CASE("a dirty log refuses bitmaps and ranges that do not fit before it asks the kernel") {
  const auto memory = GuestMemory::create(base::Bytes{100 * 4096}, 46);
  REQUIRE(memory.ok());
  const KvmVm nobody(base::OwnedFd(), 0);
  KvmDirtyLog log(nobody, memory.value().regions());
  std::vector<std::uint64_t> words(2);
  const auto refused = [](const base::Outcome& outcome) {
    return !outcome.ok() && outcome.error().errno_value == 0;
  };
  CHECK(refused(log.read(0, std::span(words).first(1))));
  CHECK(refused(log.read(1, words)));
  CHECK(refused(log.clear(0, 1, 64, words)));
  CHECK(refused(log.clear(0, 0, 63, words)));
  CHECK(refused(log.clear(0, 64, 64, words)));
  CHECK(refused(log.clear(0, 128, ~std::uint64_t{0} - 127, words)));
  CHECK(refused(log.clear(0, 0, 100, std::span(words).first(1))));
  CHECK(refused(log.clear(1, 0, 64, words)));
  // This one fits, and fails only because there is no machine.
  const auto fits = log.clear(0, 64, 36, words);
  REQUIRE_FALSE(fits.ok());
  CHECK(fits.error().errno_value != 0);
}

}  // namespace
}  // namespace towline::vmm
