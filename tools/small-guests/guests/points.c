/* Waits at one exact point to be frozen there, and tells afterwards how often what was under way has happened: once is
 * right. The command line names the point:
 *
 * - `pending`: an interrupt was requested and is held back by the task priority
 * - `expiring`: the timer's deadline passes while the vCPU stands still at the warm point
 * - `expired`: the deadline has passed, and the interrupt is held back
 * - `handled`: the deadline has passed, and the interrupt was handled
 * - `halted`: before it is warm it halts until the deadline, half a second later
 * - `serial`: a byte was printed, and the interrupt that asks for the next one is held back
 * - `in`: before it is warm it reads the sequence port a thousand times
 * - `mmio`: before it is warm it reads the identification of the first virtio device a thousand times
 * - `mmio-write`: before it is warm it selects one of that device's queues a thousand times
 * - `out`: before it is warm it prints a thousand bytes: empty line, alphabet, and again
 *
 * Every event is answered with `interrupts N right N`, where what is right is a value that was read. */
#include "guest.h"
#include "interrupts.h"

enum {
    SERIAL_GSI = 4,
    COM1_DATA = 0x3f8,
    COM1_INTERRUPT_ENABLE = 0x3f9,
    TRANSMITTER_EMPTY = 2,
    VIRTIO_MMIO = 0xd0000000,
    VIRTIO_MAGIC = 0x74726976,
    VIRTIO_QUEUE_SELECT = 0x30,
    VIRTIO_QUEUE_SIZE_MAX = 0x34,
    ACCESSES = 1000,
};

/* In ticks of a TSC of some GHz: what is soon is over before the host looks, what is late is not. */
static const uint64_t SOON = 20 * 1000 * 1000, LATE = 2000ull * 1000 * 1000;

static uint64_t right;

/* The host needs a moment after the start to get hold of the device. */
static void wait_for_host(void)
{
    for (uint64_t start = __builtin_ia32_rdtsc(); __builtin_ia32_rdtsc() - start < LATE / 2;)
        __asm__ volatile("pause");
}

static void set_deadline(uint64_t ticks)
{
    apic_write(APIC_TIMER, TIMER_DEADLINE | VECTOR);
    write_msr(MSR_TSC_DEADLINE, read_msr(MSR_TSC) + ticks);
}

static void await_request(void)
{
    while (!is_requested())
        __asm__ volatile("pause");
}

static void prepare_pending(void)
{
    let_through(NO_INTERRUPTS);
    apic_write(APIC_COMMAND, COMMAND_SELF | VECTOR);
    await_request();
}

static void prepare_expiring(void)
{
    set_deadline(SOON);
}

static void prepare_expired(void)
{
    let_through(NO_INTERRUPTS);
    set_deadline(SOON);
    await_request();
}

static void prepare_handled(void)
{
    set_deadline(SOON);
    while (interrupts == 0)
        __asm__ volatile("pause");
}

static void prepare_halted(void)
{
    set_deadline(LATE);
    halt_until_interrupt();
}

static void prepare_serial(void)
{
    let_through(NO_INTERRUPTS);
    route(SERIAL_GSI);
    out8(COM1_INTERRUPT_ENABLE, TRANSMITTER_EMPTY);
    out8(COM1_DATA, '!');
    await_request();
}

static void prepare_in(void)
{
    wait_for_host();
    for (uint32_t i = 0; i < ACCESSES; i++)
        right += in32(PORT_SEQUENCE) == i;
}

static void prepare_mmio(void)
{
    wait_for_host();
    for (int i = 0; i < ACCESSES; i++)
        right += *(volatile uint32_t *)VIRTIO_MMIO == VIRTIO_MAGIC;
}

/* The device has one queue: only where the write of 0 has come does it tell a size. The instruction moves its address on, so that
 * one that is done again behind the host's back moves it too far. */
static void prepare_mmio_write(void)
{
    const uint64_t select = VIRTIO_MMIO + VIRTIO_QUEUE_SELECT;

    wait_for_host();
    for (uint32_t i = 1; i <= ACCESSES; i++) {
        uint64_t to = select;

        __asm__ volatile("stosl" : "+D"(to) : "a"(i & 1) : "memory");
        bool is_there = *(volatile uint32_t *)(VIRTIO_MMIO + VIRTIO_QUEUE_SIZE_MAX) != 0;
        right += to == select + 4 && is_there == (i % 2 == 0);
    }
}

static void prepare_out(void)
{
    wait_for_host();
    for (int i = 0; i < ACCESSES; i++)
        out8(COM1_DATA, i % 27 == 0 ? '\n' : 'a' + i % 27 - 1);
}

static const struct {
    const char *name;
    void (*prepare)(void);
} points[] = {
    { "pending", prepare_pending }, { "expiring", prepare_expiring }, { "expired", prepare_expired },
    { "handled", prepare_handled }, { "halted", prepare_halted },     { "serial", prepare_serial },
    { "in", prepare_in },           { "mmio", prepare_mmio },         { "mmio-write", prepare_mmio_write },
    { "out", prepare_out },
};

static bool equal(const char *a, const char *b)
{
    while (*a != '\0' && *a == *b)
        a++, b++;
    return *a == *b;
}

/* Time enough for what was held back, and for what must not come. */
static void look_around(void)
{
    let_through(ALL_INTERRUPTS);
    for (uint64_t start = read_msr(MSR_TSC); read_msr(MSR_TSC) - start < 2 * SOON;)
        __asm__ volatile("pause");
}

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    (void)ram_bytes;
    take_interrupts();
    for (unsigned i = 0; i < sizeof points / sizeof *points; i++)
        if (equal(points[i].name, command_line))
            points[i].prepare();
    for (;;) {
        struct event event;

        warm();
        look_around();
        read_event(&event);
        answer_text("interrupts ");
        answer_decimal(interrupts);
        answer_text(" right ");
        answer_decimal(right);
        done(0);
    }
}
