#include "vmm/boot.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/contract/tiny_guest.h"

namespace towline::vmm {
namespace {

using base::Bytes;
using base::GuestAddress;

std::vector<std::byte> tiny() {
  const auto image = tests::TinyGuest::image();
  const auto bytes = std::as_bytes(std::span(image));
  return {bytes.begin(), bytes.end()};
}

template <typename T>
T& at(std::vector<std::byte>& image, std::size_t offset) {
  REQUIRE(offset + sizeof(T) <= image.size());
  return *reinterpret_cast<T*>(image.data() + offset);
}

Elf64_Ehdr& header(std::vector<std::byte>& image) {
  return at<Elf64_Ehdr>(image, 0);
}

Elf64_Phdr& program(std::vector<std::byte>& image, std::size_t n) {
  return at<Elf64_Phdr>(image, sizeof(Elf64_Ehdr) + n * sizeof(Elf64_Phdr));
}

/// The words of the note: sizes, type, name, payload.
std::uint32_t* note(std::vector<std::byte>& image) {
  return &at<std::uint32_t>(image, program(image, 0).p_offset);
}

std::string complaint(const std::vector<std::byte>& image) {
  const auto parsed = parse_elf(image);
  REQUIRE_FALSE(parsed.ok());
  CHECK(parsed.error().kind == base::ErrorKind::kRefused);
  return parsed.error().detail;
}

bool mentions(const std::string& text, const std::string& what) {
  return text.find(what) != std::string::npos;
}

GuestMemory memory_of(std::uint64_t mib) {
  auto memory = GuestMemory::create(Bytes{mib << 20U}, 46);
  REQUIRE(memory.ok());
  return std::move(memory).value();
}

/// Files of one test case.
struct Files {
  Files() {
    std::string pattern = (std::filesystem::temp_directory_path() / "towline-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path = pattern;
  }

  ~Files() { std::filesystem::remove_all(path); }

  std::string put(const std::string& name, std::span<const std::byte> bytes) const {
    const std::string file = path / name;
    std::ofstream(file, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<long>(bytes.size()));
    return file;
  }

  std::filesystem::path path;
};

template <typename T>
T peek(const GuestMemory& memory, std::uint64_t address) {
  T value{};
  const auto bytes = memory.slice(GuestAddress{address}, Bytes{sizeof value});
  REQUIRE(bytes);
  std::memcpy(&value, bytes->data(), sizeof value);
  return value;
}

TEST_CASE("a PVH image gives its segments and its entry") {
  const auto parsed = parse_elf(tiny());
  REQUIRE(parsed.ok());
  CHECK(parsed.value().entry == GuestAddress{0x100000});
  CHECK(parsed.value().segments.size() == 2);
  CHECK(parsed.value().segments[0].to == GuestAddress{0x100000});
}

TEST_CASE("an entry of eight bytes is taken as one of four") {
  auto image = tiny();
  note(image)[1] = 8;
  program(image, 0).p_filesz += 4;
  const auto parsed = parse_elf(image);
  REQUIRE(parsed.ok());
  CHECK(parsed.value().entry == GuestAddress{0x100000});
}

TEST_CASE("notes of others before the one of PVH are passed over") {
  auto image = tiny();
  const std::vector<std::uint32_t> notes{4, 5, 1,  0x00554e47, 7,        7,  // GNU, padded.
                                         4, 4, 17, 0x006e6558, 0x555555,     // Xen, another type.
                                         4, 4, 18, 0x006e6558, 0x100000};
  std::memcpy(note(image), notes.data(), notes.size() * 4);
  program(image, 0).p_filesz = notes.size() * 4;
  const auto parsed = parse_elf(image);
  REQUIRE(parsed.ok());
  CHECK(parsed.value().entry == GuestAddress{0x100000});
}

TEST_CASE("a file that is no ELF image is refused with what would be one") {
  CHECK(mentions(complaint(std::vector<std::byte>(4096)), "not an ELF image"));
  CHECK(mentions(complaint({}), "not an ELF image"));
}

TEST_CASE("an ELF image without a PVH note is refused with the remedy") {
  auto image = tiny();
  note(image)[2] = 19;
  CHECK(mentions(complaint(image), "no PVH note"));
  CHECK(mentions(complaint(image), "CONFIG_PVH"));
}

TEST_CASE("a note that belongs to somebody else's name is not PVH's") {
  auto image = tiny();
  note(image)[3] = 0x00554e47;
  CHECK(mentions(complaint(image), "no PVH note"));
}

TEST_CASE("a big-endian image is refused") {
  auto image = tiny();
  header(image).e_ident[EI_DATA] = ELFDATA2MSB;
  CHECK(mentions(complaint(image), "big-endian"));
}

TEST_CASE("an image without anything to load is refused") {
  auto image = tiny();
  program(image, 1).p_type = PT_NULL;
  program(image, 2).p_type = PT_NULL;
  CHECK(mentions(complaint(image), "nothing to load"));
}

TEST_CASE("a segment outside the file is refused, also when its end wraps") {
  auto image = tiny();
  program(image, 1).p_offset = image.size();
  CHECK(mentions(complaint(image), "outside the file"));
  program(image, 1).p_offset = 0x300;
  program(image, 1).p_filesz = ~std::uint64_t{0} - 0x200;
  CHECK(mentions(complaint(image), "outside the file"));
}

TEST_CASE("a segment that is larger in the file than in memory is refused") {
  auto image = tiny();
  program(image, 1).p_memsz = program(image, 1).p_filesz - 1;
  CHECK(mentions(complaint(image), "larger in the file"));
}

TEST_CASE("program headers outside the file are refused, also when the offset wraps") {
  auto image = tiny();
  header(image).e_phoff = image.size() - 8;
  CHECK(mentions(complaint(image), "program headers lie outside"));
  header(image).e_phoff = ~std::uint64_t{0} - 8;
  CHECK(mentions(complaint(image), "program headers lie outside"));
}

TEST_CASE("an absurd number of program headers is refused") {
  auto image = tiny();
  header(image).e_phnum = 0xffff;
  CHECK(mentions(complaint(image), "65535 program headers"));
}

TEST_CASE("an image that is cut anywhere is refused or loads nothing from beyond its end") {
  const auto image = tiny();
  for (std::size_t size = 0; size < image.size(); ++size) {
    const auto parsed = parse_elf(std::span(image).first(size));
    if (parsed.ok()) {
      for (const Segment& segment : parsed.value().segments) {
        CHECK(segment.file_offset + segment.file_size.value <= size);
      }
    }
  }
}

TEST_CASE("random damage to an image never leads out of it") {
  const auto image = tiny();
  std::mt19937 random(7);
  for (int round = 0; round < 20000; ++round) {
    auto damaged = image;
    for (int i = 0; i < 4; ++i) {
      damaged[random() % 0x240] = static_cast<std::byte>(random());
    }
    const auto parsed = parse_elf(damaged);
    if (parsed.ok()) {
      for (const Segment& segment : parsed.value().segments) {
        CHECK(segment.file_size <= Bytes{damaged.size()});
        CHECK(segment.file_offset <= damaged.size() - segment.file_size.value);
        CHECK(segment.memory_size >= segment.file_size);
      }
    }
  }
}

TEST_CASE_FIXTURE(Files, "a kernel finds its command line, memory map and initrd") {
  const auto memory = memory_of(4096);
  const std::vector<std::byte> disk(5000, std::byte{0x5a});
  const auto entry =
      load_kernel(memory, {put("kernel", tiny()), "vcpus=2 quiet", put("initrd", disk)});
  REQUIRE(entry.ok());
  const std::uint64_t info = entry.value().entry.start_info.value;
  CHECK(peek<std::uint32_t>(memory, info) == 0x336ec578);
  CHECK(peek<std::uint32_t>(memory, info + 12) == 1);
  const auto modules = peek<std::uint64_t>(memory, info + 16);
  const auto initrd = peek<std::uint64_t>(memory, modules);
  CHECK(initrd % 4096 == 0);
  CHECK(peek<std::uint64_t>(memory, modules + 8) == disk.size());
  CHECK(peek<std::uint8_t>(memory, initrd + disk.size() - 1) == 0x5a);
  const auto line = peek<std::uint64_t>(memory, info + 24);
  CHECK(std::string(reinterpret_cast<const char*>(
            memory.slice(GuestAddress{line}, Bytes{14})->data())) == "vcpus=2 quiet");
  // 4 GiB of memory: below 640 KiB, from 1 MiB to 3 GiB, and a gibibyte from 4 GiB on.
  const auto map = peek<std::uint64_t>(memory, info + 40);
  REQUIRE(peek<std::uint32_t>(memory, info + 48) == 3);
  CHECK(peek<std::uint64_t>(memory, map + 8) == 0x9fc00);
  CHECK(peek<std::uint64_t>(memory, map + 24) == 0x100000);
  CHECK(peek<std::uint64_t>(memory, map + 24 + 8) == (3UL << 30U) - 0x100000);
  CHECK(peek<std::uint64_t>(memory, map + 48) == 4UL << 30U);
  CHECK(peek<std::uint64_t>(memory, map + 48 + 8) == 1UL << 30U);
}

TEST_CASE_FIXTURE(Files, "what loading a kernel writes is all told") {
  const auto memory = memory_of(16);
  const std::vector<std::byte> disk(5000, std::byte{0x5a});
  const auto loaded = load_kernel(memory, {put("kernel", tiny()), "quiet", put("initrd", disk)});
  REQUIRE(loaded.ok());
  const auto all = memory.slice(GuestAddress{0}, Bytes{16U << 20U});
  for (std::size_t at = 0; at < all->size(); ++at) {
    if ((*all)[at] == std::byte{0}) {
      continue;
    }
    const auto& written = loaded.value().written;
    const bool told = std::any_of(written.begin(), written.end(), [&](const WrittenRange& range) {
      return at >= range.start.value && at - range.start.value < range.size.value;
    });
    if (!told) {
      CAPTURE(at);
      FAIL_CHECK("a byte that nobody told of");
      break;
    }
  }
}

TEST_CASE_FIXTURE(Files, "the part of a segment that is not in the file is zeroed") {
  const auto memory = memory_of(16);
  auto image = tiny();
  program(image, 1).p_memsz = program(image, 1).p_filesz + 100;
  const std::uint64_t beyond = 0x100000 + program(image, 1).p_filesz;
  memory.slice(GuestAddress{beyond}, Bytes{1})->front() = std::byte{0xff};
  REQUIRE(load_kernel(memory, {put("kernel", image), "", ""}).ok());
  CHECK(peek<std::uint8_t>(memory, beyond) == 0);
}

TEST_CASE_FIXTURE(Files, "a kernel that cannot be read is named") {
  const auto memory = memory_of(16);
  const auto missing = load_kernel(memory, {path / "nothing", "", ""});
  REQUIRE_FALSE(missing.ok());
  CHECK(mentions(to_string(missing.error()), "cannot read kernel"));
  CHECK(mentions(to_string(missing.error()), "nothing"));
  CHECK(mentions(to_string(missing.error()), "No such file"));
  const auto directory = load_kernel(memory, {path, "", ""});
  REQUIRE_FALSE(directory.ok());
  CHECK(mentions(directory.error().detail, "not a regular file"));
}

TEST_CASE_FIXTURE(Files, "a segment outside the guest's memory names the file and the remedy") {
  auto image = tiny();
  program(image, 1).p_paddr = 64UL << 20U;
  const auto memory = memory_of(16);
  const auto loaded = load_kernel(memory, {put("kernel", image), "", ""});
  REQUIRE_FALSE(loaded.ok());
  CHECK(mentions(loaded.error().detail, "outside the guest's memory"));
  CHECK(mentions(loaded.error().detail, "--memory"));
  CHECK(mentions(loaded.error().detail, (path / "kernel").string()));
}

TEST_CASE_FIXTURE(Files, "a segment over the boot data is refused") {
  auto image = tiny();
  program(image, 2).p_paddr = 0x8000;
  const auto loaded = load_kernel(memory_of(16), {put("kernel", image), "", ""});
  REQUIRE_FALSE(loaded.ok());
  CHECK(mentions(loaded.error().detail, "where the boot data goes"));
}

TEST_CASE_FIXTURE(Files, "an initrd that does not fit above the kernel is refused") {
  const std::vector<std::byte> disk(16U << 20U);
  const auto loaded = load_kernel(memory_of(16), {put("kernel", tiny()), "", put("initrd", disk)});
  REQUIRE_FALSE(loaded.ok());
  CHECK(mentions(loaded.error().detail, "does not fit above the kernel"));
}

TEST_CASE_FIXTURE(Files, "a command line that is too long says how long it may be") {
  const auto loaded =
      load_kernel(memory_of(16), {put("kernel", tiny()), std::string(5000, 'x'), ""});
  REQUIRE_FALSE(loaded.ok());
  CHECK(mentions(loaded.error().detail, "5000 bytes; at most 4095"));
}

}  // namespace
}  // namespace towline::vmm
