#include "tools/client/qmp_client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <utility>

#include <fmt/format.h>

#include "base/clock.h"
#include "vmm/monitor/monitor_server.h"

namespace towline::tools {
namespace {

using monitor::Json;

/// No answer is near this long. Bytes.
constexpr std::size_t kMaxLine = 16U << 20U;

}  // namespace

base::Expected<QmpClient> QmpClient::connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    return base::fail(base::ErrorKind::kRefused, "connect",
                      fmt::format("QMP socket '{}': a path has 1 to {} bytes", path,
                                  sizeof address.sun_path - 1));
  }
  std::copy(path.begin(), path.end(), std::begin(address.sun_path));
  base::OwnedFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid() ||
      ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return base::fail_errno(
        base::ErrorKind::kDisconnected, "connect",
        fmt::format("no machine answers at QMP socket '{}'; it is the path given to "
                    "'towline run --qmp unix:PATH'",
                    path));
  }
  QmpClient client(path, std::move(fd));
  auto greeted = client.next_message(base::system_clock().now() + client.patience_);
  if (!greeted.ok() && greeted.error().kind == base::ErrorKind::kDisconnected) {
    return base::fail(
        base::ErrorKind::kDisconnected, "greeting",
        fmt::format("the machine at '{}' closed the connection at once: it is ending, "
                    "or has all the QMP clients that it takes ({})",
                    path, monitor::kMaxClients));
  }
  const auto greeting = TRY(std::move(greeted));
  if (greeting.find("QMP") == nullptr) {
    return base::fail(base::ErrorKind::kCorrupt, "greeting",
                      fmt::format("what answers at '{}' does not speak QMP", path));
  }
  static_cast<void>(TRY(client.execute("qmp_capabilities")));
  return client;
}

base::Expected<Json> QmpClient::execute(const std::string& command, const Json& arguments) {
  const std::uint64_t id = next_id_++;
  Json message = Json::object({{"execute", command}, {"id", id}});
  if (!arguments.is_null()) {
    message.set("arguments", arguments);
  }
  const std::string line = message.dump() + "\r\n";
  if (!base::write_all(fd_.get(), std::as_bytes(std::span(line))).ok()) {
    return base::fail(base::ErrorKind::kDisconnected, "write",
                      fmt::format("the machine at '{}' is gone", path_));
  }
  const auto deadline = base::system_clock().now() + patience_;
  while (true) {
    const Json answer = TRY(next_message(deadline));
    if (monitor::whole_of(answer, "id") != id) {
      continue;  // An event.
    }
    if (const Json* value = answer.find("return")) {
      return *value;
    }
    const Json* error = answer.find("error");
    return base::fail(base::ErrorKind::kRefused, "QMP",
                      error == nullptr ? answer.dump() : monitor::text_of(*error, "desc"));
  }
}

base::Expected<Json> QmpClient::next_message(std::chrono::steady_clock::time_point deadline) {
  std::size_t end = unread_.find('\n');
  while (end == std::string::npos) {
    TRY(read_some(deadline));
    end = unread_.find('\n');
  }
  const std::string line = unread_.substr(0, end);
  unread_.erase(0, end + 1);
  return Json::parse(line);
}

base::Outcome QmpClient::read_some(std::chrono::steady_clock::time_point deadline) {
  TRY(wait_readable(deadline));
  std::array<char, 65536> bytes{};
  const ssize_t got = ::recv(fd_.get(), bytes.data(), bytes.size(), 0);
  if (got < 0 && errno == EINTR) {
    return base::Done{};
  }
  if (got <= 0 || unread_.size() > kMaxLine) {
    return base::fail(base::ErrorKind::kDisconnected, "read",
                      fmt::format("the machine at '{}' is gone", path_));
  }
  unread_.append(bytes.data(), static_cast<std::size_t>(got));
  return base::Done{};
}

base::Outcome QmpClient::wait_readable(std::chrono::steady_clock::time_point deadline) const {
  while (true) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - base::system_clock().now());
    pollfd one{fd_.get(), POLLIN, 0};
    const int ready = ::poll(&one, 1, static_cast<int>(std::max<std::int64_t>(left.count(), 0)));
    if (ready > 0) {
      return base::Done{};
    }
    if (ready == 0) {
      return base::fail(base::ErrorKind::kOverloaded, "poll",
                        fmt::format("the machine at '{}' has not answered within {} s; is it "
                                    "stopped?",
                                    path_, patience_.count()));
    }
    if (errno != EINTR) {
      return base::fail_errno(base::ErrorKind::kDisconnected, "poll", path_);
    }
  }
}

}  // namespace towline::tools
