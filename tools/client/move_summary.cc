#include "tools/client/move_summary.h"

#include <fmt/format.h>

#include "tools/human.h"

namespace towline::tools {
namespace {

using monitor::Json;
using monitor::number_of;
using monitor::whole_of;

const Json& member(const Json& object, const char* name) {
  static const Json nothing;
  const Json* found = object.find(name);
  return found == nullptr ? nothing : *found;
}

/// The blackout, from whichever side measured it.
const Json& blackout(const MoveView& view) {
  const Json& at_target = member(member(view.target, "x-towline"), "blackout-ms");
  return at_target.is_null() ? member(member(view.source, "x-towline"), "blackout-ms") : at_target;
}

/// The side that counted the bytes it sent; the target when the source is gone.
const Json& sender(const MoveView& view) {
  return view.source.is_null() ? view.target : view.source;
}

const char* word(MoveEnd end) {
  switch (end) {
    case MoveEnd::kMoved:
      return "completed";
    case MoveEnd::kFailed:
      return "failed";
    case MoveEnd::kCancelled:
      return "cancelled";
    case MoveEnd::kUndecided:
      return "undecided";
  }
  __builtin_unreachable();
}

std::string headline(const MoveView& view, const std::string& target_path) {
  const double seconds = number_of(sender(view), "total-time") / 1000;
  switch (*view.end) {
    case MoveEnd::kMoved:
      return fmt::format("Moved in {:.2f} s: the guest runs at the target.", seconds);
    case MoveEnd::kFailed:
      return fmt::format("Failed: {}.{}", view.reason.empty() ? "no reason known" : view.reason,
                         view.source.is_null() ? "" : "\nThe guest is at the source, as before.");
    case MoveEnd::kCancelled:
      return "Cancelled: the guest runs on at the source.";
    case MoveEnd::kUndecided:
      return fmt::format(
          "Undecided: {}.\nEnd neither process: each may hold memory that the guest needs. "
          "'towline status {}' tells how it goes on.",
          view.reason.empty() ? "the move is paused" : view.reason, target_path);
  }
  __builtin_unreachable();
}

std::string fault_lines(const Json& faults) {
  const std::uint64_t served = whole_of(faults, "served");
  if (served == 0) {
    return "  on demand     no page had to be fetched while the guest waited\n";
  }
  return fmt::format(
      "  on demand     {} pages fetched while the guest waited\n"
      "  waits         half within {}, 99% within {}, longest {}\n",
      served, human_us(number_of(faults, "p50-us")), human_us(number_of(faults, "p99-us")),
      human_us(number_of(faults, "max-us")));
}

std::string byte_line(const Json& ram) {
  return fmt::format(
      "  sent          {}: {} before the switch, {} in it, {} after\n",
      human_bytes(whole_of(ram, "transferred")), human_bytes(whole_of(ram, "precopy-bytes")),
      human_bytes(whole_of(ram, "downtime-bytes")), human_bytes(whole_of(ram, "postcopy-bytes")));
}

}  // namespace

std::string summary_text(const MoveView& view, const std::string& target_path) {
  std::string text = headline(view, target_path) + "\n";
  if (view.end != MoveEnd::kMoved) {
    return text;
  }
  if (const Json& pause = blackout(view); !pause.is_null()) {
    text += fmt::format("  blackout      {}: the guest ran nowhere\n",
                        human_us(pause.number().value_or(0) * 1000));
  }
  text += fault_lines(member(member(view.target, "x-towline"), "faults"));
  text += byte_line(member(sender(view), "ram"));
  return text;
}

Json summary_json(const MoveView& view) {
  Json summary =
      Json::object({{"status", word(*view.end)}, {"exit-status", static_cast<int>(*view.end)}});
  if (!view.reason.empty()) {
    summary.set("reason", view.reason);
  }
  summary.set("total-time-ms", member(sender(view), "total-time"));
  summary.set("blackout-ms", blackout(view));
  summary.set("bytes", member(member(sender(view), "ram"), "transferred"));
  summary.set("faults", member(member(view.target, "x-towline"), "faults"));
  summary.set("source", view.source);
  summary.set("target", view.target);
  return summary;
}

}  // namespace towline::tools
