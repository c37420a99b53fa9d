#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "runtime/link/lane.h"
#include "runtime/link/secure.h"
#include "runtime/link/sockets.h"
#include "runtime/options.h"
#include "runtime/wire/format.h"
#include "runtime/wire/text.h"

/// How a connection becomes a lane. docs/wire-format.md, "Handshake".
namespace towline::runtime {

/// Features that this version knows; negotiated as the intersection.
inline constexpr std::uint64_t kFeatures =
    wire::kFeatureReplaceLane | wire::kFeatureWaitForRoom | wire::kFeatureCountFrames;

/// Which end computes a proof: each proves itself with its own word, so that neither can be
/// replayed as the other.
enum class Prover : std::uint8_t { kSource, kTarget };

/// HMAC-SHA256(secret, word ‖ id ‖ epoch ‖ role ‖ lane ‖ source's nonce ‖ target's nonce), and the
/// attempt behind it where it is not 0.
Mac lane_proof(std::span<const std::byte> secret, Prover prover, const wire::Hello& hello,
               std::span<const std::byte> target_nonce);

/// What a hello can prove by itself, before the target has said anything:
/// HMAC-SHA256(secret, "towline hello" ‖ id ‖ epoch ‖ role ‖ lane ‖ attempt ‖ source's nonce). It
/// earns a place among those who greet and nothing else, because it can be recorded and said again.
Mac hello_proof(std::span<const std::byte> secret, const wire::Hello& hello);

/// What all lanes of one migration have in common at the source.
struct LaneIdentity {
  std::array<std::byte, wire::kIdBytes> id{};
  std::uint64_t epoch = 1;
  std::uint32_t attempt = 0;  ///< Of a lane that takes the place of a lost one.
  std::uint64_t incarnation = 0;
  /// Of the target that answered the control lane; another one's lane is of no use. 0: any.
  std::uint64_t target_incarnation = 0;
  /// Empty: the control lane goes without a proof (no secret was given to either side).
  std::vector<std::byte> secret;
};

struct OpenedLane {
  std::unique_ptr<Lane> lane;
  wire::HelloReply reply;
};

/// Source: connects, greets, proves, and returns a lane that is ready. Blocks at most for the
/// options' connect and handshake timeouts.
///
/// `waiting_on` is called for the connecting and again for the handshake.
///
/// Errors: kDisconnected (not there, silent, closed), kRefused (the target's own words),
/// kCorrupt (not a Towline, wrong version, the target did not know the secret).
base::Expected<OpenedLane> open_lane(const Uri& target, const MigrationOptions& options,
                                     const LaneIdentity& identity, wire::LaneRole role,
                                     std::uint8_t lane, const WaitingOn& waiting_on = {});

/// The lanes that carry pages.
struct DataLanes {
  std::unique_ptr<Lane> urgent;
  std::vector<std::unique_ptr<Lane>> bulk;
};

/// Source: opens the urgent lane and `bulk_lanes` bulk lanes at the same time, so that over a
/// distance all of them cost the round trips of one. `meanwhile` runs in the caller's thread;
/// `waiting_on` is called from the threads of all of them.
///
/// Errors: of `meanwhile`, or as open_lane(); then no lane is left open.
base::Expected<DataLanes> open_data_lanes(const Uri& target, const MigrationOptions& options,
                                          const LaneIdentity& identity, std::uint32_t bulk_lanes,
                                          const WaitingOn& waiting_on,
                                          const std::function<base::Outcome()>& meanwhile = {});

/// Bytes of a text, for payloads.

}  // namespace towline::runtime
