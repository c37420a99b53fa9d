#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "base/error.h"
#include "base/fd.h"
#include "runtime/options.h"

/// Sockets as this project wants them: close-on-exec, tuned, with errors that name the address.
namespace towline::runtime {

/// Is given a descriptor, with true, when somebody else is waited for on it, and with false when
/// that is over: whoever wants an end of that shuts it down meanwhile (shutdown(2)).
using WaitingOn = std::function<void(int, bool)>;

/// Tells `waiting_on`, if there is one, of `fd` for as long as this lives: not longer than `fd`.
class WaitingNote {
 public:
  WaitingNote(const WaitingOn& waiting_on, int fd) : waiting_on_(waiting_on), fd_(fd) {
    tell(true);
  }

  WaitingNote(const WaitingNote&) = delete;
  WaitingNote& operator=(const WaitingNote&) = delete;

  ~WaitingNote() { tell(false); }

 private:
  void tell(bool waits) const {
    if (waiting_on_) {
      waiting_on_(fd_, waits);
    }
  }

  const WaitingOn& waiting_on_;
  const int fd_;
};

/// Connects within `timeout`; the result is blocking.
///
/// Errors: kDisconnected with the reason ("Connection refused", "timed out after 5000 ms").
base::Expected<base::OwnedFd> connect_to(const Uri& target, std::chrono::milliseconds timeout,
                                         const WaitingOn& waiting_on = {});

struct Listening {
  base::OwnedFd fd;  ///< Non-blocking.
  Uri at;            ///< With the real port.
};

/// Binds and listens. A stale unix socket that nobody answers on is replaced; a live one is not.
///
/// Errors: kRefused, naming the address and the remedy ("port in use").
base::Expected<Listening> listen_at(const Uri& at);

/// Removes a unix socket's name. Anything else of that name is left alone.
void remove_socket(const std::string& path);

/// Lane settings: no delay, keep-alive, a bound on unacknowledged data. No effect on unix sockets.
void tune_lane(int fd);

/// Whether a peer that takes nothing, and whose kernel says so, is waited for: otherwise the
/// connection ends after the bound on unacknowledged data, which counts a closed window too
/// (docs/kernel-contract.md). No effect on unix sockets.
void bear_closed_window(int fd, bool bear);

/// Bulk lanes: keeps little unsent data in the kernel, so that what is sent next is decided late.
void tune_bulk(int fd);

base::Outcome set_blocking(int fd, bool blocking);

/// Reads give up after `timeout`; zero waits for ever.
void set_receive_timeout(int fd, std::chrono::milliseconds timeout);

}  // namespace towline::runtime
