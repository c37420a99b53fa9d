#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/event_loop.h"
#include "base/fd.h"
#include "base/sync.h"
#include "base/thread.h"
#include "runtime/link/handshake.h"
#include "runtime/link/sockets.h"
#include "runtime/options.h"
#include "runtime/wire/format.h"

namespace towline::runtime {

/// What the target's driver tells the listener about a connection that has greeted.
struct Admission {
  std::string refusal;            ///< Not empty: the connection is told this and closed.
  std::vector<std::byte> secret;  ///< Not empty: the connection must prove that it knows this.
  wire::TargetPhase phase = wire::TargetPhase::kNone;
  /// The source speaks first on this lane: it is delivered when it does, so that whoever is let in
  /// without a proof and then says nothing keeps nobody else out.
  bool speaks_first = false;
};

/// Accepts connections at the target and takes them through the handshake; only proven ones reach
/// the driver. Everything runs on one event-loop thread, "tl-listen", and nothing there blocks.
///
/// Unproven connections are bounded in number (the oldest gives way), in bytes (one frame of 256)
/// and in time (the handshake timeout), so that strangers cost little. A hello that proves the
/// secret has a place of its own, one for each lane, which no stranger can take. What strangers did
/// is told in one line now and then, with counts, however many they are.
class Listener {
 public:
  /// Called on the listener's thread. `admit` looks at a greeting; `deliver` takes a proven lane
  /// (blocking, tuned) and must return soon.
  struct Callbacks {
    std::function<Admission(const wire::Hello&)> admit;
    std::function<void(std::unique_ptr<Lane>, const wire::Hello&)> deliver;
  };

  /// Binds and listens; nobody is answered before start().
  static base::Expected<std::unique_ptr<Listener>> bind(const Uri& at,
                                                        std::chrono::milliseconds timeout,
                                                        std::uint64_t incarnation,
                                                        Callbacks callbacks);
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;
  ~Listener();

  /// Begins to answer. Once.
  void start();

  /// Calls `work` once, after `delay`, on the listener's thread; again to put it off. Only from
  /// that thread.
  void set_deadline(std::chrono::milliseconds delay, std::function<void()> work);

  /// Calls `work` on the listener's thread, unless this ends first. Threads: any.
  void post(std::function<void()> work);

  /// Listens at a further address too, in the place of the one that was added before it; an address
  /// that is listened at already is no error.
  /// Threads: any. Errors: as bind().
  base::Outcome add(const Uri& at);

  /// The address that was asked for last, with its real port. Threads: any.
  [[nodiscard]] Uri at() const EXCLUDES(mutex_);

  /// Connections that went away without having proven themselves.
  [[nodiscard]] std::uint64_t strangers() const { return strangers_; }

 private:
  class Connection;
  friend class Connection;

  /// How a connection ended that did not become a lane.
  enum class Stranger : std::uint8_t {
    kGarbage,      ///< What it said is no greeting.
    kWrongSecret,  ///< It said that it knows the secret, and does not.
    kRefused,      ///< It greeted, and is not wanted.
    kSilent,       ///< Its time was over.
    kGone,         ///< It closed.
    kCrowdedOut,   ///< It gave its place to another one.
  };
  static constexpr std::size_t kStrangers = 6;

  /// One address.
  struct Socket {
    Uri at;
    base::OwnedFd fd;
    std::unique_ptr<base::EventLoop::Handle> accepting;
    std::unique_ptr<base::EventLoop::Handle> accept_again;
  };

  Listener() = default;
  void accept_some(Socket& socket);
  bool accept_one(Socket& socket);
  void out_of_files(Socket& socket, int error);
  void watch(Socket& socket);
  void forget_last();
  void give_own_place(Connection* connection);
  void remove(Connection* connection);
  void drop(Connection* connection, Stranger how);
  void note(Stranger how);
  void tell_strangers();

  mutable base::Mutex mutex_;
  std::vector<Uri> addresses_ GUARDED_BY(mutex_);  // Of all sockets, the newest last.
  std::chrono::milliseconds timeout_{0};
  std::uint64_t incarnation_ = 0;
  Callbacks callbacks_;
  std::atomic<std::uint64_t> strangers_{0};
  std::unique_ptr<base::EventLoop> loop_;
  std::list<Socket> sockets_;  // Changed on the loop's thread once it runs.
  std::unique_ptr<base::EventLoop::Handle> deadline_;
  std::list<std::unique_ptr<Connection>> connections_;  // The oldest first.
  std::list<std::unique_ptr<Connection>> proven_;       // By their hello; one for each lane.
  std::array<std::uint64_t, kStrangers> untold_{};      // Since the last line about them.
  std::string last_refusal_;
  bool full_told_ = false;                            // Since the same line.
  std::unique_ptr<base::EventLoop::Handle> telling_;  // Runs out when the next line may come.
  base::NamedThread thread_;
};

}  // namespace towline::runtime
