// A guest without Linux: it answers its event in upper case. docs/port-interface.md explains the ports.
    .globl _start
_start:
    movl $1, %eax           # warm: the machine stands still in this OUT until there is an event
    outl %eax, $0xe4
next:
    inl  $0xe4, %eax        # bytes of the event that are left
    testl %eax, %eax
    jz   answered
    inb  $0xe0, %al         # one of them
    cmpb $'a', %al
    jb   other
    cmpb $'z', %al
    ja   other
    subb $0x20, %al
other:
    outb %al, $0xe0         # a byte of the answer
    jmp  next
answered:
    movl $0x100, %eax       # done, exit code 0
    outl %eax, $0xe4
    jmp  _start             # ready for the next event
    .section .note.GNU-stack,"",@progbits
