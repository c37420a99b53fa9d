#include "runtime/machine_state.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <random>
#include <string>

#include <doctest/doctest.h>

namespace towline::runtime {
namespace {

using Image = std::vector<std::byte>;

MachineState sample() {
  MachineState state;
  Section vcpu;
  vcpu.device = "vcpu";
  vcpu.instance = 1;
  vcpu.version = 3;
  vcpu.put("rip", 0x1122334455667788);
  constexpr std::array kXsave{std::byte{1}, std::byte{2}, std::byte{3}};
  vcpu.put_bytes("xsave", kXsave);
  vcpu.put_text("name", "first");
  Section nested;
  nested.device = "nested";
  nested.put("flags", 1);
  vcpu.subsections.push_back(nested);
  state.sections.push_back(vcpu);
  Section uart;
  uart.device = "uart";
  uart.put("ier", 5);
  state.sections.push_back(uart);
  return state;
}

Image image_of(const MachineState& state) {
  const auto bytes = encode(state);
  REQUIRE(bytes.ok());
  return bytes.value();
}

/// Where `text` stands in the image.
std::size_t find(const Image& image, const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text));
  const auto at = std::search(image.begin(), image.end(), bytes.begin(), bytes.end());
  REQUIRE(at != image.end());
  return static_cast<std::size_t>(at - image.begin());
}

void put32(Image& image, std::size_t at, std::uint32_t value) {
  REQUIRE(at + 4 <= image.size());
  std::memcpy(image.data() + at, &value, 4);
}

std::string complaint(const Image& image) {
  const auto state = decode(image);
  REQUIRE_FALSE(state.ok());
  CHECK(state.error().kind == base::ErrorKind::kCorrupt);
  return state.error().detail;
}

bool mentions(const std::string& text, const std::string& what) {
  return text.find(what) != std::string::npos;
}

TEST_CASE("a machine's state comes back from its bytes as it was") {
  const auto state = decode(image_of(sample()));
  REQUIRE(state.ok());
  CHECK(state.value().count("vcpu") == 1);
  const Section* vcpu = state.value().find("vcpu", 1);
  REQUIRE(vcpu != nullptr);
  CHECK(vcpu->version == 3);
  CHECK(vcpu->get("rip").value() == 0x1122334455667788);
  CHECK(vcpu->get_bytes("xsave", 3).value()[2] == std::byte{3});
  CHECK(vcpu->get_text("name").value() == "first");
  REQUIRE(vcpu->subsections.size() == 1);
  CHECK(vcpu->subsections[0].get("flags").value() == 1);
  CHECK(state.value().find("vcpu", 0) == nullptr);
  CHECK(state.value().find("uart") != nullptr);
}

TEST_CASE("the bytes of a machine's state do not depend on this build") {
  MachineState state;
  Section uart;
  uart.device = "uart";
  uart.put("ier", 5);
  state.sections.push_back(uart);
  const std::array<unsigned, 46> expected{
      1,                                                      // Little-endian.
      'T', 'L', 'M', 'S', 1,   0,   1,   0,   0, 0,           // Magic, format, one section.
      4,   'u', 'a', 'r', 't', 0,   0,   0,   0, 1, 0, 0, 0,  // Name, instance, version.
      1,   0,   0,   0,   3,   'i', 'e', 'r', 0, 8, 0, 0, 0,  // One field: name, type, length.
      5,   0,   0,   0,   0,   0,   0,   0,                   // Its value.
      0};  // No subsections: first of four bytes.
  const Image image = image_of(state);
  REQUIRE(image.size() == expected.size() + 3);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    CHECK(std::to_integer<unsigned>(image[i]) == expected[i]);
  }
}

TEST_CASE("what is asked of a section and is not there is named") {
  const MachineState state = sample();
  const Section& vcpu = state.sections[0];
  CHECK(mentions(vcpu.get("cr3").error().detail, "vcpu[1] v3: field 'cr3' is missing"));
  CHECK(mentions(vcpu.get("xsave").error().detail, "of type bytes, expected unsigned"));
  CHECK(mentions(vcpu.get_bytes("xsave", 4).error().detail, "has 3 bytes, expected 4"));
  CHECK(mentions(vcpu.get_text("rip").error().detail, "expected text"));
}

TEST_CASE("a state that is cut anywhere is refused") {
  const Image image = image_of(sample());
  for (std::size_t size = 0; size < image.size(); ++size) {
    CAPTURE(size);
    CHECK_FALSE(decode(std::span(image).first(size)).ok());
  }
}

TEST_CASE("bytes after the last section are refused") {
  Image image = image_of(sample());
  image.push_back(std::byte{0});
  CHECK(mentions(complaint(image), "1 bytes follow"));
}

TEST_CASE("another magic is refused") {
  Image image = image_of(sample());
  image[1] = std::byte{'X'};
  CHECK(mentions(complaint(image), "no machine state"));
}

TEST_CASE("a state that claims to be big-endian is refused") {
  Image image = image_of(sample());
  image[0] = std::byte{0};
  CHECK(mentions(complaint(image), "at offset 0"));
}

TEST_CASE("an unknown format names both versions") {
  Image image = image_of(sample());
  image[5] = std::byte{9};
  CHECK(mentions(complaint(image), "format 9 is unknown; this program reads 1"));
}

TEST_CASE("more sections than there are bytes for are refused before room is made for them") {
  Image image = image_of(sample());
  put32(image, 7, 4096);
  CHECK(mentions(complaint(image), "4096 sections cannot be"));
}

TEST_CASE("more fields than there are bytes for are refused") {
  Image image = image_of(sample());
  put32(image, find(image, "vcpu") + 4 + 8, 4000);
  const std::string text = complaint(image);
  CHECK(mentions(text, "4000 fields"));
  CHECK(mentions(text, "vcpu[1] v3"));
}

TEST_CASE("a field longer than the state names section, field and offset") {
  Image image = image_of(sample());
  put32(image, find(image, "xsave") + 5 + 1, 0x7fffffff);
  const std::string text = complaint(image);
  CHECK(mentions(text, "vcpu[1] v3 field 'xsave' at offset "));
}

TEST_CASE("an unknown field type is refused") {
  Image image = image_of(sample());
  image[find(image, "rip") + 3] = std::byte{7};
  CHECK(mentions(complaint(image), "unknown field type 7"));
}

TEST_CASE("a number that is not eight bytes long is refused") {
  Image image = image_of(sample());
  put32(image, find(image, "rip") + 4, 7);
  CHECK(mentions(complaint(image), "7 bytes do not make a unsigned"));
}

TEST_CASE("a name with letters that a terminal obeys is refused and not repeated") {
  Image image = image_of(sample());
  image[find(image, "rip")] = std::byte{0x1b};
  const std::string text = complaint(image);
  CHECK(mentions(text, "'?ip' is no field name"));
  CHECK(text.find('\x1b') == std::string::npos);
}

TEST_CASE("an empty name is refused") {
  Image image = image_of(sample());
  image[find(image, "vcpu") - 1] = std::byte{0};
  CHECK(mentions(complaint(image), "a section name of 0 bytes"));
}

TEST_CASE("a field that is there twice is refused") {
  MachineState state = sample();
  state.sections[1].put("ier", 6);
  CHECK(mentions(complaint(image_of(state)), "uart[0] v1 field 'ier'"));
}

TEST_CASE("a section that is there twice is refused") {
  MachineState state = sample();
  state.sections.push_back(state.sections[1]);
  CHECK(mentions(complaint(image_of(state)), "section uart[0] v1 is there twice"));
}

TEST_CASE("subsections of subsections are refused on both ways") {
  MachineState state = sample();
  state.sections[0].subsections[0].subsections.push_back(state.sections[1]);
  CHECK_FALSE(encode(state).ok());

  Image image = image_of(sample());
  // The count of the subsection's own subsections follows its only field.
  put32(image, find(image, "flags") + 5 + 1 + 4 + 8, 1);
  CHECK(mentions(complaint(image), "1 subsections cannot be"));
}

TEST_CASE("a state beyond the limits is not written") {
  MachineState state;
  Section large;
  large.device = "ram";
  large.put_bytes("all", std::vector<std::byte>(kMaxStateBytes));
  state.sections.push_back(large);
  CHECK_FALSE(encode(state).ok());

  state.sections[0].fields.clear();
  for (std::size_t i = 0; i <= kMaxFields; ++i) {
    state.sections[0].put("f" + std::to_string(i), i);
  }
  CHECK_FALSE(encode(state).ok());

  Section misnamed;
  misnamed.device = "VCPU";
  CHECK_FALSE(encode(MachineState{{misnamed}}).ok());
}

TEST_CASE("random damage is refused or read, and never more than that") {
  const Image image = image_of(sample());
  std::mt19937 random(1);  // Always the same: a failure can be looked at again.
  for (int round = 0; round < 20000; ++round) {
    Image damaged = image;
    for (int i = 0; i < 3; ++i) {
      damaged[random() % damaged.size()] = static_cast<std::byte>(random());
    }
    if (const auto state = decode(damaged); state.ok()) {
      CHECK(image_of(state.value()) == damaged);
    }
  }
}

}  // namespace
}  // namespace towline::runtime
