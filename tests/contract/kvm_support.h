#pragma once

#include <poll.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/machine_state.h"
#include "tests/contract/tiny_guest.h"
#include "vmm/machine.h"

namespace towline::vmm {

using runtime::MachineState;
using runtime::Ownership;
using runtime::OwnershipEvent;
using tests::TinyGuest;

/// A directory of its own for one test case.
class Scratch {
 public:
  Scratch() {
    std::string pattern = (std::filesystem::temp_directory_path() / "towline-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path_ = pattern;
  }

  ~Scratch() { std::filesystem::remove_all(path_); }

  [[nodiscard]] std::string file(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

/// Waits for something that another thread or the guest is on its way to; false after a minute.
template <typename Condition>
bool eventually(Condition condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) {
      return false;
    }
    ::poll(nullptr, 0, 1);
  }
  return true;
}

template <typename T>
T peek(runtime::Machine& machine, std::uint64_t at) {
  T value{};
  const auto& region = machine.regions().front();
  // The guest writes it meanwhile: an aligned load, whole or not at all.
  __atomic_load(reinterpret_cast<const T*>(region.mapping.value + at), &value, __ATOMIC_ACQUIRE);
  return value;
}

inline std::uint32_t counter(runtime::Machine& machine) {
  return peek<std::uint32_t>(machine, tests::kCounterAt);
}

inline void park_and_wait(runtime::Machine& machine) {
  const auto parked = std::make_shared<std::promise<void>>();
  machine.park([parked] { parked->set_value(); });
  REQUIRE(parked->get_future().wait_for(std::chrono::minutes(1)) == std::future_status::ready);
}

inline void copy_memory(runtime::Machine& from, runtime::Machine& to) {
  for (std::size_t i = 0; i < from.regions().size(); ++i) {
    std::memcpy(reinterpret_cast<void*>(to.regions()[i].mapping.value),
                reinterpret_cast<const void*>(from.regions()[i].mapping.value),
                from.regions()[i].size.value);
  }
}

/// What a machine told its listener, in order.
class Diary final : public MachineListener {
 public:
  void on_stop() override { note("stop"); }

  void on_resume() override { note("resume"); }

  void on_reset() override { note("reset"); }

  void on_shutdown(ShutdownCause cause) override {
    note(cause == ShutdownCause::kGuestReset ? "shutdown by reset" : "shutdown");
  }

  void on_failure(const std::string& reason) override { note("failure: " + reason); }

  [[nodiscard]] std::vector<std::string> entries() const {
    const std::lock_guard lock(mutex_);
    return entries_;
  }

  [[nodiscard]] bool has(const std::string& entry) const {
    const auto all = entries();
    return std::find(all.begin(), all.end(), entry) != all.end();
  }

 private:
  void note(std::string entry) {
    const std::lock_guard lock(mutex_);
    entries_.push_back(std::move(entry));
  }

  mutable std::mutex mutex_;
  std::vector<std::string> entries_;
};

struct Fixture {
  using Change = std::function<void(MachineConfig&)>;

  Fixture() { TinyGuest::write(scratch.file("kernel")); }

  std::unique_ptr<KvmMachine> machine(bool incoming, std::uint32_t vcpus = 1,
                                      const Change& change = {}) {
    MachineConfig config = config_of(incoming, vcpus);
    if (change) {
      change(config);
    }
    auto made = KvmMachine::create(config);
    REQUIRE_MESSAGE(made.ok(), (made.ok() ? "" : to_string(made.error())));
    auto result = std::move(made).value();
    result->set_listener(&diary);
    return result;
  }

  [[nodiscard]] MachineConfig config_of(bool incoming, std::uint32_t vcpus = 1) const {
    MachineConfig config;
    config.kernel = incoming ? "" : scratch.file("kernel");
    config.memory = base::Bytes{16UL << 20U};
    config.vcpus = vcpus;
    config.serial = "file:" + scratch.file(incoming ? "in.txt" : "out.txt");
    config.incoming = incoming;
    return config;
  }

  /// A tiny guest that has counted, parked for a hand-over.
  std::unique_ptr<KvmMachine> parked_source(std::uint32_t vcpus = 1) {
    auto source = machine(false, vcpus);
    source->start();
    REQUIRE(eventually([&] { return counter(*source) > 100; }));
    REQUIRE(source->gate().step(OwnershipEvent::kHold).ok());
    park_and_wait(*source);
    return source;
  }

  Scratch scratch;
  Diary diary;
};

inline bool mentions(const std::string& text, const std::string& what) {
  return text.find(what) != std::string::npos;
}

inline MachineState saved_and_sent(runtime::Machine& machine) {
  auto saved = machine.save();
  REQUIRE_MESSAGE(saved.ok(), (saved.ok() ? "" : to_string(saved.error())));
  const auto bytes = encode(saved.value());
  REQUIRE(bytes.ok());
  auto state = runtime::decode(bytes.value());
  REQUIRE(state.ok());
  return std::move(state).value();
}

inline void hand_over(runtime::Machine& source, runtime::Machine& target,
                      const MachineState& state) {
  copy_memory(source, target);
  const auto loaded = target.load(state);
  REQUIRE_MESSAGE(loaded.ok(), (loaded.ok() ? "" : to_string(loaded.error())));
  REQUIRE(source.gate().step(OwnershipEvent::kOrder).ok());
  REQUIRE(target.gate().step(OwnershipEvent::kTake).ok());
  target.start_here([] {});
}

}  // namespace towline::vmm
