#include "vmm/device/serial.h"

#include <algorithm>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "vmm/device/devices.h"

namespace towline::vmm {
namespace {

struct Line {
  std::string sent;
  std::vector<bool> levels;  ///< Every change of the interrupt line.
  int rooms = 0;
  SerialPort port{{[this](bool level) { levels.push_back(level); },
                   [this](std::byte byte) { sent.push_back(static_cast<char>(byte)); },
                   [this] { ++rooms; }}};

  std::size_t type(const std::string& text) { return port.receive(std::as_bytes(std::span(text))); }
};

TEST_CASE_FIXTURE(Line, "what is written is sent and the transmitter is empty again") {
  port.write(0, 'h');
  port.write(0, 'i');
  CHECK(sent == "hi");
  CHECK(port.read(5) == 0x60);
}

TEST_CASE_FIXTURE(Line, "with the divisor latch open the divisor is written, and nothing sent") {
  port.write(3, 0x83);
  port.write(0, 1);
  port.write(1, 2);
  CHECK(port.read(0) == 1);
  CHECK(port.read(1) == 2);
  CHECK(sent.empty());
  port.write(3, 0x03);
  CHECK(port.read(1) == 0);
}

TEST_CASE_FIXTURE(Line, "enabling the transmitter's interrupt raises it at once, each time") {
  port.write(1, 0x02);
  CHECK(levels == std::vector<bool>{true});
  CHECK(port.read(2) == 0x02);
  CHECK(levels == std::vector<bool>{true, false});
  CHECK(port.read(2) == 0x01);
  port.write(1, 0x00);
  port.write(1, 0x02);
  CHECK(levels == std::vector<bool>{true, false, true});
}

TEST_CASE_FIXTURE(Line, "each byte sent makes a new edge, also before the last was acknowledged") {
  port.write(1, 0x02);
  port.write(0, 'a');
  port.write(0, 'b');
  CHECK(levels == std::vector<bool>{true, false, true, false, true});
}

TEST_CASE_FIXTURE(Line, "input raises the line until the last byte is taken") {
  port.write(1, 0x01);
  CHECK(type("ok") == 2);
  CHECK(levels == std::vector<bool>{true});
  CHECK(port.read(2) == 0x04);
  CHECK(port.read(5) == 0x61);
  CHECK(port.read(0) == 'o');
  CHECK(levels == std::vector<bool>{true});
  CHECK(port.read(0) == 'k');
  CHECK(levels == std::vector<bool>{true, false});
  CHECK(rooms == 2);
  CHECK(port.read(5) == 0x60);
}

TEST_CASE_FIXTURE(Line, "input is reported before the empty transmitter") {
  port.write(1, 0x03);
  type("x");
  CHECK((port.read(2) & 0x0f) == 0x04);
  port.read(0);
  CHECK((port.read(2) & 0x0f) == 0x02);
}

TEST_CASE_FIXTURE(Line, "the FIFO takes sixteen bytes and no more") {
  CHECK(port.room() == 16);
  CHECK(type("0123456789abcdefgh") == 16);
  CHECK(port.room() == 0);
  CHECK(type("x") == 0);
  CHECK(port.read(0) == '0');
  CHECK(port.room() == 1);
}

TEST_CASE_FIXTURE(Line, "the FIFO says that it is on, and is emptied when told") {
  port.write(2, 0x01);
  CHECK((port.read(2) & 0xc0) == 0xc0);
  type("abc");
  port.write(2, 0x03);
  CHECK(port.read(5) == 0x60);
}

TEST_CASE_FIXTURE(Line, "in loopback a byte comes back instead of going out") {
  port.write(4, 0x10);
  port.write(0, 'x');
  CHECK(sent.empty());
  CHECK(port.read(0) == 'x');
}

TEST_CASE_FIXTURE(Line, "in loopback the modem's outputs are its inputs") {
  port.write(4, 0x10 | 0x0a);  // RTS and OUT2: a driver looks for CTS and DCD.
  CHECK(port.read(6) == 0x90);
  port.write(4, 0x10 | 0x05);  // DTR and OUT1: DSR and RI.
  CHECK(port.read(6) == 0x60);
}

TEST_CASE_FIXTURE(Line, "held input is not taken and raises nothing") {
  port.write(1, 0x01);
  port.hold_input(true);
  CHECK(port.room() == 0);
  CHECK(type("x") == 0);
  CHECK(levels.empty());
  port.hold_input(false);
  CHECK(rooms == 1);
  CHECK(type("x") == 1);
}

TEST_CASE("a port goes on in another one: registers, input and the interrupt line") {
  Line from;
  from.port.write(3, 0x83);
  from.port.write(0, 7);
  from.port.write(3, 0x13);
  from.port.write(1, 0x03);
  from.port.write(2, 0x01);
  from.port.write(7, 0x77);
  from.type("yes");

  Line to;
  REQUIRE(to.port.load(from.port.save()).ok());
  CHECK(to.levels == std::vector<bool>{true});
  CHECK(to.port.read(7) == 0x77);
  CHECK(to.port.read(3) == 0x13);
  CHECK(to.port.read(0) == 'y');
  CHECK(to.port.read(0) == 'e');
  CHECK(to.port.read(0) == 's');
  CHECK((to.port.read(2) & 0x0f) == 0x02);  // The pending transmitter came along.
  to.port.write(3, 0x93);
  CHECK(to.port.read(0) == 7);
}

TEST_CASE_FIXTURE(Line, "loading drives the line even if it is low") {
  REQUIRE(port.load(Line().port.save()).ok());
  CHECK(levels == std::vector<bool>{false});
}

TEST_CASE_FIXTURE(Line, "a state with more input than the FIFO holds is refused") {
  runtime::Section section = Line().port.save();
  section.fields.back().bytes.resize(17);
  const auto loaded = port.load(section);
  REQUIRE_FALSE(loaded.ok());
  CHECK(loaded.error().detail.find("'received' has 17 bytes") != std::string::npos);
}

TEST_CASE_FIXTURE(Line, "a state of another version names both") {
  runtime::Section section = Line().port.save();
  section.version = 9;
  const auto loaded = port.load(section);
  REQUIRE_FALSE(loaded.ok());
  CHECK(loaded.error().detail.find("version 9; this program reads version 1") != std::string::npos);
}

TEST_CASE_FIXTURE(Line, "a state without one register is refused") {
  runtime::Section section = Line().port.save();
  section.fields.erase(section.fields.begin());
  const auto loaded = port.load(section);
  REQUIRE_FALSE(loaded.ok());
  CHECK(loaded.error().detail.find("field 'ier' is missing") != std::string::npos);
}

TEST_CASE_FIXTURE(Line, "ports: COM1, reset, power-off, and nobody elsewhere") {
  Ports ports(port);
  const auto out = [&](std::uint16_t where, std::uint8_t value) {
    const std::byte byte{value};
    return ports.write(where, std::span(&byte, 1));
  };
  const auto in = [&](std::uint16_t where) {
    std::byte byte{};
    ports.read(where, std::span(&byte, 1));
    return std::to_integer<int>(byte);
  };
  CHECK(out(0x3f8, 'x') == PortRequest::kNone);
  CHECK(sent == "x");
  CHECK(in(0x3fd) == 0x60);
  CHECK(out(0x64, 0xfe) == PortRequest::kReset);
  CHECK(out(0x64, 0x20) == PortRequest::kNone);
  CHECK(out(0x600, 0x34) == PortRequest::kPowerOff);
  CHECK(out(0x600, 0x14) == PortRequest::kNone);
  CHECK(in(0x64) == 0);
  CHECK(in(0x601) == 0);
  CHECK(in(0xcfc) == 0xff);
  CHECK(out(0x80, 1) == PortRequest::kNone);
  std::array<std::byte, 4> wide{};
  ports.read(0x3f8, wide);
  CHECK(
      std::all_of(wide.begin(), wide.end(), [](std::byte one) { return one == std::byte{0xff}; }));
  CHECK(ports.write(0x64, wide) == PortRequest::kNone);
}

}  // namespace
}  // namespace towline::vmm
