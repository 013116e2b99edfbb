#include "interrupts.h"

#include "guest.h"

enum {
    INT3 = 3,
    CODE_0 = 0x10, /* selector of the code segment of level 0 */
    /* Present gates (Intel SDM volume 3A, 7.14.1): an interrupt gate switches interrupts off; a trap gate for level 3 leaves
     * them on. */
    INTERRUPT_GATE = 0x8e,
    TRAP_GATE_3 = 0xef,
    APIC_ENABLED = 1 << 8,
    PIC_MASTER_MASK = 0x21,
    PIC_SLAVE_MASK = 0xa1,
    STACK_BYTES = 4096,
};

/* The same numbers are written down in interrupt-stubs.S. */
enum function { READ_MSR, WRITE_MSR, HALT };

struct gate {
    uint16_t offset_0, selector;
    uint8_t stack, kind;
    uint16_t offset_16;
    uint32_t offset_32, reserved;
};

volatile uint64_t interrupts;

static struct gate table[VECTORS];
static uint8_t stack[STACK_BYTES] __attribute__((aligned(16)));

/* By which the loader knows table and stack. */
__attribute__((section(".note.ember"), used, aligned(4))) static const struct {
    uint32_t owner_bytes, descriptor_bytes, kind;
    char owner[8];
    const void *table __attribute__((packed));
    uint64_t table_bytes __attribute__((packed));
    const void *stack __attribute__((packed));
} note = { 6, 24, 1, "Ember", table, sizeof table, stack + STACK_BYTES };

/* interrupt-stubs.S */
void on_interrupt(void);
void on_spurious(void);
void on_int3(void);

static void set_gate(int vector, void (*handler)(void), uint8_t kind)
{
    uint64_t offset = (uint64_t)handler;

    table[vector] = (struct gate){ offset, CODE_0, 0, kind, offset >> 16, offset >> 32, 0 };
}

void take_interrupts(void)
{
    set_gate(INT3, on_int3, TRAP_GATE_3);
    set_gate(VECTOR, on_interrupt, INTERRUPT_GATE);
    set_gate(SPURIOUS_VECTOR, on_spurious, INTERRUPT_GATE);
    /* Every pin of the I/O APIC reaches the old controllers too, and those the processor at vectors of their own. */
    out8(PIC_MASTER_MASK, 0xff);
    out8(PIC_SLAVE_MASK, 0xff);
    apic_write(APIC_SPURIOUS, APIC_ENABLED | SPURIOUS_VECTOR);
    let_through(ALL_INTERRUPTS);
}

void route(uint32_t gsi)
{
    volatile uint32_t *select = (volatile uint32_t *)0xfec00000ul, *window = select + 4;

    /* Redirection entry `gsi` (82093AA data sheet, 3.2.4): edge, active high, fixed delivery to APIC 0. */
    *select = 0x10 + 2 * gsi + 1;
    *window = 0;
    *select = 0x10 + 2 * gsi;
    *window = VECTOR;
}

static uint64_t call(enum function function, uint32_t index, uint64_t value)
{
    uint32_t low = value, high = value >> 32;

    __asm__ volatile("int3" : "+a"(low), "+d"(high) : "D"(function), "c"(index) : "memory");
    return low | (uint64_t)high << 32;
}

uint64_t read_msr(uint32_t index)
{
    return call(READ_MSR, index, 0);
}

void write_msr(uint32_t index, uint64_t value)
{
    call(WRITE_MSR, index, value);
}

void halt_until_interrupt(void)
{
    while (interrupts == 0)
        call(HALT, 0, 0);
}
