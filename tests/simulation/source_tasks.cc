// What the source's brain wants to be carried out: runtime/source/tasks.cc as tasks of this world.
#include <utility>

#include "base/crc32c.h"
#include "tests/simulation/source_end.h"

namespace towline::simulation {

using base::ErrorKind;
using base::PageCount;
using base::PageIndex;
using base::PageRange;
using runtime::LaneName;
using runtime::OwnershipEvent;
using runtime::SourceInput;
using runtime::SourceTask;
using runtime::wire::FrameHeader;
using runtime::wire::FrameType;
using runtime::wire::kPostcopyRound;
using runtime::wire::LaneRole;

namespace {

constexpr std::uint64_t kFlightPages = 3;

void append_frame(std::vector<std::byte>& bytes, FrameHeader header,
                  std::span<const std::byte> payload = {}) {
  header.length = static_cast<std::uint32_t>(payload.size());
  header.payload_crc = base::crc32c(payload);
  const auto head = runtime::wire::encode_header(header);
  bytes.insert(bytes.end(), head.begin(), head.end());
  bytes.insert(bytes.end(), payload.begin(), payload.end());
}

base::Error broken(const char* what) {
  return base::Error{ErrorKind::kDisconnected, 0, what, "the lane broke"};
}

}  // namespace

Task SourceEnd::carry_out(const SourceTask& task, SourceInput& done) {
  using Kind = SourceTask::Kind;
  Pipe* const control = lanes().control != nullptr ? &lanes().control->to_target : nullptr;
  switch (task.kind) {
    case Kind::kOpenControl:
      co_return co_await open_control(task, done);
    case Kind::kDescribe:
      co_return control->send({.type = FrameType::kDescribe}, std::vector<std::byte>(100));
    case Kind::kOpenLanes:
      co_return start_bulk(lanes());
    case Kind::kFindPageServer:
    case Kind::kAwaitPageServer:
      co_return;
    case Kind::kBeginLog:
      rounds_ = std::make_unique<runtime::DirtyRounds>(guest_, world_.layout);
      (void)rounds_->begin();
      co_return;
    case Kind::kRunPass:
      co_return co_await run_pass(task.pass, done);
    case Kind::kSendRound:
      co_return send_round(task, done);
    case Kind::kPark:
      co_return co_await park();
    case Kind::kPrepareFlight:
      co_return co_await prepare_flight(done);
    case Kind::kSendFlight:
      co_return send_flight(done);
    case Kind::kStartPush:
      lanes().push = true;
      co_return;
    case Kind::kEndLane:
      co_return end_lane(task.lane);
    case Kind::kOpenInPlace:
      co_return co_await open_in_place(task, done);
    case Kind::kPutInPlace:
      co_return put_in_place(task);
    case Kind::kFinish:
      co_return control->send({.type = FrameType::kCompleteAck});
    case Kind::kReadToTheEnd:
      co_return co_await read_to_the_end();
    case Kind::kSayCancelled:
      co_return control->send({.type = FrameType::kCancel});
    case Kind::kDropEpoch:
      co_return co_await drop_epoch(done);
    case Kind::kOpenLanesAgain:
      co_return co_await open_lanes(done);
    case Kind::kResume:
      co_return resume_target();
    case Kind::kOrderAgain:
      co_return control->send({.type = FrameType::kRun});
  }
}

/// The lanes of the first epoch are there.
Task SourceEnd::open_control(const SourceTask& task, SourceInput& done) {
  done.features = runtime::wire::kFeatureReplaceLane | runtime::wire::kFeatureWaitForRoom |
                  runtime::wire::kFeatureCountFrames;
  done.number = identity_.target_incarnation;
  if (task.epoch == 1) {
    for (std::uint64_t turns = world_.random.below(12); turns > 0; --turns) {
      co_await simulation::step();
    }
    if (refused_) {
      done.error = base::Error{ErrorKind::kRefused, 0, "handshake", "not this one"};
    } else if (lanes().control->to_target.closed()) {
      done.error = broken("connect");
    }
    co_return;
  }
  SourceLanes& fresh = epochs_.emplace_back(task.epoch);
  world_.source_epoch = fresh.epoch;
  co_await open_lane(LaneRole::kControl, 0, fresh.control);
  if (fresh.control == nullptr) {
    done.error = broken("connect");
  } else if (!world_.planted(Plant::kOtherNeverBelieved)) {
    done.number = incarnation_;
  }
}

Task SourceEnd::open_lanes(SourceInput& done) {
  SourceLanes& fresh = lanes();
  world_.resuming();  // Nothing is asked or pushed before these lanes are there.
  co_await open_lane(LaneRole::kUrgent, 0, fresh.urgent);
  bool opened = fresh.urgent != nullptr;
  for (std::size_t i = 0; i < world_.setup.bulk_lanes && opened; ++i) {
    Connection* lane = nullptr;
    co_await open_lane(LaneRole::kBulk, static_cast<std::uint8_t>(i), lane);
    opened = lane != nullptr;
    if (opened) {
      fresh.bulk.push_back(lane);
    }
  }
  if (!opened) {
    done.error = broken("connect");
    co_return;
  }
  holes_taken_ = false;
  start_bulk(fresh);
}

// ---- until the order ----------------------------------------------------------------------------

Task SourceEnd::run_pass(std::uint32_t pass, SourceInput& done) {
  cursor_ = PageIndex{0};
  lanes_done_ = 0;
  pass_ = pass;
  co_await until([this] { return lanes_done_ == lanes().bulk.size() || pass_stopped_; });
  if (pass_stopped_) {
    done.error = broken("pass");
    co_return;
  }
  done.flag = cut_;
  if (pass == 1) {
    owed_.add({cursor_, PageCount{world_.layout.pages().value - cursor_.value}});
  }
}

void SourceEnd::note_dirty(const runtime::DirtyRounds::Round& round) {
  for (const PageRange& run : round.pages) {
    owed_.add(run);
  }
  order_->on_recently_dirty(round.pages);
}

void SourceEnd::add_stale(std::vector<std::byte>& bytes, const runtime::DirtyRounds::Round& round,
                          std::uint32_t pass, bool final_round) {
  runtime::wire::RunsWriter writer;
  const auto flush = [&] {
    auto frame = writer.take();
    frame.header.round = pass;
    append_frame(bytes, frame.header, frame.payload);
  };
  for (const PageRange& run : round.pages) {
    // Small frames now and then, so that a set has several.
    if ((!writer.empty() && world_.random.once_in(5)) || !writer.add(run)) {
      flush();
      (void)writer.add(run);
    }
  }
  if (!writer.empty()) {
    flush();
  }
  FrameHeader end{.type = FrameType::kRoundEnd, .count = round.count, .round = pass};
  end.flags = final_round ? runtime::wire::kFlagFinal : 0;
  append_frame(bytes, end);
}

void SourceEnd::send_round(const SourceTask& task, SourceInput& done) {
  const auto round = rounds_->next_round().value();
  note_dirty(round);
  std::vector<std::byte> bytes;
  add_stale(bytes, round, task.pass, false);
  lanes().control->to_target.send_bytes(bytes);
  done.number = round.count;
}

Task SourceEnd::park() {
  gate(OwnershipEvent::kHold);
  co_await until([this] { return !guest_.device_busy(); });
  parked_ = true;
}

void SourceEnd::add_first_pages(std::vector<std::byte>& bytes) {
  for (std::uint64_t i = 0; i < kFlightPages; ++i) {
    const PageIndex page{world_.random.below(world_.layout.pages().value)};
    if (owed_.take(page)) {
      std::vector<std::byte> payload(base::kSmallPage.value);
      fill_page(guest_.content(page), page, payload);
      append_frame(
          bytes,
          {.type = FrameType::kPages, .first = page.value, .count = 1, .round = kPostcopyRound},
          payload);
    }
  }
}

Task SourceEnd::prepare_flight(SourceInput& done) {
  co_await simulation::step();  // The state is being saved.
  if (world_.setup.trouble == Trouble::kSaveFails) {
    done.error = base::Error{ErrorKind::kFailed, 0, "save", "planned"};
    co_return;
  }
  runtime::DirtyRounds::Round last;
  if (rounds_ != nullptr) {
    last = rounds_->next_round().value();
    if (world_.planted(Plant::kDeltaForgotten)) {
      last = {};
    }
    for (const PageRange& run : last.pages) {
      owed_.add(run);
    }
  }
  flight_.clear();
  add_stale(flight_, last, brain_.passes_done(), true);
  add_first_pages(flight_);
  append_frame(flight_, {.type = FrameType::kState}, std::vector<std::byte>(500));
  append_frame(flight_, {.type = FrameType::kRun});
  last_round_ = last.pages;
  open_ = true;
}

/// Where the lane broke meanwhile, the sender may hear of it or not.
void SourceEnd::send_flight(SourceInput& done) {
  Pipe& control = lanes().control->to_target;
  if (control.closed() && world_.random.once_in(2)) {
    world_.saw("a flight that could not be sent");
    done.error = broken("send");
  }
  control.send_bytes(flight_);
  world_.flight_sent();
  order_->on_recently_dirty(last_round_);
}

// ---- after the order ----------------------------------------------------------------------------

void SourceEnd::end_lane(LaneName lane) {
  SourceLanes& now = lanes();
  now.fate(lane).ended = true;
  Connection& old = *now.place_of(lane);
  world_.random.once_in(3) ? old.to_target.cut(world_.random) : old.to_target.close();
  old.to_source.shut(world_.random);
}

Task SourceEnd::open_in_place(const SourceTask& task, SourceInput& done) {
  if (in_place_ != nullptr) {
    in_place_->to_target.close();
    in_place_->to_source.shut(world_.random);
    in_place_ = nullptr;
  }
  co_await open_lane(task.lane.role, task.lane.number, in_place_, task.attempt);
  if (in_place_ == nullptr) {
    done.error = broken("connect");
  }
}

void SourceEnd::put_in_place(const SourceTask& task) {
  SourceLanes& now = lanes();
  now.place_of(task.lane) = in_place_;
  now.fate(task.lane) = {task.attempt, false};
  holes_taken_ = false;
  if (task.lane.role == LaneRole::kUrgent) {
    start_thread(now, "server", server(now, *in_place_, task.attempt));
  }
  in_place_ = nullptr;
}

Task SourceEnd::read_to_the_end() {
  close_lanes(lanes());
  co_await until([this] { return lanes().control_read; });
}

Task SourceEnd::drop_epoch(SourceInput& done) {
  close_lanes(lanes());
  if (in_place_ != nullptr) {
    in_place_->to_target.close();
    in_place_->to_source.shut(world_.random);
    in_place_ = nullptr;
  }
  if (!world_.planted(Plant::kOldPusherRuns)) {
    co_await until([this] { return lanes().threads == 0; });
  }
  done.number = world_.random.below(1000);
}

void SourceEnd::resume_target() {
  note_running_at_last();
  lanes().control->to_target.send({.type = FrameType::kResume});
}

}  // namespace towline::simulation
