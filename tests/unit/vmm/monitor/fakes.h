#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "base/event_loop.h"
#include "base/fd.h"
#include "vmm/monitor/commands.h"
#include "vmm/monitor/guest.h"
#include "vmm/monitor/migration_control.h"
#include "vmm/monitor/qmp_session.h"

/// A guest and migrations whose every state a test chooses.
namespace towline::monitor {

class FakeGuest final : public Guest {
 public:
  [[nodiscard]] std::string name() const override { return "fake"; }

  [[nodiscard]] vmm::RunState run_state() const override { return state; }

  [[nodiscard]] std::string failure() const override { return "KVM said no"; }

  [[nodiscard]] std::vector<pid_t> vcpu_threads() const override { return {71, 72}; }

  [[nodiscard]] base::Bytes memory() const override { return base::Bytes{64U << 20U}; }

  base::Outcome stop() override { return order("stop"); }

  base::Outcome cont() override { return order("cont"); }

  base::Outcome system_reset() override { return order("reset"); }

  void on_leaving(runtime::MigrationStatus status) override {
    if (status == runtime::MigrationStatus::kCompleted) {
      orders.emplace_back("migrated-away");
    }
  }

  vmm::RunState state = vmm::RunState::kRunning;
  std::vector<std::string> orders;

 private:
  base::Outcome order(const char* what) {
    orders.emplace_back(what);
    return base::Done{};
  }
};

/// What a test sets and sees of a migration, kept when the migration is gone.
struct FakeMigration {
  runtime::MigrationReport report;
  runtime::Uri uri;
  runtime::MigrationOptions options;
  runtime::MigrationObserver* observer = nullptr;
  bool alive = false;
  bool holds_guest = false;
  bool may_be_left = false;
  bool misses_pages = false;
  bool cancel_refused = false;
  std::vector<std::string> orders;

  void becomes(runtime::MigrationStatus status) {
    report.status = status;
    report.link = status == runtime::MigrationStatus::kPostcopyPaused ? runtime::LinkState::kLost
                                                                      : runtime::LinkState::kUp;
    observer->on_status(status);
  }
};

class FakeOutgoing final : public runtime::Outgoing {
 public:
  explicit FakeOutgoing(std::shared_ptr<FakeMigration> state) : state_(std::move(state)) {
    state_->alive = true;
  }

  FakeOutgoing(const FakeOutgoing&) = delete;
  FakeOutgoing& operator=(const FakeOutgoing&) = delete;

  ~FakeOutgoing() override {
    // The real one would join threads that nothing ends.
    const bool may_go = runtime::is_final(state_->report.status) ||
                        state_->report.status == runtime::MigrationStatus::kPostcopyPaused;
    CHECK_MESSAGE(may_go, "destroyed while it runs");
    state_->alive = false;
  }

  void start_postcopy() override { state_->orders.emplace_back("start-postcopy"); }

  base::Outcome continue_switch() override { return order("continue"); }

  base::Outcome cancel() override {
    state_->orders.emplace_back("cancel");
    if (state_->cancel_refused) {
      return base::fail(base::ErrorKind::kRefused, "cancel", "too late");
    }
    return base::Done{};
  }

  void set_bandwidth(std::uint64_t before, std::uint64_t after) override {
    state_->orders.push_back("bandwidth " + std::to_string(before) + " " + std::to_string(after));
  }

  [[nodiscard]] runtime::MigrationReport report() const override { return state_->report; }

  [[nodiscard]] bool holds_the_guest() const override { return state_->holds_guest; }

  [[nodiscard]] bool may_be_left() const override { return state_->may_be_left; }

  base::Outcome pause() override { return order("pause"); }

  base::Outcome resume(const std::optional<runtime::Uri>& target) override {
    return order("resume " + (target ? target->to_string() : std::string("there")));
  }

  base::Outcome take_back() override { return order("take-back"); }

 private:
  base::Outcome order(const std::string& what) {
    state_->orders.push_back(what);
    return base::Done{};
  }

  const std::shared_ptr<FakeMigration> state_;  // shared: with the test.
};

class FakeIncoming final : public runtime::Incoming {
 public:
  explicit FakeIncoming(std::shared_ptr<FakeMigration> state) : state_(std::move(state)) {}

  [[nodiscard]] runtime::MigrationReport report() const override { return state_->report; }

  [[nodiscard]] bool misses_pages() const override { return state_->misses_pages; }

  base::Outcome pause() override {
    state_->orders.emplace_back("pause");
    return base::Done{};
  }

  base::Outcome recover_at(const runtime::Uri& at) override {
    state_->orders.push_back("recover " + at.to_string());
    return base::Done{};
  }

  base::Outcome set_source_loss(runtime::SourceLoss policy,
                                std::chrono::seconds deadline) override {
    state_->orders.push_back("source loss " + std::string(runtime::to_string(policy)) + " " +
                             std::to_string(deadline.count()));
    return base::Done{};
  }

  base::Outcome give_up_source(runtime::SourceLoss how) override {
    state_->orders.push_back("give up source: " + std::string(runtime::to_string(how)));
    return base::Done{};
  }

 private:
  const std::shared_ptr<FakeMigration> state_;  // shared: with the test.
};

class FakeFactory final : public MigrationFactory {
 public:
  base::Expected<std::unique_ptr<runtime::Outgoing>> start(
      const runtime::Uri& target, const runtime::MigrationOptions& options,
      runtime::MigrationObserver& observer) override {
    if (!refusal.empty()) {
      return base::fail(base::ErrorKind::kRefused, "start", refusal);
    }
    outgoing = begin(target, options, observer);
    return std::unique_ptr<runtime::Outgoing>(std::make_unique<FakeOutgoing>(outgoing));
  }

  base::Expected<std::unique_ptr<runtime::Incoming>> listen(
      const runtime::Uri& at, const runtime::MigrationOptions& options,
      runtime::MigrationObserver& observer) override {
    if (!refusal.empty()) {
      return base::fail(base::ErrorKind::kRefused, "listen", refusal);
    }
    incoming = begin(at, options, observer);
    incoming->report.listening = at;
    if (at.kind == runtime::Uri::Kind::kTcp && at.port == 0) {
      incoming->report.listening->port = 42187;
    }
    return std::unique_ptr<runtime::Incoming>(std::make_unique<FakeIncoming>(incoming));
  }

  std::string refusal;
  std::shared_ptr<FakeMigration> outgoing;  // The last one started. shared: with the migration.
  std::shared_ptr<FakeMigration> incoming;

 private:
  static std::shared_ptr<FakeMigration> begin(const runtime::Uri& uri,
                                              const runtime::MigrationOptions& options,
                                              runtime::MigrationObserver& observer) {
    auto made = std::make_shared<FakeMigration>();
    made->uri = uri;
    made->options = options;
    made->observer = &observer;
    made->report.status = runtime::MigrationStatus::kSetup;
    return made;
  }
};

inline std::unique_ptr<base::EventLoop> make_loop() {
  auto made = base::EventLoop::create();
  REQUIRE(made.ok());
  return std::move(made).value();
}

/// Runs what has been posted so far.
inline void run_posted(base::EventLoop& loop) {
  loop.stop();
  loop.run();
}

inline Json parsed(const std::string& text) {
  auto json = Json::parse(text);
  REQUIRE_MESSAGE(json.ok(), text);
  return std::move(json).value();
}

/// Writes down what it is told.
class Recorder final : public runtime::MigrationObserver {
 public:
  Recorder(std::vector<std::string>& seen, std::string end) : seen_(seen), end_(std::move(end)) {}

  void on_status(runtime::MigrationStatus status) override {
    seen_.push_back(end_ + " " + std::string(runtime::to_string(status)));
  }

  void on_pass(std::uint64_t pass) override { seen_.push_back("pass " + std::to_string(pass)); }

  void on_guest_stopped() override { seen_.emplace_back("stopped"); }

  void on_guest_started() override { seen_.emplace_back("started"); }

 private:
  std::vector<std::string>& seen_;
  const std::string end_;
};

/// Commands against fakes, without sockets: MigrationControl and one session.
class Desk : private Quitter {
 public:
  explicit Desk(MigrationConfig config = {})
      : loop(make_loop()),
        migration(guest, factory, {source_, target_}, std::move(config)),
        context_{guest, migration, *this},
        session(context_, true, [this](const std::string& line) { lines.push_back(line); }) {
    if (config.incoming) {
      guest.state = vmm::RunState::kInmigrate;
    }
    session.greet();
    ask(R"({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}})");
  }

  ~Desk() override {
    if (factory.outgoing != nullptr) {
      factory.outgoing->report.status = runtime::MigrationStatus::kFailed;  // May be joined.
    }
  }

  Desk(const Desk&) = delete;
  Desk& operator=(const Desk&) = delete;

  Quitter& quitter() { return *this; }

  /// Sends bytes and returns the last answer.
  Json ask(const std::string& text) {
    session.receive(text);
    REQUIRE_FALSE(lines.empty());
    return parsed(lines.back());
  }

  /// The answer's value; the command must succeed. `arguments` as JSON, or nothing.
  Json good(const std::string& command, const std::string& arguments = "") {
    const Json answer = ask(message(command, arguments));
    const Json* value = answer.find("return");
    REQUIRE_MESSAGE(value != nullptr, lines.back());
    return *value;
  }

  /// The error's text; the command must fail.
  std::string bad(const std::string& command, const std::string& arguments = "") {
    const Json answer = ask(message(command, arguments));
    const Json* error = answer.find("error");
    REQUIRE_MESSAGE(error != nullptr, lines.back());
    return text_of(*error, "desc");
  }

  /// Enables postcopy-ram and starts a migration that becomes active.
  void start_active() {
    good("migrate-set-capabilities",
         R"({"capabilities": [{"capability": "postcopy-ram", "state": true}]})");
    good("migrate", R"({"uri": "tcp:127.0.0.1:4444"})");
    factory.outgoing->becomes(runtime::MigrationStatus::kActive);
    run_posted(*loop);
  }

  std::unique_ptr<base::EventLoop> loop;
  std::vector<std::string> seen;  ///< What the observers were told.

 private:
  Recorder source_{seen, "source"};
  Recorder target_{seen, "target"};

 public:
  FakeGuest guest;
  FakeFactory factory;
  MigrationControl migration;
  std::vector<bool> quits;  ///< `force` of each.

 private:
  CommandContext context_;

 public:
  std::vector<std::string> lines;  ///< What the session sent.
  QmpSession session;

 private:
  static std::string message(const std::string& command, const std::string& arguments) {
    return "{\"execute\": \"" + command + "\"" +
           (arguments.empty() ? "" : ", \"arguments\": " + arguments) + "}";
  }

  base::Outcome quit(bool force) override {
    quits.push_back(force);
    return base::Done{};
  }
};

/// A client on a real socket, in the thread that also runs the loop.
class Client {
 public:
  Client(base::EventLoop& loop, const std::string& path)
      : loop_(loop), fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::copy(path.begin(), path.end(), std::begin(address.sun_path));
    const auto* generic = reinterpret_cast<const sockaddr*>(&address);
    REQUIRE(::connect(fd_.get(), generic, sizeof address) == 0);
  }

  void send(const std::string& text) const {
    REQUIRE(::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL) ==
            static_cast<ssize_t>(text.size()));
  }

  /// The next line, or nothing once the server has closed. The loop runs meanwhile.
  std::optional<std::string> line() {
    while (true) {
      if (const std::size_t end = unread_.find('\n'); end != std::string::npos) {
        const std::string found = unread_.substr(0, end + 1);
        unread_.erase(0, end + 1);
        return found;
      }
      turn(loop_);
      std::array<char, 4096> bytes{};
      const ssize_t got = ::recv(fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
      if (got == 0 || (got < 0 && errno != EAGAIN)) {
        return std::nullopt;
      }
      unread_.append(bytes.data(), got > 0 ? static_cast<std::size_t>(got) : 0);
    }
  }

  Json read() {
    const auto text = line();
    REQUIRE(text.has_value());
    return parsed(*text);
  }

  /// Reads the greeting and negotiates.
  Client& ready() {
    read();
    ask(R"({"execute": "qmp_capabilities"})");
    return *this;
  }

  /// Sends, and returns what comes next that is no event.
  Json ask(const std::string& text) {
    send(text);
    Json answer = read();
    while (answer.find("event") != nullptr) {
      events.push_back(text_of(answer, "event") + text_of(data(answer), "status") +
                       text_of(data(answer), "reason"));
      answer = read();
    }
    return answer;
  }

  /// All events up to now.
  std::vector<std::string> heard() {
    run_posted(loop_);
    ask(R"({"execute": "query-name"})");
    return events;
  }

  /// One round of the loop: whatever is ready is handled.
  static void turn(base::EventLoop& loop) {
    const auto soon = loop.after(std::chrono::milliseconds(0), [&loop] { loop.stop(); });
    loop.run();
  }

  void close() { fd_.reset(); }

  [[nodiscard]] int fd() const { return fd_.get(); }

  std::vector<std::string> events;

 private:
  static Json data(const Json& event) {
    const Json* found = event.find("data");
    return found == nullptr ? Json() : *found;
  }

  base::EventLoop& loop_;
  base::OwnedFd fd_;
  std::string unread_;
};

/// A folder of its own for sockets, gone with the test.
class Folder {
 public:
  Folder() { REQUIRE(::mkdtemp(path_.data()) != nullptr); }

  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  ~Folder() { std::filesystem::remove_all(path_); }

  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_ = "/tmp/towline-unit-XXXXXX";
};

inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace towline::monitor
