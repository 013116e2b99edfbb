/* Echoes like `echo`, but each event with one `rep insb` and one `rep outsb`, however long it is: the host sees string
 * accesses of many elements. Events that do not fit into RAM are answered `too long`, exit code 2. */
#include "guest.h"

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    struct arena ram = arena(ram_bytes);

    (void)command_line;
    for (;;) {
        uint32_t length;

        warm();
        length = event_waiting();
        if (length > ram.bytes) {
            answer_text("too long");
            done(2);
            continue;
        }
        in8_string(PORT_BYTES, ram.start, length);
        out8_string(PORT_BYTES, ram.start, length);
        done(0);
    }
}
