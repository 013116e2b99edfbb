/* What runs at level 0: a few plain instructions each, because there are hosts that interpret them one by one. */
    .text

/* Counts and ends the interrupt (register 0xb0 of the local APIC). */
    .globl on_interrupt
on_interrupt:
    pushq %rax
    incq interrupts
    movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    iretq

/* A spurious interrupt has no end. */
    .globl on_spurious
on_spurious:
    iretq

/* EDI: 0 reads MSR ECX to EDX:EAX, 1 writes it, 2 halts unless an interrupt has come. */
    .globl on_int3
on_int3:
    cmpl $1, %edi
    je write
    ja halt
    rdmsr
    iretq
write:
    wrmsr
    iretq
halt:
    cli
    cmpq $0, interrupts
    jne woken
    sti /* takes effect behind the next instruction: no interrupt comes between them */
    hlt
woken:
    iretq

    .section .note.GNU-stack, "", @progbits
