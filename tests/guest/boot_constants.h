#pragma once

// Shared by boot.S and C++, hence macros.
#define BOOT_MAX_VCPUS 32
#define BOOT_VCPU_STRIDE 0x3000  // Bytes of one vCPU's block.
#define BOOT_TRAMPOLINE 0x8000   // Where the start-up code of the other vCPUs is copied to.
