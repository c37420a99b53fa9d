#pragma once

#include <string>

/// A dead link looks the same from TCP wherever it broke. If it broke at this host's own network
/// device, the kernel knows.
namespace towline::runtime {

/// What is wrong with the network device that carries `fd`'s local address, as a clause for a
/// message: "this host's network device eth1 (10.0.0.1) is down". Empty: nothing can be seen, or
/// the socket is no internet socket.
std::string device_trouble(int fd);

}  // namespace towline::runtime
