#include "runtime/options.h"

#include <arpa/inet.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>

#include <fmt/format.h>

#include "base/text.h"

namespace towline::runtime {
namespace {

constexpr std::string_view kForms = "use tcp:HOST:PORT, tcp:[IPV6-ADDRESS]:PORT or unix:PATH";
constexpr std::size_t kMaxHost = 255;                                // RFC 1035, 2.3.4.
constexpr std::size_t kMaxPath = sizeof(sockaddr_un::sun_path) - 1;  // With its final NUL.

base::Err<base::Error> refuse(std::string_view text, std::string_view why) {
  return base::fail(base::ErrorKind::kRefused, "address",
                    fmt::format("address '{}': {}; {}", text, why, kForms));
}

bool all_printable(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char one) {
    const auto byte = static_cast<unsigned char>(one);
    return byte <= 0x20 || byte == 0x7f;
  });
}

bool is_ipv6(std::string_view host) {
  std::array<unsigned char, sizeof(in6_addr)> ignored{};
  const std::string address(host.substr(0, host.find('%')));  // fe80::1%eth0 names a link.
  return ::inet_pton(AF_INET6, address.c_str(), ignored.data()) == 1;
}

base::Expected<std::uint16_t> parse_port(const std::string& text, std::string_view port) {
  std::uint16_t value = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), value);
  if (port.empty() || error != std::errc{} || end != port.data() + port.size()) {
    return refuse(text, fmt::format("port '{}' is not a number from 0 to 65535", port));
  }
  return value;
}

base::Expected<Uri> parse_tcp(const std::string& text, std::string_view rest) {
  const std::size_t colon = rest.rfind(':');
  if (colon == std::string_view::npos || rest.back() == ']') {
    return refuse(text, "the port is missing");
  }
  std::string_view host = rest.substr(0, colon);
  const bool bracketed = host.size() >= 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) {
    host = host.substr(1, host.size() - 2);
    if (!is_ipv6(host)) {
      return refuse(text, fmt::format("'{}' in brackets is not an IPv6 address", host));
    }
  } else if (host.find_first_of(":[]") != std::string_view::npos) {
    return refuse(text, fmt::format("host '{}' has colons or brackets: an IPv6 address stands in "
                                    "brackets, a host name has none",
                                    host));
  }
  if (host.size() > kMaxHost) {
    return refuse(text.substr(0, kMaxHost),
                  fmt::format("a host has at most {} characters", kMaxHost));
  }
  Uri uri;
  uri.host = host.empty() ? "0.0.0.0" : std::string(host);
  uri.port = TRY(parse_port(text, rest.substr(colon + 1)));
  return uri;
}

base::Expected<Uri> parse_unix(const std::string& text, std::string_view path) {
  if (path.empty()) {
    return refuse(text, "the path is missing");
  }
  if (path.size() > kMaxPath) {
    return refuse(text, fmt::format("the path has {} bytes and a socket's path at most {}",
                                    path.size(), kMaxPath));
  }
  Uri uri;
  uri.kind = Uri::Kind::kUnix;
  uri.path = std::string(path);
  return uri;
}

bool is_loopback(const std::string& host) {
  std::array<unsigned char, sizeof(in6_addr)> bytes{};
  if (::inet_pton(AF_INET, host.c_str(), bytes.data()) == 1) {
    return bytes[0] == 127;
  }
  if (::inet_pton(AF_INET6, host.c_str(), bytes.data()) == 1) {
    constexpr std::array<unsigned char, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    constexpr std::array<unsigned char, 16> kLoopback{0, 0, 0, 0, 0, 0, 0, 0,
                                                      0, 0, 0, 0, 0, 0, 0, 1};
    return bytes == kLoopback ||
           (std::equal(kMapped.begin(), kMapped.end(), bytes.begin()) && bytes[12] == 127);
  }
  return host == "localhost";
}

}  // namespace

std::string_view to_string(SourceLoss policy) {
  return kSourceLossNames.at(static_cast<std::size_t>(policy));
}

std::optional<SourceLoss> source_loss_named(std::string_view name) {
  const auto* const found = std::find(kSourceLossNames.begin(), kSourceLossNames.end(), name);
  return found == kSourceLossNames.end()
             ? std::nullopt
             : std::optional(static_cast<SourceLoss>(found - kSourceLossNames.begin()));
}

base::Expected<Uri> Uri::parse(const std::string& text) {
  const std::string_view all = text;
  const bool is_unix = all.starts_with("unix:");
  if (!is_unix && !all.starts_with("tcp:")) {
    return base::fail(base::ErrorKind::kRefused, "address",
                      fmt::format("unknown migration protocol: {} ({})", text, kForms));
  }
  // A path may hold spaces; nothing may hold what would break a line or end a C string.
  if (!is_unix && !all_printable(all)) {
    return refuse("tcp:", "it holds a space or a control character");
  }
  if (is_unix && base::has_control(all)) {
    return refuse("unix:", "the path holds a line end or another control character");
  }
  return is_unix ? parse_unix(text, all.substr(5)) : parse_tcp(text, all.substr(4));
}

std::string Uri::to_string() const {
  if (kind == Kind::kUnix) {
    return "unix:" + path;
  }
  const bool is_v6 = host.find(':') != std::string::npos;
  return fmt::format(fmt::runtime(is_v6 ? "tcp:[{}]:{}" : "tcp:{}:{}"), host, port);
}

bool Uri::is_local() const {
  return kind == Kind::kUnix || is_loopback(host);
}

bool Uri::needs_lookup() const {
  if (kind == Kind::kUnix || host == "localhost") {
    return false;
  }
  std::array<unsigned char, sizeof(in6_addr)> bytes{};
  const std::string address = host.substr(0, host.find('%'));  // Without the zone.
  return ::inet_pton(AF_INET, address.c_str(), bytes.data()) != 1 &&
         ::inet_pton(AF_INET6, address.c_str(), bytes.data()) != 1;
}

base::Expected<PageServerChoice> PageServerChoice::parse(const std::string& text) {
  PageServerChoice choice;
  if (text == "none") {
    return choice;
  }
  if (text == "own") {
    choice.kind = Kind::kOwn;
    return choice;
  }
  if (text == "scope") {
    choice.kind = Kind::kScope;
    return choice;
  }
  constexpr std::string_view kPrefix = "unix:";
  if (base::has_control(text)) {
    return base::fail(base::ErrorKind::kRefused, "page server",
                      "page server: the path holds a line end or another control character");
  }
  if (text.starts_with(kPrefix) && text.size() > kPrefix.size()) {
    choice.kind = Kind::kDaemon;
    choice.path = text.substr(kPrefix.size());
    return choice;
  }
  return base::fail(base::ErrorKind::kRefused, "page server",
                    fmt::format("page server '{}': use own (one is started), scope (one is started "
                                "in a scope of systemd's), unix:PATH (one that runs) or none",
                                text));
}

std::string PageServerChoice::to_string() const {
  switch (kind) {
    case Kind::kNone:
      return "none";
    case Kind::kOwn:
      return "own";
    case Kind::kScope:
      return "scope";
    case Kind::kDaemon:
      return "unix:" + path;
  }
  __builtin_unreachable();
}

void MigrationOptions::limit_downtime(std::chrono::milliseconds limit) {
  downtime_limit = limit;
  switch_page_budget = std::min(MigrationOptions{}.switch_page_budget,
                                static_cast<std::uint64_t>(limit.count()) * 1000);
}

}  // namespace towline::runtime
