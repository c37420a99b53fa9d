#include "tools/page_server/server.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "runtime/source/driver.h"
#include "runtime/standby/process.h"

namespace towline::tools {
namespace {

using base::ErrorKind;
using base::Expected;
using base::fail;
using base::fail_errno;
using base::LogLevel;
using base::Outcome;
using base::OwnedFd;
using runtime::MigrationStatus;
using runtime::StandbyLedger;
using runtime::StandbyPhase;

constexpr const char* kLedgerName = "towline-ledger";
constexpr std::string_view kMemoryName = "towline-memory-";
// Sources and strangers that have said nothing yet.
constexpr std::size_t kMostVisitors = 16;
// Guess.
constexpr std::chrono::milliseconds kRetryAfter{1000};

Expected<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return fail(ErrorKind::kRefused, "page server",
                fmt::format("'{}': the path of a socket has 1 to {} bytes", path,
                            sizeof address.sun_path - 1));
  }
  std::memcpy(static_cast<char*>(address.sun_path), path.c_str(), path.size() + 1);
  return address;
}

const sockaddr* generic(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

bool somebody_answers(const sockaddr_un& address) {
  const OwnedFd probe(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return ::connect(probe.get(), generic(address), sizeof address) == 0 || errno == EAGAIN;
}

bool is_socket(const std::string& path) {
  struct stat about {};

  return ::lstat(path.c_str(), &about) == 0 && S_ISSOCK(about.st_mode);
}

std::optional<std::uint64_t> memory_number(const std::string& name) {
  if (!name.starts_with(kMemoryName)) {
    return std::nullopt;
  }
  std::uint64_t number = 0;
  const char* const last = name.data() + name.size();
  const auto [end, error] = std::from_chars(name.data() + kMemoryName.size(), last, number);
  const bool whole = error == std::errc{} && end == last;
  return whole && number < runtime::kMaxStandbyFiles ? std::optional(number) : std::nullopt;
}

bool same_file(int one, int other) {
  struct stat of_one {};

  struct stat of_other {};

  return ::fstat(one, &of_one) == 0 && ::fstat(other, &of_other) == 0 &&
         of_one.st_dev == of_other.st_dev && of_one.st_ino == of_other.st_ino;
}

bool same_files(const StandbyLedger& ledger, const std::vector<OwnedFd>& files,
                const StandbyLedger& other_ledger, const std::vector<OwnedFd>& others) {
  return same_file(ledger.fd(), other_ledger.fd()) &&
         std::equal(files.begin(), files.end(), others.begin(), others.end(),
                    [](const OwnedFd& one, const OwnedFd& other) {
                      return same_file(one.get(), other.get());
                    });
}

std::string ended(std::int64_t pid) {
  return fmt::format("the source's process {} ended; the page server goes on in its place", pid);
}

}  // namespace

// ---- who comes ---------------------------------------------------------------------------------

PageServer::PageServer(const Parts& parts, bool daemon) : parts_(parts), daemon_(daemon) {
  // Behind whatever the monitor does with that status.
  parts_.guest.tell(
      [this](MigrationStatus status) { parts_.loop.post([this, status] { on_status(status); }); });
}

PageServer::~PageServer() {
  close();
}

void PageServer::close() {
  if (listener_.valid() && is_socket(path_)) {
    ::unlink(path_.c_str());
  }
  accepting_.reset();
  listener_.reset();
}

Outcome PageServer::listen(const std::string& path) {
  const sockaddr_un address = TRY(address_of(path));
  if (is_socket(path)) {
    if (somebody_answers(address)) {
      return fail(ErrorKind::kRefused, "bind",
                  fmt::format("another page server answers at '{}'; choose another path", path));
    }
    ::unlink(path.c_str());  // Left behind by a process that was killed.
  }
  OwnedFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // Set before bind(), which makes the file with it.
  ::fchmod(fd.get(), S_IRUSR | S_IWUSR);
  if (::bind(fd.get(), generic(address), sizeof address) != 0 || ::listen(fd.get(), 16) != 0) {
    return fail_errno(ErrorKind::kRefused, "bind",
                      fmt::format("cannot listen for sources at '{}'", path));
  }
  path_ = path;
  listener_ = std::move(fd);
  accepting_ = parts_.loop.on_readable(listener_.get(), [this] {
    OwnedFd visitor(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!visitor.valid()) {
      return;
    }
    if (visitors_.size() >= kMostVisitors) {  // Whoever says nothing makes room for the next.
      drop(visitors_[visitors_.front().get() == source_ ? 1 : 0].get());
    }
    serve(std::move(visitor));
  });
  base::log(LogLevel::kInfo, "page_server.listens path={}", path);
  return base::Done{};
}

void PageServer::serve(OwnedFd socket) {
  auto visitor = std::make_unique<Visitor>();
  visitor->socket = std::move(socket);
  visitor->readable = parts_.loop.on_readable(visitor->socket.get(),
                                              [this, raw = visitor.get()] { on_readable(raw); });
  visitors_.push_back(std::move(visitor));
}

void PageServer::on_readable(Visitor* visitor) {
  if (visitor == source_) {
    return answer(visitor);
  }
  auto received = runtime::receive_handover(visitor->socket.get());
  if (!received.ok() && received.error().errno_value == EAGAIN) {
    return;
  }
  if (!received.ok() || !received.value().has_value()) {
    return drop(visitor);
  }
  if (daemon_) {
    settle();  // What is kept of the one before may be over by now.
  }
  auto session = judge(visitor->socket.get(), *std::move(received).value());
  auto taken = session.ok() ? take(std::move(session).value())
                            : Outcome(base::Err{std::move(session).error()});
  const runtime::HandoverReply reply{taken.ok(), ::getpid(),
                                     taken.ok() ? "" : base::to_string(taken.error())};
  const auto told = runtime::send_reply(visitor->socket.get(), reply);
  if (!taken.ok()) {
    base::log(LogLevel::kWarning, "page_server.refused reason={}", reply.reason);
    return drop(visitor);
  }
  source_ = visitor;
  if (!told.ok()) {  // It has given up waiting; its ledger says what that means.
    return drop(visitor);
  }
  keep_elsewhere();  // The source does not wait for that.
}

// A source says nothing but pings after its handover: more of it is as good as its end.
void PageServer::answer(Visitor* visitor) {
  const auto ping = runtime::receive_ping(visitor->socket.get());
  if (!ping.ok() && ping.error().errno_value == EAGAIN) {
    return;
  }
  if (!ping.ok() || !ping.value().has_value()) {
    return drop(visitor);
  }
  // Unsent: it asks again, and its end shows where it is read from.
  static_cast<void>(runtime::send_ping(visitor->socket.get(), *ping.value()));
}

void PageServer::drop(Visitor* visitor) {
  const bool was_source = visitor == source_;
  if (was_source) {
    source_ = nullptr;
  }
  std::erase_if(visitors_, [visitor](const auto& one) { return one.get() == visitor; });
  if (was_source) {
    return settle();
  }
  if (!daemon_ && !session_.has_value()) {
    forget("the source ended before it handed anything over");
  }
}

// ---- what it gives -----------------------------------------------------------------------------

Expected<PageServer::Session> PageServer::judge(int socket, runtime::Handover handover) const {
  const auto peer = TRY(runtime::trusted_peer(socket));
  if (peer.pid <= 0) {
    return fail(ErrorKind::kRefused, "page server",
                "the source cannot be seen from here: run both in one PID name space");
  }
  const std::uint64_t start = TRY(runtime::start_of_process(peer.pid));
  Session session = TRY(session_of(std::move(handover)));
  session.source = peer.pid;
  session.source_ended = TRY(runtime::watch_process(peer.pid, start));
  if (session_.has_value() && (machine_ != nullptr || session_->record.id != session.record.id)) {
    return fail(ErrorKind::kRefused, "page server",
                fmt::format("it keeps the memory of process {}'s guest; start another one",
                            session_->source));
  }
  TRY(session.ledger->set_source(static_cast<std::uint64_t>(peer.pid), start));
  return session;
}

Expected<PageServer::Session> PageServer::session_of(runtime::Handover handover) const {
  Session session;
  auto ledger = TRY(StandbyLedger::open(std::move(handover.ledger)));
  session.ledger = std::make_shared<StandbyLedger>(std::move(ledger));
  const auto words = TRY(session.ledger->read());
  if (words.files != handover.files.size()) {
    return fail(ErrorKind::kCorrupt, "page server",
                fmt::format("{} files of memory came, the ledger says {}", handover.files.size(),
                            words.files));
  }
  const auto record = TRY(session.ledger->record());
  session.record = TRY(runtime::decode_record(record, handover.files.size()));
  session.files = std::move(handover.files);
  TRY(runtime::KeptMachine::check(session.record, session.files));
  return session;
}

Outcome PageServer::take(Session session) {
  source_ = nullptr;  // An earlier connection of the same source: its end means nothing any more.
  session.kept_elsewhere =
      session.kept_elsewhere ||
      (session_.has_value() && session_->kept_elsewhere &&
       same_files(*session.ledger, session.files, *session_->ledger, session_->files));
  session_ = std::move(session);
  if (session_->source_ended.valid()) {
    session_->watch =
        parts_.loop.on_readable(session_->source_ended.get(), [this] { on_source_ended(); });
  }
  base::log(LogLevel::kInfo, "page_server.keeps source={} files={} target={}", session_->source,
            session_->files.size(), session_->record.target.to_string());
  return base::Done{};
}

void PageServer::keep_elsewhere() {
  if (!parts_.store.present() || session_->kept_elsewhere) {
    return;
  }
  std::vector<NamedFd> all{NamedFd{kLedgerName, session_->ledger->fd()}};
  for (std::size_t i = 0; i < session_->files.size(); ++i) {
    all.push_back(NamedFd{fmt::format("{}{}", kMemoryName, i), session_->files[i].get()});
  }
  const auto kept = parts_.store.keep(all);
  session_->kept_elsewhere = kept.ok();
  if (kept.ok()) {
    base::log(LogLevel::kInfo, "page_server.stored descriptors={}", all.size());
  } else {
    base::log(LogLevel::kWarning, "page_server.not_stored reason={} so={}",
              base::to_string(kept.error()),
              "while this process has what nobody else has, it refuses to end");
  }
}

Outcome PageServer::restore(std::vector<KeptFd> kept) {
  runtime::Handover handover;
  for (KeptFd& one : kept) {
    if (one.name == kLedgerName) {
      handover.ledger = std::move(one.fd);
    } else if (const auto number = memory_number(one.name)) {
      handover.files.resize(std::max<std::size_t>(handover.files.size(), *number + 1));
      handover.files[*number] = std::move(one.fd);
    }
  }
  if (!handover.ledger.valid()) {
    return base::Done{};
  }
  Session session = TRY(session_of(std::move(handover)));
  const auto words = TRY(session.ledger->read());
  session.source = static_cast<std::int64_t>(words.source_pid);
  auto watch = runtime::watch_process(session.source, words.source_start);
  if (watch.ok()) {
    session.source_ended = std::move(watch).value();
  } else if (watch.error().kind != ErrorKind::kDisconnected) {
    return base::Err{std::move(watch).error()};
  }
  session.kept_elsewhere = true;  // That is where it came from, and it stays there until dropped.
  TRY(take(std::move(session)));
  settle();
  return base::Done{};
}

// ---- when the source is gone -------------------------------------------------------------------

// Nothing of a process that has ended can act any more, whoever may hold its connection.
void PageServer::on_source_ended() {
  session_->watch.reset();
  return source_ != nullptr ? drop(source_) : settle();
}

// A source that is stopped, or whose connection ended while it lives, is not gone.
void PageServer::settle() {
  if (!session_.has_value() || source_ != nullptr || machine_ != nullptr) {
    return;
  }
  const auto words = session_->ledger->read();
  if (!words.ok()) {
    return forget(base::to_string(words.error()));
  }
  const bool gone =
      !session_->source_ended.valid() || runtime::process_has_ended(session_->source_ended.get());
  const StandbyPhase phase = words.value().phase;
  if (phase == StandbyPhase::kOver) {  // Whether the source lives or not.
    return forget("the migration is over, and nobody needs what is kept here");
  }
  if (!gone) {
    base::log(LogLevel::kInfo, "page_server.waits source={} phase={}", session_->source,
              to_string(phase));
    return;
  }
  const auto owner = runtime::ownership_left(phase);
  if (!owner.has_value()) {
    return forget("the source's process ended before the switch, and its guest with it");
  }
  const auto inherited = inherit(words.value(), *owner);
  if (!inherited.ok()) {
    base::log(LogLevel::kError, "page_server.cannot_go_on reason={}",
              base::to_string(inherited.error()));
    if (inherited.error().kind == ErrorKind::kRefused) {
      return forget("");  // Somebody else does.
    }
    // For want of memory, say. What is held is the guest's last: it is not let go for that.
    retry_ = parts_.loop.after(kRetryAfter, [this] { settle(); });
  }
}

Outcome PageServer::inherit(const StandbyLedger::Words& words, runtime::Ownership owner) {
  if (!session_->claim.valid()) {
    session_->claim = TRY(session_->ledger->claim());
  }
  const auto encoded = TRY(session_->ledger->state());
  auto state = TRY(runtime::decode(encoded));
  machine_ =
      TRY(runtime::KeptMachine::create(session_->record, session_->files, std::move(state), owner));
  parts_.guest.hold(machine_.get(), session_->kept_elsewhere);
  parts_.factory.hold(
      {machine_.get(), {session_->ledger, session_->record.regions, session_->kept_elsewhere}});
  if (owner == runtime::Ownership::kHere) {
    hold_parked();
    return base::Done{};
  }
  return become_source(words);
}

Outcome PageServer::become_source(const StandbyLedger::Words& words) {
  const runtime::StandbyRecord& record = session_->record;
  runtime::Uri target = record.target;
  if (const auto later = TRY(session_->ledger->address())) {
    target = TRY(runtime::Uri::parse(*later));
  }
  runtime::SourceDriver::Legacy legacy;
  legacy.ledger = session_->ledger;
  legacy.words = words;
  legacy.identity.id = record.id;
  legacy.identity.epoch = words.epoch;
  legacy.identity.incarnation = record.incarnation;
  legacy.session_secret = record.session_secret;
  legacy.target_incarnation = record.target_incarnation;
  legacy.reason = ended(session_->source);
  legacy.kept_elsewhere = session_->kept_elsewhere;
  return parts_.monitor.adopt(
      [&](runtime::MigrationObserver& observer) -> Expected<std::unique_ptr<runtime::Outgoing>> {
        auto driver =
            std::make_unique<runtime::SourceDriver>(*machine_, target, record.options, observer);
        driver->begin_as_heir(std::move(legacy));
        return std::unique_ptr<runtime::Outgoing>(std::move(driver));
      });
}

void PageServer::hold_parked() {
  base::log_owner(
      LogLevel::kError, "page_server.keeps_the_guest source={} reason={} remedy={}",
      session_->source,
      "that process ended when the guest was parked, and no target runs it: none had the "
      "order, or it said that it never will, or its user vouches for it; memory and state "
      "are whole, and here alone",
      "'migrate' brings it to a new target");
}

void PageServer::on_status(MigrationStatus status) {
  if (machine_ == nullptr || !runtime::is_final(status)) {
    return;
  }
  if (status == MigrationStatus::kCompleted) {
    return finish();
  }
  hold_parked();  // The target never had the guest, and never will. The ledger says so already.
}

void PageServer::finish() {
  base::say_on_output(fmt::format(
      "moved: the target has all of the guest's memory; its source, process {}, ended on the way\n",
      session_->source));
  forget("the target has all of the guest's memory");
}

void PageServer::forget(const std::string& why) {
  if (!why.empty()) {
    base::log(LogLevel::kInfo, "page_server.forgets reason={}", why);
  }
  parts_.monitor.forget_migration();
  parts_.guest.hold(nullptr, false);
  parts_.factory.hold({});
  if (session_.has_value()) {
    std::vector<std::string> names{kLedgerName};
    for (std::size_t i = 0; i < session_->files.size(); ++i) {
      names.push_back(fmt::format("{}{}", kMemoryName, i));
    }
    parts_.store.drop(names);
  }
  machine_.reset();
  session_.reset();
  if (!daemon_) {
    parts_.monitor.end_when_nothing_is_kept();
  }
}

void refuse_source(int socket, const std::string& reason) {
  const runtime::HandoverReply reply{false, ::getpid(), reason, false};
  if (const auto told = runtime::send_reply(socket, reply); !told.ok()) {
    base::log(base::LogLevel::kWarning, "page_server.refusal_unsent reason={}",
              base::to_string(told.error()));
  }
}

}  // namespace towline::tools
