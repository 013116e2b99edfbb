/* For xsave.c: registers filled, warm point, registers stored, with nothing in between. RDI: want, RSI: got. */

/* struct registers of xsave.c */
    .set VECTOR, 0
    .set MASK, 32 * 64
    .set X87, MASK + 8 * 8
    .set MXCSR, X87 + 8 * 8
    .set X87_CONTROL, MXCSR + 4

    .set PORT_CONTROL, 0xe4
    .set COMMAND_WARM, 1

    .macro load_x87
    fninit
    fldcw X87_CONTROL(%rdi)
    .irp i, 7, 6, 5, 4, 3, 2, 1, 0
    fildq (X87 + \i * 8)(%rdi)
    .endr
    ldmxcsr MXCSR(%rdi)
    .endm

    .macro store_x87
    fnstcw X87_CONTROL(%rsi)
    stmxcsr MXCSR(%rsi)
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    fistpq (X87 + \i * 8)(%rsi)
    .endr
    fninit
    .endm

    .macro announce
    movl $COMMAND_WARM, %eax
    outl %eax, $PORT_CONTROL
    .endm

    .text
    .globl hold_sse, hold_avx, hold_avx512

hold_sse:
    load_x87
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups (VECTOR + \i * 64)(%rdi), %xmm\i
    .endr
    announce
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups %xmm\i, (VECTOR + \i * 64)(%rsi)
    .endr
    store_x87
    ret

hold_avx:
    load_x87
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups (VECTOR + \i * 64)(%rdi), %ymm\i
    .endr
    announce
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups %ymm\i, (VECTOR + \i * 64)(%rsi)
    .endr
    store_x87
    vzeroupper
    ret

    .altmacro
    .macro vectors512 operation
    .set i, 0
    .rept 32
    \operation %i
    .set i, i + 1
    .endr
    .endm
    .macro load512 i
    vmovups (VECTOR + \i * 64)(%rdi), %zmm\i
    .endm
    .macro store512 i
    vmovups %zmm\i, (VECTOR + \i * 64)(%rsi)
    .endm

hold_avx512:
    load_x87
    vectors512 load512
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq (MASK + \i * 8)(%rdi), %k\i
    .endr
    announce
    vectors512 store512
    .irp i, 0, 1, 2, 3, 4, 5, 6, 7
    kmovq %k\i, (MASK + \i * 8)(%rsi)
    .endr
    store_x87
    vzeroupper
    ret

    .section .note.GNU-stack, "", @progbits
