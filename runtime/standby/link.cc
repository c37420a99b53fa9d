#include "runtime/standby/link.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include <fmt/format.h>

#include "base/clock.h"
#include "base/log.h"
#include "runtime/link/secure.h"
#include "runtime/standby/process.h"

namespace towline::runtime {
namespace {

using base::ErrorKind;
using base::Expected;
using base::fail_errno;
using base::LogLevel;
using base::Outcome;
using base::OwnedFd;
using std::chrono::milliseconds;

// A process has to start on a busy machine. Guess.
constexpr milliseconds kAnswerWithin{10'000};
// Guess: one that is restarted by its keeper is back soon; one that cannot start is not hurried.
constexpr milliseconds kFirstPause{50};
constexpr milliseconds kLongestPause{2000};
// A server that lives answers in microseconds; what keeps its only thread longest is a service
// manager that it waits for, and that is less than half of all these pings. Guess.
constexpr milliseconds kPingEvery{1000};
constexpr int kMostUnanswered = 7;

Outcome refused_by_server(const HandoverReply& reply) {
  return base::fail(ErrorKind::kRefused, "page server",
                    fmt::format("the page server refused: {}", reply.reason));
}

// It takes nothing: one that could not begin has said why before it went. (What it did not read of
// ours shows as a reset first, and its words are behind that.)
Outcome last_words(int socket, Outcome otherwise) {
  pollfd waiting{.fd = socket, .events = POLLIN, .revents = 0};
  if (::poll(&waiting, 1, 0) == 1) {
    const auto reply = receive_reply(socket);
    if (reply.ok() && !reply.value().accepted) {
      return refused_by_server(reply.value());
    }
  }
  return otherwise;
}

Expected<OwnedFd> connect_to_daemon(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return base::fail(ErrorKind::kRefused, "page server",
                      fmt::format("path '{}' has {} bytes; a unix socket's path has at most {}",
                                  path, path.size(), sizeof address.sun_path - 1));
  }
  std::memcpy(static_cast<char*>(address.sun_path), path.c_str(), path.size() + 1);
  // Not blocking: one that is stopped accepts nobody, and its queue is short.
  OwnedFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid() ||
      ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return fail_errno(ErrorKind::kDisconnected, "connect",
                      fmt::format("no page server answers at 'unix:{}'", path));
  }
  TRY(trusted_peer(fd.get()));
  return fd;
}

/// Where this program lies: /proc/self/exe means another one to whoever executes it for us.
std::string path_of_program(const std::string& name) {
  std::error_code ignored;
  const auto path = std::filesystem::read_symlink(name, ignored);
  return name == "/proc/self/exe" && !path.empty() ? path.string() : name;
}

/// systemd-run(1) registers itself as a scope and then executes the command, with its descriptors:
/// what ends the source's control group does not end the command.
std::vector<std::string> in_scope(const std::vector<std::string>& command) {
  std::vector<std::string> words = {"systemd-run", "--scope", "--quiet", "--collect",
                                    "--no-ask-password"};
  if (::geteuid() != 0) {
    words.emplace_back("--user");
  }
  words.emplace_back("--description=Towline page server");
  words.emplace_back("--");
  words.push_back(path_of_program(command.front()));
  words.insert(words.end(), command.begin() + 1, command.end());
  return words;
}

Expected<OwnedFd> start_own(const PageServerChoice& choice) {
  if (choice.command.empty()) {
    return base::fail(ErrorKind::kUnsupported, "page server",
                      "this program starts no page server; name one that runs, unix:PATH");
  }
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    return fail_errno(ErrorKind::kFailed, "socketpair");
  }
  OwnedFd ours(ends[0]);
  const OwnedFd theirs(ends[1]);
  std::vector<std::string> words =
      choice.kind == PageServerChoice::Kind::kScope ? in_scope(choice.command) : choice.command;
  words.insert(words.end(), {"--socket-fd", "3"});
  TRY(start_process(words, theirs.get()));
  return ours;
}

}  // namespace

Expected<std::unique_ptr<StandbyLink>> StandbyLink::open(const PageServerChoice& choice,
                                                         std::shared_ptr<StandbyLedger> ledger,
                                                         std::vector<int> files) {
  auto stop = TRY(base::make_eventfd());
  std::unique_ptr<StandbyLink> made(
      new StandbyLink(choice, std::move(ledger), std::move(files), std::move(stop)));
  TRY(made->hand_over());
  made->thread_ = base::NamedThread("tl-standby", [link = made.get()] { link->run(); });
  return made;
}

StandbyLink::StandbyLink(PageServerChoice choice, std::shared_ptr<StandbyLedger> ledger,
                         std::vector<int> files, base::OwnedFd stop)
    : choice_(std::move(choice)),
      ledger_(std::move(ledger)),
      files_(std::move(files)),
      stop_(std::move(stop)),
      backoff_(kFirstPause, kLongestPause) {
}

StandbyLink::~StandbyLink() {
  base::signal_eventfd(stop_.get());
  thread_.join();
}

bool StandbyLink::stands_by() const {
  const base::Lock lock(mutex_);
  return report_.stands_by;
}

Outcome StandbyLink::await(milliseconds patience) const {
  const base::Lock lock(mutex_);
  const auto until = base::system_clock().now() + patience;
  const bool stands =
      changed_.wait_until(mutex_, until, [this]() UNDER_LOCK { return report_.stands_by; });
  return stands ? Outcome(base::Done{})
                : base::fail(ErrorKind::kFailed, "page server",
                             fmt::format("the page server is gone and no other was found in {} "
                                         "ms: {}",
                                         patience.count(), report_.error));
}

PageServerReport StandbyLink::report() const {
  const base::Lock lock(mutex_);
  return report_;
}

Expected<OwnedFd> StandbyLink::reach() const {
  return choice_.kind == PageServerChoice::Kind::kDaemon ? connect_to_daemon(choice_.path)
                                                         : start_own(choice_);
}

Outcome StandbyLink::hand_over() {
  auto socket = TRY(reach());
  if (const auto sent = send_handover(socket.get(), ledger_->fd(), files_); !sent.ok()) {
    return last_words(socket.get(), sent);
  }
  std::array<pollfd, 2> waiting{pollfd{.fd = stop_.get(), .events = POLLIN, .revents = 0},
                                pollfd{.fd = socket.get(), .events = POLLIN, .revents = 0}};
  const int ready = ::poll(waiting.data(), waiting.size(), static_cast<int>(kAnswerWithin.count()));
  if (ready <= 0 || waiting[0].revents != 0) {
    return base::fail(
        ErrorKind::kDisconnected, "page server",
        fmt::format("it does not answer in {} s; is it stopped?", kAnswerWithin.count() / 1000));
  }
  const auto received = receive_reply(socket.get());
  if (!received.ok()) {
    return last_words(socket.get(), base::Err{received.error()});
  }
  const HandoverReply& reply = received.value();
  if (!reply.accepted) {
    return refused_by_server(reply);
  }
  socket_ = std::move(socket);
  answers_pings_ = reply.answers_pings;
  process_.reset();
  if (choice_.kind != PageServerChoice::Kind::kDaemon) {
    const auto start = start_of_process(reply.pid);
    auto watch = start.ok() ? watch_process(reply.pid, start.value())
                            : Expected<OwnedFd>(base::Err{start.error()});
    process_ = watch.ok() ? std::move(watch).value() : OwnedFd();
  }
  const base::Lock lock(mutex_);
  report_.stands_by = true;
  report_.pid = reply.pid;
  report_.error.clear();
  ++report_.starts;
  base::log(LogLevel::kInfo, "page_server.stands_by pid={} starts={}", reply.pid, report_.starts);
  changed_.notify_all();
  return base::Done{};
}

// ---- tl-standby ---------------------------------------------------------------------------------

void StandbyLink::run() {
  while (true) {
    const Loss loss = wait_until_lost();
    if (loss == Loss::kNotAtAll) {
      return;
    }
    if (loss == Loss::kSilent && process_.valid()) {
      // Ours. It could not go on in our place, and the next one needs its control socket's path.
      kill_process(process_.get());
    }
    socket_.reset();
    {
      const base::Lock lock(mutex_);
      report_.stands_by = false;
      report_.error = loss == Loss::kGone
                          ? "it is gone"
                          : fmt::format("it does not answer since {} s; is it stopped?",
                                        kMostUnanswered * kPingEvery.count() / 1000);
      base::log(LogLevel::kWarning, "page_server.lost pid={} reason={} meaning={}", report_.pid,
                report_.error, "until there is another one, the guest depends on this process");
    }
    bool found = false;
    while (!found) {
      if (!pause()) {
        return;
      }
      const auto handed = hand_over();
      found = handed.ok();
      if (!found) {
        const base::Lock lock(mutex_);
        report_.error = base::to_string(handed.error());
        base::log(LogLevel::kWarning, "page_server.not_found reason={}", report_.error);
      }
    }
  }
}

// A server says nothing but answers: whatever else there is to read is its end. Pings are counted,
// not timed: this process may have been stopped itself.
StandbyLink::Loss StandbyLink::wait_until_lost() {
  int unanswered = 0;
  std::uint64_t number = 0;
  base::Instant next = base::system_clock().now();
  while (true) {
    int timeout = -1;
    if (answers_pings_) {
      const base::Instant now = base::system_clock().now();
      if (now >= next) {
        if (unanswered == kMostUnanswered) {
          return Loss::kSilent;
        }
        static_cast<void>(send_ping(socket_.get(), ++number));  // Its end is seen below.
        ++unanswered;
        next = now + kPingEvery;
      }
      timeout = static_cast<int>(std::chrono::ceil<milliseconds>(next - now).count());
    }
    std::array<pollfd, 2> waiting{pollfd{.fd = stop_.get(), .events = POLLIN, .revents = 0},
                                  pollfd{.fd = socket_.get(), .events = POLLIN, .revents = 0}};
    if (::poll(waiting.data(), waiting.size(), timeout) <= 0) {
      continue;
    }
    if (waiting[0].revents != 0) {
      return Loss::kNotAtAll;
    }
    const auto heard = receive_ping(socket_.get());
    if (heard.ok() && heard.value().has_value() && answers_pings_) {
      unanswered = 0;
    } else if (heard.ok() || heard.error().errno_value != EAGAIN) {
      return Loss::kGone;
    }
  }
}

bool StandbyLink::pause() {
  const auto time = std::chrono::duration_cast<milliseconds>(backoff_.take(random_number()));
  pollfd stopped{.fd = stop_.get(), .events = POLLIN, .revents = 0};
  return ::poll(&stopped, 1, static_cast<int>(time.count())) == 0;
}

}  // namespace towline::runtime
