#pragma once

#include <cstdint>
#include <optional>

#include "base/sync.h"
#include "base/units.h"
#include "runtime/core/memory_layout.h"
#include "runtime/core/page_map.h"
#include "runtime/target/request_sender.h"

namespace towline::runtime {

/// What is still missing when the source pushes nothing more is asked for: both ends agree on what
/// was sent only up to the pages that arrived when nobody could take them.
///
/// Threads: any.
class MissingSweep {
 public:
  MissingSweep(const MemoryLayout& layout, const PageMap& map) : layout_(layout), map_(map) {}

  /// Requests leave by `sender`. Before every other call.
  void ask_by(RequestSender& sender) { sender_ = &sender; }

  /// Everything was pushed: from the first page on.
  void begin();

  /// An answer to one of its requests came: there is room for another.
  void on_answer();

  /// Asks for as much as may be under way.
  void more();

  /// No answer that is still to come ever will: nothing is under way.
  void forget();

 private:
  void rewind() REQUIRES(mutex_);
  void ask() REQUIRES(mutex_);
  std::optional<base::PageRange> next(base::PageCount most) REQUIRES(mutex_);

  const MemoryLayout& layout_;
  const PageMap& map_;
  RequestSender* sender_ = nullptr;

  base::Mutex mutex_;
  base::PageIndex at_ GUARDED_BY(mutex_);
  bool found_ GUARDED_BY(mutex_) = false;  // Something, since it began at page 0.
  std::uint64_t outstanding_ GUARDED_BY(mutex_) = 0;
};

}  // namespace towline::runtime
