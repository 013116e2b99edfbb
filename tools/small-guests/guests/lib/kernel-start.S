/* Entry of a guest that is loaded like a Linux kernel: the 64-bit boot protocol (Documentation/arch/x86/boot.rst), level 0,
 * the first 4 GiB mapped to themselves, RSI at the boot parameters. Such a guest has every device that Linux has. */
    .section .text.start, "ax"
    .globl _start
_start:
    leaq stack_top(%rip), %rsp
    xorl %ebp, %ebp
    movl 0x228(%rsi), %edi      /* cmd_line_ptr */
    movl $0x8000000, %esi       /* the least RAM of a machine that runs Linux */
    call guest
1:  pause
    jmp 1b

    /* How Ember tells a kernel's release. */
    .section .rodata, "a", @progbits
    .asciz "Linux version 0-ember-attacker (none)"

    .section .bss, "aw", @nobits
    .balign 16
    .skip 0x8000
stack_top:

    .section .note.GNU-stack, "", @progbits
