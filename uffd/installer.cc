#include "uffd/installer.h"

#include <sys/ioctl.h>

#include <cerrno>

#include "base/ensure.h"
#include "uffd/uapi.h"

namespace towline::uffd {
namespace {

using base::Err;
using base::Error;
using base::ErrorKind;
using base::Expected;

// A guess: a collapse or an unmap in progress is over after a few tries, and the caller, who may be
// the reader of events that the change waits for, must get the word soon.
constexpr int kMostRetries = 16;

const char* operation_of(Fill fill) {
  switch (fill) {
    case Fill::kContinue:
      return "UFFDIO_CONTINUE";
    case Fill::kCopy:
      return "UFFDIO_COPY";
    case Fill::kZero:
      return "UFFDIO_ZEROPAGE";
    case Fill::kPoison:
      return "UFFDIO_POISON";
  }
  ENSURE(false, "a fill without a name");
}

FillStep decode_errno(Fill fill, int errno_value) {
  using Action = FillStep::Action;
  switch (errno_value) {
    case EEXIST:
      return {Action::kSkip, PageCount{1}, RunEnd::kComplete};
    case EAGAIN:
    case EINTR:
      return {Action::kRetry, PageCount{0}, RunEnd::kLayoutChanging};
    case ENOENT:
    case ESRCH:
      return {Action::kEnd, PageCount{0}, RunEnd::kGone};
    case ENOMEM:
    case ENOSPC:
      return {Action::kEnd, PageCount{0}, RunEnd::kNoMemory};
    case EFAULT:
      // From COPY it is the source buffer: a bug. From CONTINUE it is a hole in the file.
      if (fill == Fill::kContinue) {
        return {Action::kEnd, PageCount{0}, RunEnd::kNoPage};
      }
      break;
    default:
      break;
  }
  return {Action::kBug, PageCount{0}, RunEnd::kComplete};
}

FillAnswer ask(int fd, unsigned long request, void* argument, const __s64& done) {
  FillAnswer answer;
  answer.result = ::ioctl(fd, request, argument);
  answer.errno_value = answer.result == 0 ? 0 : errno;
  answer.done = done;
  return answer;
}

}  // namespace

FillStep decode_fill(Fill fill, const FillAnswer& answer, Bytes length, Bytes page_size) {
  if (answer.result == 0) {
    return {FillStep::Action::kAdvance, PageCount{length.value / page_size.value},
            RunEnd::kComplete};
  }
  // Stopped short: the pages before the obstacle are in and woken. What the obstacle was, the next
  // request says, which begins with it. The field is untouched, that is 0, if nothing was tried.
  if (answer.errno_value == EAGAIN && answer.done > 0) {
    return {FillStep::Action::kAdvance,
            PageCount{static_cast<std::uint64_t>(answer.done) / page_size.value},
            RunEnd::kComplete};
  }
  return decode_errno(fill, answer.errno_value);
}

template <typename Issue>
Expected<RunOutcome> Installer::run(Fill fill, HostAddress first, PageCount pages, Bytes page_size,
                                    Issue issue) const {
  RunOutcome outcome;
  int retries = 0;
  while (outcome.examined().value < pages.value) {
    const std::uint64_t skipped = outcome.examined().value * page_size.value;
    const HostAddress at{first.value + skipped};
    const Bytes length{pages.value * page_size.value - skipped};
    const FillAnswer answer = issue(at, length, Bytes{skipped});
    const FillStep step = decode_fill(fill, answer, length, page_size);
    switch (step.action) {
      case FillStep::Action::kAdvance:
        outcome.installed.value += step.pages.value;
        retries = 0;
        break;
      case FillStep::Action::kSkip:
        // A faulting thread decides to sleep by a lockless look at the page table and can be wrong
        // (mprotect hides an entry for a moment). The winner's wake may already be past: without
        // this one that thread sleeps for ever.
        wake(at, page_size);
        outcome.already.value += step.pages.value;
        retries = 0;
        break;
      case FillStep::Action::kRetry:
        if (++retries > kMostRetries) {
          outcome.end = step.end;
          return outcome;
        }
        break;
      case FillStep::Action::kEnd:
        outcome.end = step.end;
        return outcome;
      case FillStep::Action::kBug:
        return Err{Error{ErrorKind::kFailed, answer.errno_value, operation_of(fill), {}}};
    }
  }
  return outcome;
}

Expected<RunOutcome> Installer::continue_run(HostAddress first, PageCount pages, Bytes page_size,
                                             Wake wake) const {
  return run(Fill::kContinue, first, pages, page_size,
             [this, wake](HostAddress at, Bytes length, Bytes /*skipped*/) {
               uffdio_continue request{};
               request.range = {.start = at.value, .len = length.value};
               request.mode = wake == Wake::kNow ? 0 : UFFDIO_CONTINUE_MODE_DONTWAKE;
               return ask(fd_, UFFDIO_CONTINUE, &request, request.mapped);
             });
}

Expected<RunOutcome> Installer::copy_run(HostAddress first, std::span<const std::byte> source,
                                         Bytes page_size, Wake wake) const {
  ENSURE(source.size() % page_size.value == 0, "whole pages are copied");
  return run(Fill::kCopy, first, PageCount{source.size() / page_size.value}, page_size,
             [this, wake, source](HostAddress at, Bytes length, Bytes skipped) {
               uffdio_copy request{};
               request.dst = at.value;
               request.src = reinterpret_cast<std::uintptr_t>(source.data()) + skipped.value;
               request.len = length.value;
               request.mode = wake == Wake::kNow ? 0 : UFFDIO_COPY_MODE_DONTWAKE;
               return ask(fd_, UFFDIO_COPY, &request, request.copy);
             });
}

Expected<RunOutcome> Installer::zero_run(HostAddress first, PageCount pages, Bytes page_size,
                                         Wake wake) const {
  return run(Fill::kZero, first, pages, page_size,
             [this, wake](HostAddress at, Bytes length, Bytes /*skipped*/) {
               uffdio_zeropage request{};
               request.range = {.start = at.value, .len = length.value};
               request.mode = wake == Wake::kNow ? 0 : UFFDIO_ZEROPAGE_MODE_DONTWAKE;
               return ask(fd_, UFFDIO_ZEROPAGE, &request, request.zeropage);
             });
}

Expected<RunOutcome> Installer::poison_run(HostAddress first, PageCount pages, Bytes page_size,
                                           Wake wake) const {
  return run(Fill::kPoison, first, pages, page_size,
             [this, wake](HostAddress at, Bytes length, Bytes /*skipped*/) {
               uapi::Poison request{};
               request.range = {.start = at.value, .len = length.value};
               request.mode = wake == Wake::kNow ? 0 : uapi::kPoisonDontWake;
               FillAnswer answer = ask(fd_, uapi::kPoison, &request, 0);
               answer.done = request.updated;
               return answer;
             });
}

void Installer::wake(HostAddress start, Bytes length) const {
  uffdio_range range{.start = start.value, .len = length.value};
  // Waking nobody is no error, nor is a range that has gone: only nonsense is refused.
  ENSURE(::ioctl(fd_, UFFDIO_WAKE, &range) == 0, "UFFDIO_WAKE of a range that is not page aligned");
}

}  // namespace towline::uffd
