#include "tests/support/test_machine.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <utility>

#include "base/ensure.h"
#include "uffd/capabilities.h"

namespace towline::tests {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kWords = kPage / sizeof(std::uint64_t);

std::uint64_t mix(std::uint64_t page, std::uint32_t generation, std::uint64_t word) {
  std::uint64_t value = page * 0x9e3779b97f4a7c15U + generation * 0xbf58476d1ce4e5b9U + word;
  value ^= value >> 31U;
  return value * 0x94d049bb133111ebU;
}

std::uint64_t used_pages(const TestMachine::Config& config) {
  return config.working_set + config.log;
}

}  // namespace

base::Outcome SoftwareDirtyLog::enable() {
  for (auto& word : words_) {
    word = ~0ULL;
  }
  enabled_ = true;
  return base::Done{};
}

void SoftwareDirtyLog::disable() {
  enabled_ = false;
  if (when_it_ends_) {
    when_it_ends_();
  }
}

base::Outcome SoftwareDirtyLog::read(std::size_t /*region*/, std::span<std::uint64_t> bitmap) {
  ENSURE(bitmap.size() == words_.size(), "the bitmap covers the region");
  std::copy(words_.begin(), words_.end(), bitmap.begin());
  return base::Done{};
}

base::Outcome SoftwareDirtyLog::clear(std::size_t /*region*/, std::uint64_t first,
                                      std::uint64_t count, std::span<const std::uint64_t> bitmap) {
  ENSURE(first % 64 == 0 && (count % 64 == 0 || first + count == pages_),
         "cleared in whole words, as KVM wants it");
  for (std::size_t i = 0; i < bitmap.size(); ++i) {
    words_[first / 64 + i] &= ~bitmap[i];
  }
  return base::Done{};
}

void SoftwareDirtyLog::mark(std::uint64_t page) {
  if (enabled_) {
    words_[page / 64] |= 1ULL << (page % 64);
  }
}

TestMachine::TestMachine(const Config& config)
    : config_(config),
      log_(config.pages),
      gate_(config.incoming ? runtime::Ownership::kIncoming : runtime::Ownership::kHere),
      generations_(config.pages) {
  ENSURE(used_pages(config) <= config.pages, "what the guest writes is inside the machine");
  fd_.reset(config.memory < 0
                ? ::memfd_create("towline-test",
                                 MFD_CLOEXEC | (config.huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0U))
                : ::fcntl(config.memory, F_DUPFD_CLOEXEC, 0));
  const std::uint64_t size = config.pages * kPage;
  ENSURE(fd_.valid() && ::ftruncate(fd_.get(), static_cast<off_t>(size)) == 0, "a memfd");
  ENSURE(!config.huge || config.incoming ||
             ::fallocate(fd_.get(), 0, 0, static_cast<off_t>(size)) == 0,
         "a machine that has its huge pages from the beginning");
  void* mapped =
      ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_.get(), 0);
  ENSURE(mapped != MAP_FAILED, "a mapping");
  mapping_ = static_cast<std::byte*>(mapped);
  runtime::Region region;
  region.name = "ram";
  region.size = base::Bytes{size};
  if (config.huge) {
    region.page_size = base::kHugePage;
    region.backing = runtime::Backing::kHugetlb;
  }
  region.fd = fd_.get();
  region.mapping = base::HostAddress{reinterpret_cast<std::uintptr_t>(mapping_)};
  regions_.push_back(region);
  if (!config.incoming) {
    for (std::uint64_t page = 0; page < config.working_set; ++page) {
      generations_[page] = 1;
      fill(page, 1);
    }
  }
}

TestMachine::~TestMachine() {
  stop();
  ::munmap(mapping_, config_.pages * kPage);
}

std::uint64_t* TestMachine::page(std::uint64_t number) const {
  return reinterpret_cast<std::uint64_t*>(mapping_ + number * kPage);
}

bool TestMachine::is_zero(std::uint64_t number) const {
  return std::all_of(page(number), page(number) + kWords, [](auto word) { return word == 0; });
}

void TestMachine::fill(std::uint64_t number, std::uint32_t generation) const {
  std::uint64_t* words = page(number);
  for (std::uint64_t word = 0; word < kWords; ++word) {
    words[word] = mix(number, generation, word);
  }
}

bool TestMachine::matches(std::uint64_t number, std::uint32_t generation) const {
  const std::uint64_t* words = page(number);
  for (std::uint64_t word = 0; word < kWords; ++word) {
    if (words[word] != mix(number, generation, word)) {
      return false;
    }
  }
  return true;
}

// Guest threads own disjoint pages: page % guests.
void TestMachine::access(unsigned number, std::uint64_t random) {
  const std::uint64_t own = config_.working_set / config_.guests;
  const std::uint64_t at = (random >> 8U) % own * config_.guests + number;
  const std::uint32_t generation = generations_[at];
  if (!matches(at, generation)) {
    ++corrupt_;
  }
  if ((random & 1U) != 0) {
    write(at);
  }
  ++accesses_;
}

void TestMachine::write(std::uint64_t number) {
  log_.mark(number);
  const std::uint32_t generation = ++generations_[number];
  fill(number, generation);
  log_.mark(number);
}

void TestMachine::write_log() {
  for (std::uint64_t number = config_.working_set; number < used_pages(config_); ++number) {
    write(number);
  }
}

void TestMachine::guest(unsigned number) {
  std::mt19937_64 random(number + 1);
  while (true) {
    {
      const base::Lock lock(mutex_);
      if (inside_ > 0 && (parking_ || stopping_)) {
        --inside_;
        if (inside_ == 0 && parked_) {
          write_log();
          std::exchange(parked_, nullptr)();
        }
        changed_.notify_all();
        changed_.wait(mutex_,
                      [this]() UNDER_LOCK { return stopping_ || (!parking_ && gate_.may_run()); });
        if (stopping_) {
          return;
        }
        ++inside_;
      }
    }
    for (int i = 0; i < 16; ++i) {
      access(number, random());
    }
    const base::Lock lock(mutex_);
    changed_.notify_all();
  }
}

void TestMachine::start() {
  {
    const base::Lock lock(mutex_);
    ENSURE(gate_.may_run(), "nobody runs a guest that is not here");
    inside_ = config_.guests;
  }
  for (unsigned number = 0; number < config_.guests; ++number) {
    threads_.emplace_back([this, number] { guest(number); });
  }
}

void TestMachine::stop() {
  {
    const base::Lock lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) {
    thread.join();
  }
  threads_.clear();
}

void TestMachine::park(std::function<void()> parked) {
  const base::Lock lock(mutex_);
  parking_ = true;
  if (inside_ == 0) {
    parked();
    return;
  }
  parked_ = std::move(parked);
}

void TestMachine::unpark() {
  const base::Lock lock(mutex_);
  parking_ = false;
  changed_.notify_all();
}

void TestMachine::start_here(std::function<void()> entered) {
  entered();
  start();
}

void TestMachine::wait_for_accesses(std::uint64_t more) {
  const std::uint64_t wanted = accesses_ + more;
  const base::Lock lock(mutex_);
  changed_.wait(mutex_, [&]() UNDER_LOCK { return accesses_ >= wanted; });
}

runtime::MachineState TestMachine::shape() const {
  runtime::Section section;
  section.device = "test";
  section.put_text("model", config_.model);
  return runtime::MachineState{{section}};
}

std::vector<std::string> TestMachine::refusals(const runtime::MachineState& source) const {
  const runtime::Section* section = source.find("test");
  const auto model =
      section == nullptr ? base::Expected<std::string>(std::string()) : section->get_text("model");
  if (!model.ok() || model.value() != config_.model) {
    return {"the model is '" + (model.ok() ? model.value() : "") + "' at the source and '" +
            config_.model + "' at the target"};
  }
  return {};
}

base::Expected<runtime::MachineState> TestMachine::save() {
  runtime::Section section;
  section.device = "test";
  std::vector<std::uint32_t> table(generations_.begin(), generations_.end());
  section.put_bytes("generations", std::as_bytes(std::span(table)));
  return runtime::MachineState{{section}};
}

base::Outcome TestMachine::load(const runtime::MachineState& state) {
  if (config_.refuses_state) {
    return base::fail(base::ErrorKind::kFailed, "load", "this machine takes no state");
  }
  const runtime::Section* section = state.find("test");
  if (section == nullptr) {
    return base::fail(base::ErrorKind::kCorrupt, "load", "no section 'test'");
  }
  const auto bytes = TRY(section->get_bytes("generations", generations_.size() * 4));
  for (std::size_t i = 0; i < generations_.size(); ++i) {
    std::uint32_t generation = 0;
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(i * 4), 4,
                std::as_writable_bytes(std::span(&generation, 1)).begin());
    generations_[i] = generation;
  }
  if (config_.read_by_load.has_value()) {
    const std::uint64_t size = regions_.front().page_size.value;
    const auto* const page = reinterpret_cast<const volatile std::byte*>(
        regions_.front().mapping.value + *config_.read_by_load * size);
    [[maybe_unused]] const std::byte first = *page;
  }
  return base::Done{};
}

std::vector<base::PageIndex> TestMachine::first_pages() {
  std::vector<base::PageIndex> pages;
  for (std::uint64_t page = 0; page < config_.first_pages; ++page) {
    pages.push_back(base::PageIndex{page});
  }
  return pages;
}

std::uint64_t TestMachine::sweep() {
  std::uint64_t wrong = 0;
  const std::uint64_t used = used_pages(config_);
  for (std::uint64_t at = 0; at < used; ++at) {
    // A log that was never written is zeros, as is what a hole reads.
    const bool right = generations_[at] == 0 ? is_zero(at) : matches(at, generations_[at]);
    wrong += right ? 0 : 1;
  }
  const off_t hole = static_cast<off_t>(used * kPage);
  if (config_.huge) {
    for (std::uint64_t at = used; at < config_.pages; ++at) {
      wrong += is_zero(at) ? 0 : 1;
    }
    return wrong;
  }
  if (used < config_.pages && ::lseek(fd_.get(), hole, SEEK_DATA) >= 0) {
    ++wrong;  // Untouched memory must not have become pages.
  }
  return wrong;
}

bool can_serve_faults() {
  const auto& capabilities = uffd::capabilities();
  if (!capabilities.ok()) {
    std::printf("SKIP: %s\n", base::to_string(capabilities.error()).c_str());
  }
  return capabilities.ok();
}

}  // namespace towline::tests
