/* Does to addresses and ports what no driver would, then echoes: the host must have ignored all of it.
 *
 * Before the warm point and at every event: loads and stores of every width where there is no RAM and no device, ports
 * without a device, the port device's registers with wrong widths and across their edges, and unknown commands. */
#include "guest.h"

/* Behind 3 GiB, where no machine has RAM, and outside of every device window that layout.rs knows. */
static const uint64_t NOWHERE[] = { 0xc0000000, 0xcffff000, 0xdfffffe0, 0xfd000000 };

static void touch_nowhere(uint64_t address)
{
    (void)*(volatile uint8_t *)address;
    (void)*(volatile uint16_t *)address;
    (void)*(volatile uint32_t *)address;
    (void)*(volatile uint64_t *)address;
    *(volatile uint8_t *)address = 0xa5;
    *(volatile uint16_t *)address = 0xa5a5;
    *(volatile uint32_t *)address = 0xa5a5a5a5;
    *(volatile uint64_t *)address = 0xa5a5a5a5a5a5a5a5;
    /* Over the edge of a word and of a page. */
    (void)*(volatile uint64_t *)(address + 0xffc);
    *(volatile uint64_t *)(address + 0xffd) = 0xa5a5a5a5a5a5a5a5;
}

static void touch_ports(uint16_t port)
{
    in8(port);
    in16(port);
    in32(port);
    out8(port, 0xa5);
    out16(port, 0xa5a5);
    out32(port, 0xa5a5a5a5);
}

/* Reads only ever take the event's bytes at offset 0 with 8 bits, writes only ever add to the answer there. */
static void misuse_device(void)
{
    static const uint32_t unknown[] = { 0, 3, 0xff, 0x200, 0x10001, 0xffffffff };

    for (uint16_t offset = 1; offset < 12; offset++) {
        in8(PORT_BYTES + offset);
        in16(PORT_BYTES + offset);
        out8(PORT_BYTES + offset, COMMAND_WARM);
        out16(PORT_BYTES + offset, COMMAND_WARM);
        if (offset % 4 != 0) {
            in32(PORT_BYTES + offset);
            out32(PORT_BYTES + offset, COMMAND_WARM);
        }
    }
    in16(PORT_BYTES);
    in32(PORT_BYTES);
    out16(PORT_BYTES, 0xa5a5);
    out32(PORT_BYTES, 0xa5a5a5a5);
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++)
        out32(PORT_CONTROL, unknown[i]);
}

static void run_wild(void)
{
    static const uint16_t ports[] = { 0x0, 0x80, 0xdf, 0xec, 0xcf8, 0xffc };

    for (size_t i = 0; i < sizeof NOWHERE / sizeof NOWHERE[0]; i++)
        touch_nowhere(NOWHERE[i]);
    for (size_t i = 0; i < sizeof ports / sizeof ports[0]; i++)
        touch_ports(ports[i]);
    misuse_device();
}

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    (void)command_line, (void)ram_bytes;
    run_wild();
    for (;;) {
        warm();
        run_wild();
        while (event_waiting() > 0)
            out8(PORT_BYTES, in8(PORT_BYTES));
        done(0);
    }
}
