/* Entry of every small guest written in C. RDI, RSI and RSP are as docs/port-interface.md says, which is also how the
 * System V calling convention passes the two arguments. */
    .section .text.start, "ax"
    .globl _start
_start:
    xorl %ebp, %ebp
    call guest
    /* `guest` does not return; if it does all the same, stay here instead of running into what lies behind. */
1:  pause
    jmp 1b

    .section .note.GNU-stack, "", @progbits
