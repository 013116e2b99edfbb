/* Prints to the first serial port, polling, as the simplest of drivers does: its command line before it is warm, then
 * the bytes of every event. The answer is `printed N`. */
#include "guest.h"

enum {
    COM1_DATA = 0x3f8,
    COM1_LINE_STATUS = 0x3fd,
    TRANSMITTER_EMPTY = 1 << 5, /* 16550 line status register */
};

static void print_byte(uint8_t byte)
{
    while (!(in8(COM1_LINE_STATUS) & TRANSMITTER_EMPTY))
        __asm__ volatile("pause");
    out8(COM1_DATA, byte);
}

static void print(const char *text)
{
    while (*text != '\0')
        print_byte(*text++);
}

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    (void)ram_bytes;
    print("small guest: ");
    print(command_line);
    print("\n");
    for (;;) {
        uint32_t printed = 0;

        warm();
        while (event_waiting() > 0) {
            print_byte(in8(PORT_BYTES));
            printed++;
        }
        answer_text("printed ");
        answer_decimal(printed);
        done(0);
    }
}
