#include "tools/client/progress.h"

#include <chrono>

#include <fmt/format.h>

#include "tools/human.h"
#include "tools/output.h"
#include "vmm/monitor/json.h"

namespace towline::tools {
namespace {

using monitor::Json;
using monitor::text_of;
using monitor::whole_of;

constexpr std::chrono::seconds kRateWindow{2};
constexpr std::chrono::seconds kPlainPeriod{1};

std::string time_left(std::uint64_t bytes, double rate) {
  if (bytes == 0) {
    return "nearly done";
  }
  if (rate < 1) {
    return "time left unknown";
  }
  const auto seconds = static_cast<std::uint64_t>(static_cast<double>(bytes) / rate) + 1;
  return seconds < 120 ? fmt::format("{} s left", seconds)
                       : fmt::format("{} min left", (seconds + 59) / 60);
}

/// Faults served at the target, once there are any.
std::string faults(const Json& target) {
  const Json* own = target.find("x-towline");
  const Json* found = own == nullptr ? nullptr : own->find("faults");
  const std::uint64_t served = found == nullptr ? 0 : whole_of(*found, "served");
  return served == 0 ? std::string() : fmt::format(", {} pages fetched on demand", served);
}

/// What the target has no room for.
std::string waits_for(const Json& side) {
  const Json* own = side.find("x-towline");
  return own == nullptr ? std::string() : text_of(*own, "waits-for");
}

/// Why nothing moves just now, in short. Empty: it does.
std::string stopped_by(const Json& side) {
  const Json* own = side.find("x-towline");
  if (!waits_for(side).empty()) {
    return "waits for room at the target";
  }
  return own != nullptr && text_of(*own, "link") == "lost" ? "the link is lost" : "";
}

}  // namespace

double Progress::rate(base::Instant now, std::uint64_t transferred) {
  samples_.push_back({now, transferred});
  while (samples_.size() > 2 && now - samples_.front().at > kRateWindow) {
    samples_.pop_front();
  }
  const Sample& first = samples_.front();
  const double seconds = std::chrono::duration<double>(now - first.at).count();
  return seconds <= 0 || transferred < first.transferred
             ? 0
             : static_cast<double>(transferred - first.transferred) / seconds;
}

std::string Progress::line(const MoveView& view, base::Instant now) {
  const Json& side = view.source.is_null() ? view.target : view.source;
  const Json* ram = side.find("ram");
  std::string status = text_of(side, "status", "gone");
  // Elsewhere the numbers are of what has not begun, or of what is over.
  const bool moving = status == "active" || status == "device" || status.starts_with("postcopy");
  if (!moving || ram == nullptr || whole_of(*ram, "total") == 0) {
    return status;
  }
  const std::uint64_t left = whole_of(*ram, "remaining");
  const double speed = rate(now, whole_of(*ram, "transferred"));
  if (const std::string reason = stopped_by(side); !reason.empty()) {
    return fmt::format("{:<15}  {} of {} to go, {}", status, human_bytes(left),
                       human_bytes(whole_of(*ram, "total")), reason);
  }
  return fmt::format("{:<15}  {} of {} to go, {}/s, {}{}", status, human_bytes(left),
                     human_bytes(whole_of(*ram, "total")),
                     human_bytes(static_cast<std::uint64_t>(speed)), time_left(left, speed),
                     faults(view.target));
}

void Progress::show(const MoveView& view, base::Instant now) {
  std::string waits = waits_for(view.source.is_null() ? view.target : view.source);
  if (waits != last_waits_ && !waits.empty()) {
    say(waits);  // Once, in full: a line in place has no room for it.
  }
  last_waits_ = std::move(waits);
  if (view.silent != last_silent_ && !view.silent.empty()) {
    say(view.silent);
  }
  last_silent_ = view.silent;
  const std::string text = line(view, now);
  if (terminal_) {
    put(out_, fmt::format("\r\033[K{}", text));
    line_is_open_ = true;
  } else {
    const std::string status = text_of(view.source.is_null() ? view.target : view.source, "status");
    if (status == last_status_ && now - last_line_ < kPlainPeriod) {
      return;
    }
    last_status_ = status;
    last_line_ = now;
    put(out_, fmt::format("{}\n", text));
  }
  std::fflush(out_);
}

void Progress::say(const std::string& text) {
  finish();
  put(out_, fmt::format("{}\n", text));
  std::fflush(out_);
}

void Progress::finish() {
  if (line_is_open_) {
    std::fputs("\r\033[K", out_);
    line_is_open_ = false;
    std::fflush(out_);
  }
}

}  // namespace towline::tools
