#include "vmm/boot.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/fd.h"

namespace towline::vmm {
namespace {

using base::Bytes;
using base::ErrorKind;
using base::fail;
using base::fail_errno;
using base::GuestAddress;

// Guess: thirty times a distribution's uncompressed kernel would still fit.
constexpr std::uint64_t kMostFileBytes = 1UL << 30U;
constexpr std::size_t kMostSegments = 64;
constexpr std::uint32_t kXenNotePvhEntry = 18;  // XEN_ELFNOTE_PHYS32_ENTRY.
constexpr std::uint32_t kStartInfoMagic = 0x336ec578;

// Low memory, below the 640 KiB that PCs report: nothing else of ours lives there.
constexpr GuestAddress kGdt{0x500};
constexpr GuestAddress kStartInfo{0x6000};
constexpr GuestAddress kModules{0x6100};
constexpr GuestAddress kMemoryMap{0x6200};
constexpr GuestAddress kCommandLine{0x20000};
constexpr std::size_t kMostCommandLine = 4096;
constexpr GuestAddress kBootDataEnd{kCommandLine.value + kMostCommandLine};
constexpr GuestAddress kLowEnd{0x9fc00};
constexpr GuestAddress kHoleEnd{0x100000};

struct StartInfo {
  std::uint32_t magic = kStartInfoMagic;
  std::uint32_t version = 1;
  std::uint32_t flags = 0;
  std::uint32_t modules = 0;
  std::uint64_t modules_at = 0;
  std::uint64_t command_line_at = 0;
  std::uint64_t rsdp_at = 0;
  std::uint64_t memory_map_at = 0;
  std::uint32_t memory_map_entries = 0;
  std::uint32_t reserved = 0;
};

struct Module {
  std::uint64_t at = 0;
  std::uint64_t size = 0;
  std::uint64_t command_line_at = 0;
  std::uint64_t reserved = 0;
};

struct MemoryMapEntry {
  std::uint64_t at = 0;
  std::uint64_t size = 0;
  std::uint32_t type = 1;  // RAM, as in E820.
  std::uint32_t reserved = 0;
};

static_assert(sizeof(StartInfo) == 56 && sizeof(Module) == 32 && sizeof(MemoryMapEntry) == 24);

base::Err<base::Error> refuse(std::string detail) {
  return fail(ErrorKind::kRefused, "load kernel", std::move(detail));
}

/// A T from anywhere in `file`, if all of it is there.
template <typename T>
std::optional<T> read_at(std::span<const std::byte> file, std::uint64_t offset) {
  if (offset > file.size() || sizeof(T) > file.size() - offset) {
    return std::nullopt;
  }
  T value;
  std::memcpy(&value, file.data() + offset, sizeof value);
  return value;
}

/// Class-independent view of one program header.
struct ProgramHeader {
  std::uint32_t type = 0;
  std::uint64_t offset = 0;
  std::uint64_t physical = 0;
  std::uint64_t file_size = 0;
  std::uint64_t memory_size = 0;
};

template <typename Header, typename Program>
base::Expected<std::vector<ProgramHeader>> program_headers(std::span<const std::byte> file) {
  const auto header = read_at<Header>(file, 0);
  if (!header) {
    return refuse("the ELF header is cut short; is the file complete?");
  }
  if (header->e_phentsize != sizeof(Program) || header->e_phnum == 0 ||
      header->e_phnum > kMostSegments) {
    return refuse(fmt::format("{} program headers of {} bytes; 1 to {} of {} are allowed",
                              header->e_phnum, header->e_phentsize, kMostSegments,
                              sizeof(Program)));
  }
  std::vector<ProgramHeader> all;
  for (std::size_t i = 0; i < header->e_phnum; ++i) {
    const std::uint64_t table = header->e_phoff;
    const auto one =
        table > file.size() ? std::nullopt : read_at<Program>(file, table + i * sizeof(Program));
    if (!one) {
      return refuse("the program headers lie outside the file; is it complete?");
    }
    all.push_back({one->p_type, one->p_offset, one->p_paddr, one->p_filesz, one->p_memsz});
  }
  return all;
}

/// The 32-bit entry, if this note segment names one.
std::optional<GuestAddress> find_pvh_entry(std::span<const std::byte> notes) {
  const auto padded = [](std::uint64_t size) { return (size + 3) / 4 * 4; };
  std::uint64_t at = 0;
  while (const auto note = read_at<Elf64_Nhdr>(notes, at)) {
    const std::uint64_t name = at + sizeof *note;
    const std::uint64_t payload = name + padded(note->n_namesz);
    const bool from_xen = note->n_namesz == 4 && name + 4 <= notes.size() &&
                          std::memcmp(notes.data() + name, "Xen", 4) == 0;
    if (from_xen && note->n_type == kXenNotePvhEntry) {
      // The specification says 32 bits; Linux writes 64 on x86-64.
      if (const auto wide = read_at<std::uint64_t>(notes, payload); wide && note->n_descsz == 8) {
        return GuestAddress{*wide};
      }
      if (const auto narrow = read_at<std::uint32_t>(notes, payload);
          narrow && note->n_descsz == 4) {
        return GuestAddress{*narrow};
      }
    }
    at = payload + padded(note->n_descsz);
  }
  return std::nullopt;
}

base::Outcome check_segment(const ProgramHeader& program, std::span<const std::byte> file) {
  if (program.offset > file.size() || program.file_size > file.size() - program.offset) {
    return refuse(
        fmt::format("a segment of {} bytes at file offset {} lies outside the file of {} "
                    "bytes; is it complete?",
                    program.file_size, program.offset, file.size()));
  }
  if (program.type == PT_LOAD && program.memory_size < program.file_size) {
    return refuse("a segment is larger in the file than in memory; the image is damaged");
  }
  return base::Done{};
}

base::Expected<std::vector<ProgramHeader>> any_program_headers(std::span<const std::byte> file) {
  if (file.size() < EI_NIDENT || std::memcmp(file.data(), ELFMAG, SELFMAG) != 0) {
    return refuse(
        "this is not an ELF image; give an uncompressed one with a PVH note (of Linux: vmlinux, "
        "not bzImage)");
  }
  if (std::to_integer<int>(file[EI_DATA]) != ELFDATA2LSB) {
    return refuse("the ELF image is big-endian; give one for x86");
  }
  const int elf_class = std::to_integer<int>(file[EI_CLASS]);
  if (elf_class == ELFCLASS64) {
    return program_headers<Elf64_Ehdr, Elf64_Phdr>(file);
  }
  if (elf_class == ELFCLASS32) {
    return program_headers<Elf32_Ehdr, Elf32_Phdr>(file);
  }
  return refuse(fmt::format("unknown ELF class {}; give an image for x86", elf_class));
}

base::Expected<std::vector<std::byte>> read_file(const std::string& path, const char* what) {
  const base::OwnedFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));

  struct stat about {};

  if (!fd.valid() || ::fstat(fd.get(), &about) != 0) {
    return fail_errno(ErrorKind::kRefused, "open", fmt::format("cannot read {} '{}'", what, path));
  }
  if (!S_ISREG(about.st_mode)) {
    return refuse(fmt::format("{} '{}' is not a regular file", what, path));
  }
  const auto size = static_cast<std::uint64_t>(about.st_size);
  if (size > kMostFileBytes) {
    return refuse(fmt::format("{} '{}' has {} MiB; at most {} are allowed", what, path, size >> 20U,
                              kMostFileBytes >> 20U));
  }
  std::vector<std::byte> bytes(size);
  if (auto read = base::read_exactly(fd.get(), bytes); !read.ok()) {
    return refuse(fmt::format("cannot read {} '{}': {}", what, path, to_string(read.error())));
  }
  return bytes;
}

base::Outcome place_segments(const GuestMemory& memory, const KernelImage& image,
                             std::span<const std::byte> file, const std::string& path) {
  for (const Segment& segment : image.segments) {
    const auto into = memory.slice(segment.to, segment.memory_size);
    if (!into) {
      return refuse(
          fmt::format("kernel '{}': its segment [{:#x}, +{:#x}) lies outside the guest's "
                      "memory; give the guest more (--memory)",
                      path, segment.to.value, segment.memory_size.value));
    }
    if (segment.to.value < kBootDataEnd.value) {
      return refuse(
          fmt::format("kernel '{}': its segment at {:#x} lies where the boot data goes; "
                      "link it at {:#x} or above",
                      path, segment.to.value, kBootDataEnd.value));
    }
    std::memcpy(into->data(), file.data() + segment.file_offset, segment.file_size.value);
    const auto rest = into->subspan(segment.file_size.value);
    std::memset(rest.data(), 0, rest.size());
  }
  return base::Done{};
}

template <typename T>
void put(const GuestMemory& memory, GuestAddress at, const T& value) {
  const auto into = memory.slice(at, Bytes{sizeof value});
  std::memcpy(into->data(), &value, sizeof value);
}

/// The highest page-aligned place in low memory that holds `size` bytes above the kernel.
base::Expected<Module> place_initrd(const GuestMemory& memory, const KernelImage& image,
                                    const std::string& path) {
  const auto bytes = TRY(read_file(path, "initrd"));
  std::uint64_t kernel_end = kHoleEnd.value;
  for (const Segment& segment : image.segments) {
    kernel_end = std::max(kernel_end, segment.to.value + segment.memory_size.value);
  }
  const std::uint64_t end = memory.regions().front().size.value;
  const std::uint64_t page = base::kSmallPage.value;
  const std::uint64_t needed = (bytes.size() + page - 1) / page * page;
  if (needed > end || end - needed < kernel_end) {
    return refuse(
        fmt::format("initrd '{}' of {} KiB does not fit above the kernel; give the guest "
                    "more memory (--memory)",
                    path, bytes.size() >> 10U));
  }
  const GuestAddress at{end - needed};
  const auto into = memory.slice(at, Bytes{bytes.size()});
  std::memcpy(into->data(), bytes.data(), bytes.size());
  return Module{at.value, bytes.size(), 0, 0};
}

std::uint32_t put_memory_map(const GuestMemory& memory) {
  std::uint32_t entries = 0;
  const auto add = [&](std::uint64_t from, std::uint64_t to) {
    put(memory, GuestAddress{kMemoryMap.value + entries * sizeof(MemoryMapEntry)},
        MemoryMapEntry{from, to - from, 1, 0});
    ++entries;
  };
  const std::uint64_t low_end = memory.regions().front().size.value;
  add(0, std::min(low_end, kLowEnd.value));
  if (low_end > kHoleEnd.value) {
    add(kHoleEnd.value, low_end);
  }
  if (memory.regions().size() > 1) {
    const runtime::Region& high = memory.regions()[1];
    add(high.start.value, high.start.value + high.size.value);
  }
  return entries;
}

/// Null, flat 32-bit code (0x8), flat data (0x10), a TSS (0x18): what PVH promises.
void put_gdt(const GuestMemory& memory) {
  constexpr std::array<std::uint64_t, 4> kTable{0, 0x00cf9b000000ffff, 0x00cf93000000ffff,
                                                0x00008b0000000067};
  put(memory, kGdt, kTable);
}

}  // namespace

base::Expected<KernelImage> parse_elf(std::span<const std::byte> file) {
  const auto programs = TRY(any_program_headers(file));
  KernelImage image;
  std::optional<GuestAddress> entry;
  for (const ProgramHeader& program : programs) {
    if (program.type != PT_LOAD && program.type != PT_NOTE) {
      continue;
    }
    TRY(check_segment(program, file));
    if (program.type == PT_NOTE && !entry) {
      entry = find_pvh_entry(file.subspan(program.offset, program.file_size));
    } else if (program.type == PT_LOAD && program.memory_size > 0) {
      image.segments.push_back({GuestAddress{program.physical}, program.offset,
                                Bytes{program.file_size}, Bytes{program.memory_size}});
    }
  }
  if (!entry) {
    return refuse(
        "the ELF image has no PVH note (name 'Xen', type 18) with an entry point; build the kernel "
        "with CONFIG_PVH");
  }
  if (image.segments.empty()) {
    return refuse("the ELF image has nothing to load");
  }
  image.entry = *entry;
  return image;
}

base::Expected<LoadedKernel> load_kernel(const GuestMemory& memory, const BootFiles& files) {
  const auto file = TRY(read_file(files.kernel, "kernel"));
  auto parsed = parse_elf(file);
  if (!parsed.ok()) {
    return refuse(fmt::format("kernel '{}': {}", files.kernel, parsed.error().detail));
  }
  const KernelImage& image = parsed.value();
  if (!memory.slice(image.entry, Bytes{1}) || image.entry.value >= kHighMemoryStart.value) {
    return refuse(
        fmt::format("kernel '{}': its entry {:#x} lies outside the guest's memory; give "
                    "the guest more (--memory)",
                    files.kernel, image.entry.value));
  }
  if (files.append.size() >= kMostCommandLine) {
    return refuse(fmt::format("the kernel command line has {} bytes; at most {} are allowed",
                              files.append.size(), kMostCommandLine - 1));
  }
  if (!memory.slice(GuestAddress{0}, Bytes{kCommandLine.value + kMostCommandLine})) {
    return refuse("the guest's memory is too small to boot anything; give it more (--memory)");
  }
  TRY(place_segments(memory, image, file, files.kernel));
  LoadedKernel loaded{{image.entry, kStartInfo, kGdt}, {}};
  loaded.written.push_back({kGdt, Bytes{kBootDataEnd.value - kGdt.value}});
  for (const Segment& segment : image.segments) {
    loaded.written.push_back({segment.to, segment.memory_size});
  }

  StartInfo info;
  info.command_line_at = kCommandLine.value;
  const auto line = memory.slice(kCommandLine, Bytes{files.append.size() + 1});
  std::memcpy(line->data(), files.append.c_str(), files.append.size() + 1);
  if (!files.initrd.empty()) {
    const Module initrd = TRY(place_initrd(memory, image, files.initrd));
    loaded.written.push_back({GuestAddress{initrd.at}, Bytes{initrd.size}});
    put(memory, kModules, initrd);
    info.modules = 1;
    info.modules_at = kModules.value;
  }
  info.memory_map_at = kMemoryMap.value;
  info.memory_map_entries = put_memory_map(memory);
  put(memory, kStartInfo, info);
  put_gdt(memory);
  return loaded;
}

}  // namespace towline::vmm
