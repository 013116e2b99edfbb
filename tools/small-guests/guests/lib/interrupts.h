/* Interrupts for small guests: an IDT, one handler that counts, and the few privileged instructions that go with them
 * (docs/port-interface.md, "Interrupts"). A guest that includes this is linked with interrupts.c and interrupt-stubs.S. */
#ifndef SMALL_GUEST_INTERRUPTS_H
#define SMALL_GUEST_INTERRUPTS_H

#include <stdint.h>

enum {
    VECTOR = 0x40, /* the one interrupt that is counted */
    SPURIOUS_VECTOR = 0x4f,
    VECTORS = 0x50,
};

/* Registers of the local APIC (Intel SDM volume 3A, table 12-1). */
enum {
    APIC_TASK_PRIORITY = 0x80,
    APIC_SPURIOUS = 0xf0,
    APIC_REQUEST = 0x200, /* eight of them, 16 bytes apart, for 32 vectors each */
    APIC_COMMAND = 0x300,
    APIC_TIMER = 0x320,
    APIC_INITIAL_COUNT = 0x380,
    APIC_DIVIDE = 0x3e0,
};
enum {
    COMMAND_SELF = 1 << 18,
    TIMER_ONE_SHOT = 0,
    TIMER_DEADLINE = 2 << 17,
    TIMER_MASKED = 1 << 16,
    DIVIDE_BY_16 = 3,
    ALL_INTERRUPTS = 0,
    NO_INTERRUPTS = 0xff,
};
enum {
    MSR_TSC = 0x10,
    MSR_TSC_DEADLINE = 0x6e0,
};

/* How often VECTOR has come. */
extern volatile uint64_t interrupts;

/* Fills in the IDT and switches the local APIC on. Interrupts come from then on. */
void take_interrupts(void);

static inline uint32_t apic_read(uint32_t offset)
{
    return *(volatile uint32_t *)(0xfee00000ul + offset);
}

static inline void apic_write(uint32_t offset, uint32_t value)
{
    *(volatile uint32_t *)(0xfee00000ul + offset) = value;
}

/* Lets interrupts above a priority through. Unlike CLI it works at every privilege level. */
static inline void let_through(uint32_t priority)
{
    apic_write(APIC_TASK_PRIORITY, priority);
}

/* Routes pin `gsi` of the I/O APIC to VECTOR, as an edge. */
void route(uint32_t gsi);

/* Whether VECTOR waits to be delivered. */
static inline int is_requested(void)
{
    return apic_read(APIC_REQUEST + VECTOR / 32 * 16) >> VECTOR % 32 & 1;
}

/* What only level 0 may do, by way of INT3. */
uint64_t read_msr(uint32_t index);
void write_msr(uint32_t index, uint64_t value);

/* Halts until `interrupts` is not 0. */
void halt_until_interrupt(void);

#endif
