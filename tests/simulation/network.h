#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "runtime/wire/codec.h"
#include "tests/simulation/world.h"

namespace towline::simulation {

struct Frame {
  runtime::wire::FrameHeader header;
  std::vector<std::byte> payload;

  [[nodiscard]] base::PageRange pages() const {
    return {base::PageIndex{header.first}, base::PageCount{header.count}};
  }
};

/// One direction of a connection: bytes in order, delivered whenever the scheduler likes, any
/// number at a time. It can be closed by its sender, shut by its receiver, cut at any byte,
/// damaged, and held up without a word.
class Pipe {
 public:
  /// `partitioned`: nothing goes this way just now, in any connection.
  Pipe(runtime::wire::LaneRole lane, runtime::wire::Direction direction, const bool& partitioned)
      : lane_(lane), direction_(direction), partitioned_(&partitioned) {}

  // ---- sender ----

  /// Lost without a word once the pipe is closed or cut.
  void send(runtime::wire::FrameHeader header, std::span<const std::byte> payload = {});
  void send_bytes(std::span<const std::byte> bytes);

  /// A sender waits while it does not hold: nobody's buffers are endless.
  [[nodiscard]] bool room() const { return wire_.size() - taken_ < kCapacity; }

  void close() { closed_ = true; }

  [[nodiscard]] bool closed() const { return closed_; }

  // ---- the world between ----

  [[nodiscard]] bool held_up() const { return frozen_ || *partitioned_; }

  [[nodiscard]] bool deliverable() const {
    return (on_wire() > 0 || (gap_ && counts() && !sign_.has_value())) && !held_up();
  }

  void deliver(Random& random);

  /// What was not delivered is lost from any byte on.
  void cut(Random& random);

  /// Turns one bit over of what is on its way. False: nothing is.
  bool flip(Random& random);

  /// Takes one whole frame of what is on its way out of the bytes; everything before and behind it
  /// arrives, and is read. On the control lane the next sign of life tells how many frames were
  /// sent, as lane.cc: it comes behind whatever else is on its way by then. On other lanes nobody
  /// counts, nor anywhere if not `counted`. False: there is none.
  bool swallow(Random& random, bool counted);

  void freeze(bool frozen) { frozen_ = frozen; }

  [[nodiscard]] std::size_t on_wire() const { return wire_.size() - delivered_; }

  /// Nothing will ever be delivered again.
  [[nodiscard]] bool over() const { return closed_ && on_wire() == 0; }

  [[nodiscard]] bool swallowed() const { return gap_; }

  // ---- receiver ----

  /// A frame, the end or an error can be taken.
  [[nodiscard]] bool readable();

  /// The next frame. nullopt: the end. Only when readable().
  /// Errors: kCorrupt, kDisconnected (it ends inside a frame).
  base::Expected<std::optional<Frame>> take(bool check_sum = true);

  /// The receiver shuts its end: what was delivered may still be read, or is dropped. Then it ends.
  void shut(Random& random);

 private:
  static constexpr std::size_t kCapacity = 96U << 10U;

  [[nodiscard]] std::size_t waiting() const { return delivered_ - taken_; }

  void parse_header();

  [[nodiscard]] bool counts() const { return lane_ == runtime::wire::LaneRole::kControl; }

  [[nodiscard]] bool at_sign() const { return sign_.has_value() && taken_ >= *sign_; }

  runtime::wire::LaneRole lane_;
  runtime::wire::Direction direction_;
  const bool* partitioned_;
  std::vector<std::byte> wire_;  // Taken, delivered and still on its way, one after the other.
  std::size_t taken_ = 0;
  std::size_t delivered_ = 0;
  bool gap_ = false;                 // A frame was swallowed.
  std::optional<std::size_t> sign_;  // Where the next sign of life is, in wire_.
  bool closed_ = false;
  bool frozen_ = false;
  std::optional<base::Expected<runtime::wire::FrameHeader>> header_;  // Of the next frame.
};

/// Both directions between two sockets: a lane, once it was greeted and proven.
struct Connection {
  Connection(runtime::wire::LaneRole lane, const bool& target_cut_off, const bool& source_cut_off)
      : role(lane),
        to_target(lane, runtime::wire::Direction::kToTarget, target_cut_off),
        to_source(lane, runtime::wire::Direction::kToSource, source_cut_off) {}

  void cut(Random& random) {
    to_target.cut(random);
    to_source.cut(random);
  }

  /// Something is on its way in neither direction, and never will be.
  [[nodiscard]] bool over() const { return to_target.over() && to_source.over(); }

  [[nodiscard]] bool held_up() const { return lost || to_target.held_up() || to_source.held_up(); }

  runtime::wire::LaneRole role;
  bool lost = false;        ///< It goes nowhere, for ever.
  std::uint64_t epoch = 1;  ///< The source's when it connected. For checks.
  Pipe to_target;
  Pipe to_source;
};

/// All connections that were ever made. They arrive at the target in any order, or elsewhere, or
/// nowhere.
class Network {
 public:
  explicit Network(World& world);

  /// A lane of the first epoch: greeted and proven already.
  Connection& tie(runtime::wire::LaneRole role);

  /// The source, or a stranger, connects.
  Connection& connect(runtime::wire::LaneRole role, bool stranger = false);

  /// Who takes a connection that arrives at the target's address.
  std::function<void(Connection&)> accept = [](Connection&) {};
  /// As accept(), when another process has the address.
  std::function<void(Connection&)> accept_elsewhere = [](Connection&) {};

  /// Those on which something may still arrive.
  [[nodiscard]] std::vector<Connection*> live();

  // What happens to the connections that the source makes next: so many of them.
  std::uint64_t refused_next = 0;    ///< Nobody listens.
  std::uint64_t lost_next = 0;       ///< They go nowhere, and nobody says so.
  std::uint64_t elsewhere_next = 0;  ///< Another process answers.

  bool target_cut_off = false;  ///< Nothing reaches the target.
  bool source_cut_off = false;  ///< Nothing reaches the source.

  /// The last greeting and proof of the source, as whoever listens on the wire has them.
  std::vector<std::byte> heard_hello;
  std::vector<std::byte> heard_proof;

 private:
  struct Arrival {
    Connection* connection;
    bool stranger;
  };

  Connection& add(runtime::wire::LaneRole role);
  void add_pipe(const char* way, Connection& connection, Pipe& pipe);
  void arrive();

  World& world_;
  std::deque<Connection> connections_;
  std::vector<Arrival> arrivals_;
};

}  // namespace towline::simulation
