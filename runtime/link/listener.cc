#include "runtime/link/listener.h"

#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include <fmt/format.h>

#include "base/log.h"
#include "runtime/wire/codec.h"

namespace towline::runtime {
namespace {

using base::LogLevel;
using wire::FrameHeader;
using wire::FrameType;

// Guess: room for every lane of a migration and as many strangers again.
constexpr std::size_t kMaxUnproven = 64;
// Of one wake-up, so that those who are here already have their turn between.
constexpr int kAcceptedTogether = 16;
constexpr std::chrono::milliseconds kAcceptPause{100};
// Between two lines about strangers. Guess: a reader of the log sees that it goes on, and no log is
// filled by whoever knocks.
constexpr std::chrono::seconds kTellingPause{10};

// Whether `hello` comes behind `other`, which is of the same lane and migration.
bool is_later(const wire::Hello& hello, const wire::Hello& other) {
  return std::pair(hello.epoch, hello.attempt) > std::pair(other.epoch, other.attempt);
}

}  // namespace

/// One connection on its way through the handshake.
class Listener::Connection {
 public:
  Connection(Listener& owner, base::OwnedFd fd)
      : owner_(owner),
        lane_(std::make_unique<Lane>(std::move(fd), wire::LaneRole::kControl,
                                     wire::Direction::kToTarget)) {
    readable_ = owner_.loop_->on_readable(lane_->fd(), [this] { on_readable(); });
    timer_ = owner_.loop_->after(owner_.timeout_, [this] { owner_.drop(this, Stranger::kSilent); });
  }

  [[nodiscard]] const wire::Hello& hello() const { return hello_; }

 private:
  /// What becomes of a connection after something came: nothing: it stays.
  struct End {
    std::optional<Stranger> stranger;  ///< None: it became a lane.
  };

  using Next = std::optional<End>;

  void on_readable();
  Next read_some();
  Next on_frame(const FrameHeader& header);
  Next on_hello();
  Next on_proof();
  Next ready();
  Next on_first_words();
  Next deliver();
  Next refuse(const std::string& reason, Stranger how);
  bool send(FrameType type, std::span<const std::byte> payload);

  static Next ends(Stranger how) { return End{how}; }

  Listener& owner_;
  std::unique_ptr<Lane> lane_;
  std::unique_ptr<base::EventLoop::Handle> readable_;
  std::unique_ptr<base::EventLoop::Handle> timer_;
  std::vector<std::byte> buffer_;
  wire::Hello hello_;
  std::optional<Mac> expected_;
  bool has_wrong_proof_ = false;
  bool speaks_first_ = false;
  bool is_ready_ = false;  // Its first frame behind the handshake is waited for.
};

void Listener::Connection::on_readable() {
  const Next next = is_ready_ ? on_first_words() : read_some();
  if (!next.has_value()) {
    return;
  }
  if (!next->stranger.has_value()) {
    return owner_.remove(this);
  }
  // A source that was given another secret sees that from the answer, and goes.
  const bool knows_another = has_wrong_proof_ && *next->stranger == Stranger::kGone;
  owner_.drop(this, knows_another ? Stranger::kWrongSecret : *next->stranger);
}

// Exactly one frame is read at a time: what follows the handshake belongs to the lane.
Listener::Connection::Next Listener::Connection::read_some() {
  std::size_t wanted = wire::kHeaderBytes;
  std::optional<FrameHeader> header;
  if (buffer_.size() >= wire::kHeaderBytes) {
    const auto decoded = wire::decode_header(std::span(buffer_).first<wire::kHeaderBytes>(),
                                             wire::LaneRole::kControl, wire::Direction::kToTarget);
    if (!decoded.ok() || decoded.value().length > wire::kMaxHandshakePayload) {
      return ends(Stranger::kGarbage);
    }
    header = decoded.value();
    wanted += header->length;
  }
  const std::size_t before = buffer_.size();
  buffer_.resize(wanted);
  const ssize_t got = ::recv(lane_->fd(), buffer_.data() + before, wanted - before, MSG_DONTWAIT);
  if (got <= 0) {
    buffer_.resize(before);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
      return std::nullopt;
    }
    return ends(before == 0 ? Stranger::kGone : Stranger::kGarbage);
  }
  buffer_.resize(before + static_cast<std::size_t>(got));
  if (!header.has_value() || buffer_.size() != wanted) {
    return std::nullopt;
  }
  Next next = on_frame(*header);
  buffer_.clear();
  return next;
}

Listener::Connection::Next Listener::Connection::on_frame(const FrameHeader& header) {
  if (!verify_payload(header, std::span(buffer_).subspan(wire::kHeaderBytes)).ok()) {
    return ends(Stranger::kGarbage);
  }
  if (header.type == FrameType::kHello && !expected_.has_value()) {
    return on_hello();
  }
  if (header.type == FrameType::kProof && expected_.has_value()) {
    return on_proof();
  }
  return ends(Stranger::kGarbage);
}

Listener::Connection::Next Listener::Connection::on_hello() {
  const auto decoded = wire::decode_hello(std::span(buffer_).subspan(wire::kHeaderBytes));
  if (!decoded.ok()) {
    return ends(Stranger::kGarbage);
  }
  hello_ = decoded.value();
  if (!wire::common_version(hello_).has_value()) {
    return refuse(
        fmt::format("the target speaks wire versions {} to {}, the source {} to {}",
                    wire::kVersionLow, wire::kVersionHigh, hello_.version_low, hello_.version_high),
        Stranger::kRefused);
  }
  Admission admission = owner_.callbacks_.admit(hello_);
  if (!admission.refusal.empty()) {
    return refuse(admission.refusal, Stranger::kRefused);
  }
  speaks_first_ = admission.speaks_first;
  wire::HelloReply reply;
  reply.version = *wire::common_version(hello_);
  reply.phase = admission.phase;
  reply.wants_proof = !admission.secret.empty();
  reply.features = hello_.features & kFeatures;
  reply.incarnation = owner_.incarnation_;
  random_bytes(reply.nonce);
  if (reply.wants_proof) {
    reply.proof = lane_proof(admission.secret, Prover::kTarget, hello_, reply.nonce);
    expected_ = lane_proof(admission.secret, Prover::kSource, hello_, reply.nonce);
    if (hello_.proof.has_value()) {
      has_wrong_proof_ =
          !equal_in_constant_time(*hello_.proof, hello_proof(admission.secret, hello_));
    }
    if (hello_.proof.has_value() && !has_wrong_proof_) {
      owner_.give_own_place(this);
    }
  }
  if (!send(FrameType::kHelloReply, wire::encode_hello_reply(reply))) {
    return ends(Stranger::kGone);
  }
  return reply.wants_proof ? std::nullopt : ready();
}

Listener::Connection::Next Listener::Connection::on_proof() {
  const auto proof = std::span(buffer_).subspan(wire::kHeaderBytes);
  if (!equal_in_constant_time(proof, *expected_)) {
    return refuse("the proof is wrong; give both sides the same --secret FILE",
                  Stranger::kWrongSecret);
  }
  return ready();
}

Listener::Connection::Next Listener::Connection::ready() {
  if (!send(FrameType::kLaneReady, {})) {
    return ends(Stranger::kGone);
  }
  if (speaks_first_) {
    is_ready_ = true;
    return std::nullopt;
  }
  return deliver();
}

// They are looked at and left to the lane.
Listener::Connection::Next Listener::Connection::on_first_words() {
  std::byte first{};
  const ssize_t got = ::recv(lane_->fd(), &first, sizeof first, MSG_DONTWAIT | MSG_PEEK);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
    return std::nullopt;
  }
  return got > 0 ? deliver() : ends(Stranger::kGone);
}

Listener::Connection::Next Listener::Connection::deliver() {
  readable_.reset();
  timer_.reset();
  base::OwnedFd fd(::dup(lane_->fd()));
  if (!fd.valid()) {
    return ends(Stranger::kGone);
  }
  tune_lane(fd.get());
  lane_.reset();
  auto lane = std::make_unique<Lane>(std::move(fd), hello_.role, wire::Direction::kToTarget);
  if (hello_.role == wire::LaneRole::kControl &&
      (hello_.features & kFeatures & wire::kFeatureCountFrames) != 0) {
    lane->count_frames();
  }
  owner_.callbacks_.deliver(std::move(lane), hello_);
  return End{std::nullopt};
}

Listener::Connection::Next Listener::Connection::refuse(const std::string& reason, Stranger how) {
  owner_.last_refusal_ = fmt::format("{}: {}", wire::to_string(hello_.role), reason);
  // The peer learns why, if it still listens; the connection goes in any case.
  [[maybe_unused]] const bool told = send(FrameType::kRefuse, bytes_of(reason));
  return ends(how);
}

bool Listener::Connection::send(FrameType type, std::span<const std::byte> payload) {
  FrameHeader header;
  header.type = type;
  // A few hundred bytes on a fresh connection always fit into its send buffer: never blocks.
  return lane_->send(header, payload).ok();
}

base::Expected<std::unique_ptr<Listener>> Listener::bind(const Uri& at,
                                                         std::chrono::milliseconds timeout,
                                                         std::uint64_t incarnation,
                                                         Callbacks callbacks) {
  auto listening = TRY(listen_at(at));
  std::unique_ptr<Listener> made(new Listener);
  made->timeout_ = timeout;
  made->incarnation_ = incarnation;
  made->callbacks_ = std::move(callbacks);
  made->loop_ = TRY(base::EventLoop::create());
  {
    const base::Lock lock(made->mutex_);
    made->addresses_.push_back(listening.at);
  }
  made->sockets_.push_back(
      Socket{std::move(listening.at), std::move(listening.fd), nullptr, nullptr});
  made->watch(made->sockets_.back());
  return made;
}

base::Outcome Listener::add(const Uri& at) {
  const std::string wanted = at.to_string();
  {
    const base::Lock lock(mutex_);
    const auto same = std::find_if(addresses_.begin(), addresses_.end(),
                                   [&](const Uri& known) { return known.to_string() == wanted; });
    if (same != addresses_.end()) {
      return base::Done{};
    }
  }
  auto listening = TRY(listen_at(at));
  const base::Lock lock(mutex_);
  // The first address stays; of the others the newest counts, so that asking again and again leaves
  // nothing open.
  addresses_.resize(std::min<std::size_t>(addresses_.size(), 1));
  addresses_.push_back(listening.at);
  // Shared: what is posted must be copyable.
  const auto made = std::make_shared<Listening>(std::move(listening));
  loop_->post([this, made] {
    while (sockets_.size() > 1) {
      forget_last();
    }
    sockets_.push_back(Socket{made->at, std::move(made->fd), nullptr, nullptr});
    watch(sockets_.back());
  });
  return base::Done{};
}

Uri Listener::at() const {
  const base::Lock lock(mutex_);
  return addresses_.back();
}

void Listener::watch(Socket& socket) {
  socket.accepting = loop_->on_readable(socket.fd.get(), [this, &socket] { accept_some(socket); });
}

void Listener::start() {
  thread_ = base::NamedThread("tl-listen", [this] { loop_->run(); });
}

void Listener::post(std::function<void()> work) {
  loop_->post(std::move(work));
}

void Listener::set_deadline(std::chrono::milliseconds delay, std::function<void()> work) {
  deadline_ = loop_->after(delay, std::move(work));
}

Listener::~Listener() {
  if (thread_.joinable()) {
    loop_->stop();
    thread_.join();
  }
  connections_.clear();
  proven_.clear();
  telling_.reset();
  deadline_.reset();
  while (!sockets_.empty()) {
    forget_last();
  }
}

void Listener::forget_last() {
  const Socket& socket = sockets_.back();
  if (socket.at.kind == Uri::Kind::kUnix && socket.fd.valid()) {
    remove_socket(socket.at.path);
  }
  sockets_.pop_back();
}

void Listener::accept_some(Socket& socket) {
  for (int i = 0; i < kAcceptedTogether && accept_one(socket); ++i) {
  }
}

bool Listener::accept_one(Socket& socket) {
  base::OwnedFd fd(::accept4(socket.fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd.valid()) {
    if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
      out_of_files(socket, errno);
    }
    return false;
  }
  if (connections_.size() >= kMaxUnproven) {
    drop(connections_.front().get(), Stranger::kCrowdedOut);
  }
  connections_.push_back(std::make_unique<Connection>(*this, std::move(fd)));
  return true;
}

// The connection stays in the queue and the descriptor readable: look again a little later. That is
// told as seldom as strangers are.
void Listener::out_of_files(Socket& socket, int error) {
  socket.accepting.reset();
  socket.accept_again = loop_->after(kAcceptPause, [this, &socket] { watch(socket); });
  if (std::exchange(full_told_, true)) {
    return;
  }
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  base::log(LogLevel::kWarning,
            "listener.full connections={} open_files_limit={} reason={} remedy={}",
            connections_.size() + proven_.size(), limit.rlim_cur,
            base::to_string(base::Error{base::ErrorKind::kOverloaded, error, "accept", {}}),
            "a source that knocks waits; allow this process more open files (ulimit -n)");
  if (telling_ == nullptr) {
    telling_ = loop_->after(kTellingPause, [this] { tell_strangers(); });
  }
}

// One for each lane: of the same migration the later one has it, so that a greeting that was
// recorded and is said again takes nothing from the source that has gone on since. Otherwise the
// newest.
void Listener::give_own_place(Connection* connection) {
  const wire::Hello& hello = connection->hello();
  const auto same_lane = std::find_if(proven_.begin(), proven_.end(), [&](const auto& one) {
    return one->hello().role == hello.role && one->hello().lane == hello.lane;
  });
  if (same_lane != proven_.end()) {
    if ((*same_lane)->hello().id == hello.id && !is_later(hello, (*same_lane)->hello())) {
      return;
    }
    drop(same_lane->get(), Stranger::kGone);
  }
  const auto at = std::find_if(connections_.begin(), connections_.end(),
                               [&](const auto& one) { return one.get() == connection; });
  proven_.splice(proven_.end(), connections_, at);
}

void Listener::remove(Connection* connection) {
  const auto is_it = [connection](const auto& one) { return one.get() == connection; };
  connections_.remove_if(is_it);
  proven_.remove_if(is_it);
}

void Listener::drop(Connection* connection, Stranger how) {
  note(how);
  remove(connection);
}

// The first of them is told at once, what follows together.
void Listener::note(Stranger how) {
  ++strangers_;
  ++untold_[static_cast<std::size_t>(how)];
  if (telling_ == nullptr) {
    tell_strangers();
  }
}

void Listener::tell_strangers() {
  telling_.reset();
  full_told_ = false;
  const auto counts = std::exchange(untold_, {});
  const std::string refusal = std::exchange(last_refusal_, {});
  if (std::all_of(counts.begin(), counts.end(), [](std::uint64_t count) { return count == 0; })) {
    return;
  }
  const auto count_of = [&](Stranger how) { return counts[static_cast<std::size_t>(how)]; };
  const bool hostile = count_of(Stranger::kWrongSecret) + count_of(Stranger::kCrowdedOut) > 0;
  base::log(hostile ? LogLevel::kWarning : LogLevel::kInfo,
            "listener.strangers garbage={} wrong_secret={} refused={} silent={} gone={} "
            "crowded_out={} last_refusal={}",
            count_of(Stranger::kGarbage), count_of(Stranger::kWrongSecret),
            count_of(Stranger::kRefused), count_of(Stranger::kSilent), count_of(Stranger::kGone),
            count_of(Stranger::kCrowdedOut), refusal.empty() ? "none" : refusal);
  telling_ = loop_->after(kTellingPause, [this] { tell_strangers(); });
}

}  // namespace towline::runtime
