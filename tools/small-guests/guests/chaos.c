/* Misuses every device that a small guest can have, at random, for ever; the event is the seed, and `deadly SEED` also does
 * what ends the machine. Anything else: `bad event`, exit code 2. */
#include "chaos.h"

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    (void)command_line, (void)ram_bytes;
    for (;;) {
        struct event event;
        uint64_t seed;
        bool deadly;

        warm();
        read_event(&event);
        deadly = next_word(&event, "deadly");
        if (next_number(&event, &seed))
            chaos(seed, deadly);
        answer_text("bad event");
        done(2);
    }
}
