#include "tests/simulation/network.h"

#include <algorithm>

#include "base/crc32c.h"

namespace towline::simulation {

using base::ErrorKind;
using base::fail;
using runtime::wire::FrameHeader;
using runtime::wire::kHeaderBytes;

namespace {

/// Not the handshake, which has time-outs.
bool may_vanish(const FrameHeader& header) {
  using runtime::wire::FrameType;
  return header.type != FrameType::kHello && header.type != FrameType::kHelloReply &&
         header.type != FrameType::kProof && header.type != FrameType::kLaneReady;
}

}  // namespace

void Pipe::send(FrameHeader header, std::span<const std::byte> payload) {
  header.length = static_cast<std::uint32_t>(payload.size());
  header.payload_crc = base::crc32c(payload);
  send_bytes(runtime::wire::encode_header(header));
  send_bytes(payload);
}

void Pipe::send_bytes(std::span<const std::byte> bytes) {
  if (closed_) {
    return;
  }
  if (taken_ > kCapacity) {  // What was taken is of no use any more.
    wire_.erase(wire_.begin(), wire_.begin() + static_cast<std::ptrdiff_t>(taken_));
    if (sign_.has_value()) {
      *sign_ -= std::min(taken_, *sign_);
    }
    delivered_ -= std::exchange(taken_, 0);
  }
  wire_.insert(wire_.end(), bytes.begin(), bytes.end());
}

void Pipe::deliver(Random& random) {
  const std::size_t left = wire_.size() - delivered_;
  if (gap_ && counts() && !sign_.has_value() && (left == 0 || random.once_in(4))) {
    sign_ = wire_.size();
  }
  // Often all, often a frame's worth, sometimes a few bytes.
  std::size_t count = left;
  if (!random.once_in(3)) {
    count = random.once_in(3) ? random.between(1, 60) : random.between(1, 24U << 10U);
  }
  delivered_ += std::min(count, left);
}

void Pipe::cut(Random& random) {
  const std::size_t left = on_wire();
  // Often only the tail: the order is the last frame of its flight.
  const std::size_t tail = random.once_in(2) ? std::min<std::size_t>(left, 60) : left;
  wire_.resize(wire_.size() - random.below(tail + 1));
  sign_ = sign_.has_value() && *sign_ > wire_.size() ? std::nullopt : sign_;
  closed_ = true;
}

void Pipe::shut(Random& random) {
  if (random.once_in(2)) {
    wire_.resize(delivered_);
  } else {
    wire_.clear();
    taken_ = delivered_ = 0;
    header_.reset();
  }
  sign_.reset();
  closed_ = true;
  frozen_ = false;
}

bool Pipe::swallow(Random& random, bool counted) {
  struct Place {
    std::size_t at;
    std::size_t bytes;
  };

  std::vector<Place> places;
  for (std::size_t at = taken_; wire_.size() - at >= kHeaderBytes;) {
    const auto header = runtime::wire::decode_header(
        std::span(wire_).subspan(at).first<kHeaderBytes>(), lane_, direction_);
    if (!header.ok() || wire_.size() - at < kHeaderBytes + header.value().length) {
      break;
    }
    const std::size_t bytes = kHeaderBytes + header.value().length;
    if (at >= delivered_ && may_vanish(header.value())) {
      places.push_back({at, bytes});
    }
    at += bytes;
  }
  if (places.empty() || gap_ || closed_) {
    return false;
  }
  const Place place = places[random.below(places.size())];
  const auto first = wire_.begin() + static_cast<std::ptrdiff_t>(place.at);
  wire_.erase(first, first + static_cast<std::ptrdiff_t>(place.bytes));
  gap_ = counted || !counts();
  return true;
}

bool Pipe::flip(Random& random) {
  if (on_wire() == 0) {
    return false;
  }
  const std::size_t at = delivered_ + random.below(wire_.size() - delivered_);
  wire_[at] ^= static_cast<std::byte>(1U << random.below(8));
  return true;
}

void Pipe::parse_header() {
  if (!header_.has_value() && waiting() >= kHeaderBytes) {
    header_ = runtime::wire::decode_header(std::span(wire_).subspan(taken_).first<kHeaderBytes>(),
                                           lane_, direction_);
  }
}

bool Pipe::readable() {
  parse_header();
  if (at_sign()) {
    return true;
  }
  if (header_.has_value() &&
      (!header_->ok() || waiting() >= kHeaderBytes + header_->value().length)) {
    return true;
  }
  // Of a pipe that was shut nothing is on its way: it ends whatever holds the others up.
  return over() && !frozen_;
}

base::Expected<std::optional<Frame>> Pipe::take(bool check_sum) {
  parse_header();
  if (at_sign()) {
    return fail(ErrorKind::kCorrupt, "receive", "a frame was lost");
  }
  if (header_.has_value() && !header_->ok()) {
    return base::Err<base::Error>{header_->error()};
  }
  if (!header_.has_value() || waiting() < kHeaderBytes + header_->value().length) {
    if (waiting() == 0) {
      return std::optional<Frame>();
    }
    return fail(ErrorKind::kDisconnected, "receive", "the lane ends inside a frame");
  }
  const auto first = wire_.begin() + static_cast<std::ptrdiff_t>(taken_ + kHeaderBytes);
  Frame frame{header_->value(), {first, first + header_->value().length}};
  taken_ += kHeaderBytes + frame.payload.size();
  header_.reset();
  if (check_sum && base::crc32c(frame.payload) != frame.header.payload_crc) {
    return fail(ErrorKind::kCorrupt, "receive", "a payload's checksum is wrong");
  }
  return std::optional<Frame>(std::move(frame));
}

// ---- the network --------------------------------------------------------------------------------

Network::Network(World& world) : world_(world) {
  world_.add_actor(
      Process::kOutside, "arrival", [this] { return !arrivals_.empty() && !target_cut_off; },
      [this] { arrive(); });
}

Connection& Network::add(runtime::wire::LaneRole role) {
  Connection& made = connections_.emplace_back(role, target_cut_off, source_cut_off);
  add_pipe("to target", made, made.to_target);
  add_pipe("to source", made, made.to_source);
  return made;
}

void Network::add_pipe(const char* way, Connection& connection, Pipe& pipe) {
  world_.add_actor(
      Process::kOutside, std::string(runtime::wire::to_string(connection.role)) + " " + way,
      [&pipe] { return pipe.deliverable(); }, [this, &pipe] { pipe.deliver(world_.random); },
      [&pipe] { return pipe.over(); });
}

Connection& Network::tie(runtime::wire::LaneRole role) {
  return add(role);
}

Connection& Network::connect(runtime::wire::LaneRole role, bool stranger) {
  Connection& made = add(role);
  if (!stranger && lost_next > 0) {
    --lost_next;
    made.lost = true;
    world_.saw("a connection that went nowhere");
  } else if (!stranger && refused_next > 0) {
    --refused_next;
    made.to_source.close();
    world_.saw("a connection that nobody took");
  } else {
    arrivals_.push_back({&made, stranger});
  }
  return made;
}

void Network::arrive() {
  const std::size_t chosen = world_.random.below(arrivals_.size());
  const Arrival arrival = arrivals_[chosen];
  arrivals_.erase(arrivals_.begin() + static_cast<std::ptrdiff_t>(chosen));
  Connection& connection = *arrival.connection;
  if (!arrival.stranger && elsewhere_next > 0) {
    --elsewhere_next;
    accept_elsewhere(connection);
  } else if (world_.dead(Process::kTarget)) {
    connection.to_source.close();
  } else {
    accept(connection);
  }
}

std::vector<Connection*> Network::live() {
  std::vector<Connection*> live;
  for (Connection& one : connections_) {
    if (!one.over()) {
      live.push_back(&one);
    }
  }
  return live;
}

}  // namespace towline::simulation
