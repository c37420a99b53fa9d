#include "tests/simulation/source_end.h"

#include <algorithm>

#include "base/crc32c.h"

namespace towline::simulation {

using base::PageCount;
using base::PageIndex;
using base::PageRange;
using runtime::OwnershipEvent;
using runtime::SourceAction;
using runtime::SourceEvent;
using runtime::SourceState;
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

}  // namespace

SourceEnd::SourceEnd(World& world, SourceGuest& guest, Network& network, const Identity& identity)
    : world_(world),
      guest_(guest),
      network_(network),
      identity_(identity),
      owed_(world.layout.pages()),
      order_(world.setup.window_order ? runtime::make_window_order(world.layout.pages())
                                      : runtime::make_address_order(world.layout.pages())) {
  SourceLanes& lanes = epochs_.emplace_back(1);
  lanes.control = &network.tie(runtime::wire::LaneRole::kControl);
  lanes.urgent = &network.tie(runtime::wire::LaneRole::kUrgent);
  for (std::size_t i = 0; i < world.setup.bulk_lanes; ++i) {
    lanes.bulk.push_back(&network.tie(runtime::wire::LaneRole::kBulk));
  }
}

void SourceEnd::start() {
  world_.add_actor(Process::kSource, "source session", session());
  start_thread(lanes(), "control", control_reader(lanes()));
  start_bulk(lanes());
}

void SourceEnd::start_bulk(SourceLanes& lanes) {
  start_thread(lanes, "server", server(lanes, *lanes.urgent, 0));
  for (std::size_t i = 0; i < lanes.bulk.size(); ++i) {
    start_thread(lanes, "bulk " + std::to_string(i), bulk_worker(lanes, i));
  }
}

void SourceEnd::start_thread(SourceLanes& lanes, const std::string& name, Task work) {
  ++lanes.threads;
  world_.add_actor(Process::kSource, "source " + name, counted(lanes, std::move(work)));
}

Task SourceEnd::counted(SourceLanes& lanes, Task work) {
  co_await work;
  --lanes.threads;
}

// ---- the session --------------------------------------------------------------------------------

/// Waits for what `ready` says, or for what ends the migration before.
Pause SourceEnd::until_told(std::function<bool()> ready) {
  return until([this, ready = std::move(ready)] { return ready() || interrupted(); });
}

Task SourceEnd::session() {
  co_await simulation::step();  // The lanes are being opened.
  if (interrupted() || !step(SourceEvent::kLanesReady)) {
    co_return end();
  }
  lanes().control->to_target.send({.type = FrameType::kDescribe}, std::vector<std::byte>(100));
  co_await until_told([this] { return inbox_.accepted; });
  if (interrupted()) {
    co_return end();
  }
  step(SourceEvent::kAccepted);
  begin_rounds();
  co_await run_passes();
  if (!interrupted()) {
    step(SourceEvent::kPassesDone);
    co_await sync_until_switch();
  }
  if (interrupted()) {
    co_return end();
  }
  if (world_.wait_for_room != 0) {
    world_.fail("the switch begins while a lane of the target waits for room");
  }
  step(SourceEvent::kSwitchNow);
  gate(OwnershipEvent::kHold);
  co_await switch_over();
  if (runtime::before_order(state_)) {
    co_return end();
  }
  co_await see_it_through();
}

Task SourceEnd::run_passes() {
  while (rounds_ != nullptr && pass_ < world_.setup.passes && !(switch_asked_ && pass_ > 0)) {
    cursor_ = PageIndex{0};
    lanes_done_ = 0;
    ++pass_;
    co_await until_told([this] { return lanes_done_ == lanes().bulk.size(); });
    if (interrupted()) {
      co_return;
    }
    passes_done_ = pass_;
    if (pass_ == 1) {
      owed_.add({cursor_, PageCount{world_.layout.pages().value - cursor_.value}});
    }
    if (pass_ < world_.setup.passes) {
      send_round();
      co_await until_told([this] { return rounds_applied_ == rounds_sent_; });
    }
  }
}

/// Stale rounds: bitmaps only, until the user wants the switch and what is left is small.
Task SourceEnd::sync_until_switch() {
  std::uint64_t rounds_left = 20;  // The wait for a small delta is bounded.
  while (rounds_ != nullptr && !interrupted()) {
    const std::uint64_t news = send_round();
    co_await until_told([this] { return rounds_applied_ == rounds_sent_; });
    const bool wanted = !world_.setup.manual_switch || switch_asked_;
    if (wanted && (news <= world_.setup.sync_budget || --rounds_left == 0)) {
      co_return;
    }
    co_await simulation::step();
  }
}

/// From the parking of the vCPUs to the order.
Task SourceEnd::switch_over() {
  co_await until([this] { return !guest_.device_busy(); });
  parked_ = true;
  co_await simulation::step();  // The state is being saved.
  save_failed_ = world_.setup.trouble == Trouble::kSaveFails;
  if (save_failed_ || interrupted()) {
    co_return;
  }
  send_flight();
}

void SourceEnd::begin_rounds() {
  if (world_.setup.passes == 0) {
    owed_.add({PageIndex{0}, world_.layout.pages()});
    return;
  }
  rounds_ = std::make_unique<runtime::DirtyRounds>(guest_, world_.layout);
  (void)rounds_->begin();
}

void SourceEnd::note_dirty(const runtime::DirtyRounds::Round& round) {
  for (const PageRange& run : round.pages) {
    owed_.add(run);
  }
  order_->on_recently_dirty(round.pages);
}

void SourceEnd::add_stale(std::vector<std::byte>& bytes, const runtime::DirtyRounds::Round& round,
                          bool final_round) {
  runtime::wire::RunsWriter writer;
  const auto flush = [&] {
    auto frame = writer.take();
    frame.header.round = passes_done_;
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
  FrameHeader end{.type = FrameType::kRoundEnd, .count = round.count, .round = passes_done_};
  end.flags = final_round ? runtime::wire::kFlagFinal : 0;
  append_frame(bytes, end);
}

/// Returns how many pages are news.
std::uint64_t SourceEnd::send_round() {
  const auto round = rounds_->next_round().value();
  note_dirty(round);
  std::vector<std::byte> bytes;
  add_stale(bytes, round, false);
  lanes().control->to_target.send_bytes(bytes);
  ++rounds_sent_;
  return round.count;
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

void SourceEnd::send_flight() {
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
  std::vector<std::byte> flight;
  add_stale(flight, last, true);
  add_first_pages(flight);
  append_frame(flight, {.type = FrameType::kState}, std::vector<std::byte>(500));
  append_frame(flight, {.type = FrameType::kRun});
  open_ = true;
  step(SourceEvent::kOrderSent);
  gate(OwnershipEvent::kOrder);
  lanes().control->to_target.send_bytes(flight);
  world_.flight_sent();
  order_->on_recently_dirty(last.pages);
}

void SourceEnd::finish() {
  lanes().control->to_target.send({.type = FrameType::kCompleteAck});
  step(SourceEvent::kTargetComplete);
  world_.source_released = true;
  close_lanes(lanes());
}

// ---- the end that nobody wanted -----------------------------------------------------------------

/// Before the order.
void SourceEnd::end() {
  SourceEvent event = SourceEvent::kLinkLost;
  if (cancel_) {
    event = SourceEvent::kCancel;
    if (state_ != SourceState::kConnecting) {
      lanes().control->to_target.send({.type = FrameType::kCancel});
    }
  } else if (inbox_.never) {
    event = SourceEvent::kTargetNever;
  } else if (inbox_.refused) {
    event = SourceEvent::kRefused;
  } else if (save_failed_ && state_ == SourceState::kSwitching) {
    event = SourceEvent::kSwitchFailed;
    world_.link_harmed = true;
  }
  // What this state cannot hear counts as a lost link.
  step(runtime::step(state_, event).ok() ? event : SourceEvent::kLinkLost);
  close_lanes(lanes());
}

void SourceEnd::close_lanes(SourceLanes& lanes) {
  if (std::exchange(lanes.closed, true)) {
    return;
  }
  for (Connection* lane : lanes.all()) {
    // What the kernel still holds goes out, or a reset eats it.
    world_.random.once_in(3) ? lane->to_target.cut(world_.random) : lane->to_target.close();
    lane->to_source.shut(world_.random);
  }
}

bool SourceEnd::step(SourceEvent event) {
  const auto rule = runtime::step(state_, event);
  if (!rule.ok()) {
    world_.fail("the source cannot step: " + rule.error().detail);
    return false;
  }
  world_.coverage.source.emplace(state_, event);
  const bool before = runtime::before_order(state_);
  state_ = rule.value().to;
  if (rule.value().act == SourceAction::kResumeGuest) {
    const OwnershipEvent back = event == SourceEvent::kTakeBack ? OwnershipEvent::kTakeBack
                                                                : OwnershipEvent::kTargetRefused;
    gate(before ? OwnershipEvent::kRelease : back);
    parked_ = false;
  }
  return true;
}

void SourceEnd::gate(OwnershipEvent event) {
  const runtime::Ownership from = gate_.ownership();
  if (const auto stepped = gate_.step(event); !stepped.ok()) {
    world_.fail("the source's gate: " + stepped.error().detail);
  }
  world_.coverage.gates.emplace(from, event);
}

bool SourceEnd::interrupted() const {
  return (cancel_ && runtime::before_order(state_)) || inbox_.never || inbox_.refused ||
         (inbox_.lost && !inbox_.complete);
}

void SourceEnd::lose() {
  inbox_.lost = true;
}

void SourceEnd::cancel() {
  cancel_ = cancel_ || runtime::before_order(state_);
}

void SourceEnd::ask_for_switch() {
  switch_asked_ = true;
  cut_ = true;
}

bool SourceEnd::uneasy() {
  if (lanes().closed || inbox_.lost || state_ == SourceState::kConnecting) {
    return false;
  }
  std::vector<Connection*> used;
  if (lanes().control != nullptr) {
    used.push_back(lanes().control);
  }
  if (lanes().urgent != nullptr && !lanes().fate({LaneRole::kUrgent, 0}).ended) {
    used.push_back(lanes().urgent);
  }
  for (std::size_t i = 0; i < lanes().bulk.size(); ++i) {
    if (!lanes().fate({LaneRole::kBulk, static_cast<std::uint8_t>(i)}).ended) {
      used.push_back(lanes().bulk[i]);
    }
  }
  if (greeting_ != nullptr) {
    used.push_back(greeting_);
  }
  const bool silent = world_.frozen(Process::kTarget) || world_.dead(Process::kTarget);
  return std::any_of(used.begin(), used.end(),
                     [silent](const Connection* one) { return silent || one->held_up(); });
}

void SourceEnd::die(bool host) {
  world_.kill(Process::kSource);
  for (SourceLanes& one : epochs_) {
    for (Connection* lane : one.all()) {
      lane->to_target.cut(world_.random);
      lane->to_target.freeze(host && !lane->to_target.over());
      lane->to_source.shut(world_.random);
    }
  }
}

}  // namespace towline::simulation
