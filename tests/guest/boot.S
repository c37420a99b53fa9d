// From the 32-bit PVH entry (or a start-up IPI) to 64-bit user mode.
//
// Everything here runs at CPL 0, which some KVMs emulate one instruction at a time. So tables are
// written by the assembler, not by code, and the processor leaves CPL 0 as soon as it can and
// returns only to report an exception.
//
// Life: pvh_start (first vCPU) or ap_trampoline (others) -> enter_long_mode -> long_mode -> iretq.

#include "boot_constants.h"

#define kImageBase 0x100000

#define kCode32 0x08
#define kData0 0x10
#define kCode0 0x18
#define kData3 (0x20 | 3)
#define kCode3 (0x28 | 3)
#define kFirstTss 0x30

#define kTssSize 512
#define kTssLimit (104 + 256)

        .section .note.pvh, "a", @note
        .balign 4
        .long   4, 4, 18                // Name size, payload size, XEN_ELFNOTE_PHYS32_ENTRY.
        .asciz  "Xen"
        .long   pvh_start

        .section .boot, "ax", @progbits
        .globl  boot_first, pvh_start
boot_first:

        .code32
pvh_start:
        cli
        cld
        movl    %ebx, start_info_address
        lgdt    gdt_pointer
        ljmpl   $kCode32, $1f
1:      movl    $boot_stack_top, %esp
        // The CPUID leaves the guest wants: asked here, because user mode may see the host's.
        movl    $cpuid_leaves, %esi
        movl    $cpuid_answers, %edi
2:      movl    (%esi), %eax
        xorl    %ecx, %ecx
        cpuid
        movl    %eax, 0(%edi)
        movl    %ebx, 4(%edi)
        movl    %ecx, 8(%edi)
        movl    %edx, 12(%edi)
        addl    $4, %esi
        addl    $16, %edi
        cmpl    $cpuid_leaves_end, %esi
        jb      2b
        xorl    %ebp, %ebp              // Index of this vCPU.
        jmp     enter_long_mode

ap_protected:
        movl    starting_vcpu, %ebp

enter_long_mode:
        movl    $kData0, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $0x620, %eax            // PAE, OSFXSR, OSXMMEXCPT.
        movl    %eax, %cr4
        movl    $page_map, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx       // EFER.
        rdmsr
        orl     $0x100, %eax            // Long mode enable.
        wrmsr
        movl    $0x80000033, %eax       // Paging, NE, ET, MP, PE.
        movl    %eax, %cr0
        ljmpl   $kCode0, $long_mode

        .code64
long_mode:
        lidt    idt_pointer
        // The base of this vCPU's TSS into its descriptor: split into three fields.
        movl    %ebp, %eax
        shll    $9, %eax
        addl    $task_segments, %eax
        movl    %ebp, %edi
        shll    $4, %edi
        leal    gdt + kFirstTss(%edi), %esi
        movw    %ax, 2(%rsi)
        shrl    $16, %eax
        movb    %al, 4(%rsi)
        movb    %ah, 7(%rsi)
        leal    kFirstTss(%edi), %eax
        ltr     %ax
        // GS base: this vCPU's block, whose first word holds its own address (see vcpu.h).
        movl    %ebp, %eax
        imull   $BOOT_VCPU_STRIDE, %eax, %eax
        addl    $vcpus, %eax
        movl    %eax, %edi              // Argument of the user-mode entry.
        xorl    %edx, %edx
        movl    $0xc0000101, %ecx
        wrmsr
        // To CPL 3, interrupts off, IOPL 3. The TSS opens the ports too: an emulated iretq may
        // leave IOPL behind.
        movl    %ebp, %eax
        incl    %eax
        shll    $14, %eax
        addl    $user_stacks - 8, %eax
        pushq   $kData3
        pushq   %rax
        pushq   $0x3002
        pushq   $kCode3
        pushq   $user_entry
        iretq

// ---- exceptions -----------------------------------------------------------------------------

        .set    vector, 0
        .balign 8
exception_stubs:
        .rept   32
        .balign 8
        pushq   $vector
        jmp     exception_common
        .set    vector, vector + 1
        .endr

exception_common:
        cld
        popq    %rdi
        movq    %rsp, %rsi
        movq    %cr2, %rdx
        call    report_exception
        .globl  halt_for_ever
halt_for_ever:
        // No interrupt table and an exception: a machine that ignored the orderly ways out resets.
        cmpb    $0, reset_wanted
        je      1f
        lidt    empty_pointer
        ud2
1:      cli
        hlt
        jmp     1b

// ---- the other vCPUs start in real mode -------------------------------------------------------

        .code16
        .globl  ap_trampoline, ap_trampoline_end
ap_trampoline:
        cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ds
        lgdtl   BOOT_TRAMPOLINE + ap_gdt_pointer - ap_trampoline
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $kCode32, $ap_enter32
        .balign 8
ap_gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
ap_trampoline_end:

        .code32
ap_enter32:
        movl    $kData0, %eax
        movl    %eax, %ds
        movl    %eax, %ss
        movl    starting_vcpu, %eax
        incl    %eax
        shll    $10, %eax
        addl    $exception_stacks, %eax
        movl    %eax, %esp
        jmp     ap_protected

        .balign 8
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
        .long   0
        .balign 8
idt_pointer:
        .word   idt_end - idt - 1
        .quad   idt
        .balign 8
empty_pointer:
        .word   0
        .quad   0
        .balign 4
cpuid_leaves:
        .long   0, 1, 0x15, 0x16, 0x40000000, 0x40000010
cpuid_leaves_end:

        .balign 8
        .set    vector, 0
idt:
        .rept   32
        // Every stub is eight bytes after the one before it.
        .set    stub, kImageBase + (exception_stubs - boot_first) + vector * 8
        .word   stub & 0xffff, kCode0
        .byte   0, 0x8e
        .word   stub >> 16
        .long   0, 0
        .set    vector, vector + 1
        .endr
idt_end:

// ---- tables that the processor or this file changes -----------------------------------------

        .data
        .balign 4096
        .globl  page_map
page_map:                               // Present, writable, user, accessed, dirty.
        .quad   page_pointers + 0x27
        .fill   511, 8, 0
        .globl  page_pointers
page_pointers:
        .quad   page_directories + 0x0027
        .quad   page_directories + 0x1027
        .quad   page_directories + 0x2027
        .quad   page_directories + 0x3027
        .fill   508, 8, 0
        .globl  page_directories
page_directories:                       // The first 4 GiB as 2 MiB pages.
        .set    page, 0
        .rept   2048
        .quad   page + 0xe7
        .set    page, page + 0x200000
        .endr

        .balign 512
task_segments:
        .set    index, 0
        .rept   BOOT_MAX_VCPUS
        .long   0
        .quad   exception_stacks + (index + 1) * 1024
        .fill   90, 1, 0
        .word   104                     // The I/O bitmap begins here: ports 0 to 0x7ff open.
        .fill   256, 1, 0
        .byte   0xff
        .fill   kTssSize - kTssLimit - 1, 1, 0
        .set    index, index + 1
        .endr

        .balign 16
gdt:
        .quad   0
        .quad   0x00cf9b000000ffff      // 0x08 code 32
        .quad   0x00cf93000000ffff      // 0x10 data
        .quad   0x00af9b000000ffff      // 0x18 code 64
        .quad   0x00cff3000000ffff      // 0x20 user data
        .quad   0x00affb000000ffff      // 0x28 user code 64
        .rept   BOOT_MAX_VCPUS
        .word   kTssLimit, 0
        .byte   0, 0x89, 0, 0
        .quad   0
        .endr
gdt_end:

        .globl  start_info_address, cpuid_answers, starting_vcpu, reset_wanted
        .balign 8
start_info_address:
        .quad   0
starting_vcpu:
        .long   0
reset_wanted:
        .long   0
cpuid_answers:
        .fill   6 * 16, 1, 0

        .bss
        .balign 4096
exception_stacks:
        .fill   BOOT_MAX_VCPUS * 1024, 1, 0
        .set    boot_stack_top, exception_stacks + 1024
        .balign 4096
user_stacks:
        .fill   BOOT_MAX_VCPUS * 16384, 1, 0

        .section .note.GNU-stack, "", @progbits
