#include "runtime/listener.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

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
constexpr std::chrono::milliseconds kAcceptPause{100};

}  // namespace

/// One connection on its way through the handshake.
class Listener::Connection {
 public:
  Connection(Listener& owner, base::OwnedFd fd)
      : owner_(owner),
        lane_(std::make_unique<Lane>(std::move(fd), wire::LaneRole::kControl,
                                     wire::Direction::kToTarget)) {
    readable_ = owner_.loop_->on_readable(lane_->fd(), [this] { on_readable(); });
    timer_ = owner_.loop_->after(owner_.timeout_, [this] { owner_.drop(this, true); });
  }

 private:
  void on_readable();
  bool on_frame(const FrameHeader& header);
  bool on_hello();
  bool on_proof();
  bool ready();
  bool refuse(const std::string& reason);
  bool send(FrameType type, std::span<const std::byte> payload);

  Listener& owner_;
  std::unique_ptr<Lane> lane_;
  std::unique_ptr<EventLoop::Handle> readable_;
  std::unique_ptr<EventLoop::Handle> timer_;
  std::vector<std::byte> buffer_;
  wire::Hello hello_;
  std::optional<Mac> expected_;
};

void Listener::Connection::on_readable() {
  // Exactly one frame is read at a time: what follows the handshake belongs to the lane.
  std::size_t wanted = wire::kHeaderBytes;
  std::optional<FrameHeader> header;
  if (buffer_.size() >= wire::kHeaderBytes) {
    const auto decoded = wire::decode_header(std::span(buffer_).first<wire::kHeaderBytes>(),
                                             wire::LaneRole::kControl, wire::Direction::kToTarget);
    if (!decoded.ok() || decoded.value().length > wire::kMaxHandshakePayload) {
      return owner_.drop(this, true);
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
      return;
    }
    return owner_.drop(this, true);
  }
  buffer_.resize(before + static_cast<std::size_t>(got));
  if (header.has_value() && buffer_.size() == wanted) {
    if (!on_frame(*header)) {
      return owner_.drop(this, true);
    }
    if (lane_ == nullptr) {
      return owner_.drop(this, false);
    }
    buffer_.clear();
  }
}

bool Listener::Connection::on_frame(const FrameHeader& header) {
  if (!verify_payload(header, std::span(buffer_).subspan(wire::kHeaderBytes)).ok()) {
    return false;
  }
  if (header.type == FrameType::kHello && !expected_.has_value()) {
    return on_hello();
  }
  return header.type == FrameType::kProof && expected_.has_value() && on_proof();
}

bool Listener::Connection::on_hello() {
  const auto decoded = wire::decode_hello(std::span(buffer_).subspan(wire::kHeaderBytes));
  if (!decoded.ok()) {
    return false;
  }
  hello_ = decoded.value();
  if (!wire::common_version(hello_).has_value()) {
    return refuse(fmt::format("the target speaks wire versions {} to {}, the source {} to {}",
                              wire::kVersionLow, wire::kVersionHigh, hello_.version_low,
                              hello_.version_high));
  }
  Admission admission = owner_.callbacks_.admit(hello_);
  if (!admission.refusal.empty()) {
    return refuse(admission.refusal);
  }
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
  }
  if (!send(FrameType::kHelloReply, wire::encode_hello_reply(reply))) {
    return false;
  }
  return reply.wants_proof || ready();
}

bool Listener::Connection::on_proof() {
  const auto proof = std::span(buffer_).subspan(wire::kHeaderBytes);
  if (!equal_in_constant_time(proof, *expected_)) {
    return refuse("the proof is wrong; give both sides the same --secret FILE");
  }
  return ready();
}

bool Listener::Connection::ready() {
  if (!send(FrameType::kLaneReady, {})) {
    return false;
  }
  readable_.reset();
  timer_.reset();
  base::OwnedFd fd(::dup(lane_->fd()));
  if (!fd.valid()) {
    return false;
  }
  tune_lane(fd.get());
  lane_.reset();
  owner_.callbacks_.deliver(
      std::make_unique<Lane>(std::move(fd), hello_.role, wire::Direction::kToTarget), hello_);
  return true;
}

bool Listener::Connection::refuse(const std::string& reason) {
  base::log(LogLevel::kInfo, "lane.refused role={} reason={}", wire::to_string(hello_.role),
            reason);
  // The peer learns why, if it still listens; the connection goes in any case.
  [[maybe_unused]] const bool told = send(FrameType::kRefuse, bytes_of(reason));
  return false;
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
  made->loop_ = TRY(EventLoop::create());
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
  socket.accepting = loop_->on_readable(socket.fd.get(), [this, &socket] { accept_one(socket); });
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

void Listener::accept_one(Socket& socket) {
  base::OwnedFd fd(::accept4(socket.fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!fd.valid()) {
    if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
      // The connection stays in the queue and the descriptor readable: look again a little later.
      base::log(LogLevel::kWarning, "listener.full connections={}", connections_.size());
      socket.accepting.reset();
      socket.accept_again = loop_->after(kAcceptPause, [this, &socket] { watch(socket); });
    }
    return;
  }
  if (connections_.size() >= kMaxUnproven) {
    drop(connections_.front().get(), true);
  }
  connections_.push_back(std::make_unique<Connection>(*this, std::move(fd)));
}

void Listener::drop(Connection* connection, bool stranger) {
  if (stranger) {
    ++strangers_;
  }
  connections_.remove_if([connection](const auto& one) { return one.get() == connection; });
}

}  // namespace towline::runtime
