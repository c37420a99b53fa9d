#include "runtime/link/link_device.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <memory>

#include <fmt/format.h>

namespace towline::runtime {
namespace {

// The address as text; empty for what is no internet address. A v4 address inside v6 is v4 to the
// devices.
std::string text_of_address(const sockaddr* address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  const void* bytes = nullptr;
  int family = address->sa_family;
  if (family == AF_INET) {
    bytes = &reinterpret_cast<const sockaddr_in*>(address)->sin_addr;
  } else if (family == AF_INET6) {
    const in6_addr& six = reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
    bytes = &six;
    if (IN6_IS_ADDR_V4MAPPED(&six)) {
      family = AF_INET;
      bytes = &six.s6_addr[12];
    }
  }
  if (bytes == nullptr ||
      ::inet_ntop(family, bytes, text.data(), static_cast<socklen_t>(text.size())) == nullptr) {
    return {};
  }
  return text.data();
}

}  // namespace

std::string device_trouble(int fd) {
  sockaddr_storage own{};
  socklen_t size = sizeof own;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) != 0) {
    return {};
  }
  const std::string address = text_of_address(reinterpret_cast<const sockaddr*>(&own));
  ifaddrs* first = nullptr;
  if (address.empty() || ::getifaddrs(&first) != 0) {
    return {};
  }
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> all(first, ::freeifaddrs);
  for (const ifaddrs* device = all.get(); device != nullptr; device = device->ifa_next) {
    if (device->ifa_addr == nullptr || text_of_address(device->ifa_addr) != address) {
      continue;
    }
    if ((device->ifa_flags & IFF_UP) == 0) {
      return fmt::format("this host's network device {} ({}) is down", device->ifa_name, address);
    }
    if ((device->ifa_flags & IFF_RUNNING) == 0) {
      return fmt::format(
          "this host's network device {} ({}) has no carrier: a cable, or the other "
          "end of it",
          device->ifa_name, address);
    }
    return {};
  }
  return fmt::format("no network device of this host has the address {} any more", address);
}

}  // namespace towline::runtime
