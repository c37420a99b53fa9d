#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/units.h"
#include "vmm/guest_memory.h"

/// Direct boot of PVH kernels: ELF images that name a 32-bit entry in a Xen note (type 18) and
/// expect an hvm_start_info in EBX. Source: Xen's docs/misc/pvh.pandoc and
/// include/public/arch-x86/hvm/start_info.h.
namespace towline::vmm {

/// A part of the kernel's file that goes to guest memory.
struct Segment {
  base::GuestAddress to;
  std::uint64_t file_offset = 0;
  base::Bytes file_size;
  base::Bytes memory_size;  ///< At least file_size; the rest is zeroed.
};

struct KernelImage {
  std::vector<Segment> segments;
  base::GuestAddress entry;
};

/// Reads the headers of a PVH ELF. Every offset and size is checked against `file`, and every
/// segment lies in it; whether it lies in guest memory is load_kernel()'s business.
///
/// Errors: kRefused, saying what is wrong with the image and what would be right.
base::Expected<KernelImage> parse_elf(std::span<const std::byte> file);

struct BootFiles {
  std::string kernel;
  std::string append;
  std::string initrd;  ///< Empty: none.
};

/// Where the boot vCPU begins: in 32-bit protected mode at `entry`, EBX = `start_info`.
struct BootEntry {
  base::GuestAddress entry;
  base::GuestAddress start_info;
  base::GuestAddress gdt;
};

struct WrittenRange {
  base::GuestAddress start;
  base::Bytes size;
};

struct LoadedKernel {
  BootEntry entry;
  std::vector<WrittenRange> written;  ///< All of guest memory that was touched.
};

/// Puts kernel, initrd, command line, memory map and start_info into guest memory.
///
/// Errors: kRefused; names the file and the remedy. Memory may be half written then.
base::Expected<LoadedKernel> load_kernel(const GuestMemory& memory, const BootFiles& files);

}  // namespace towline::vmm
