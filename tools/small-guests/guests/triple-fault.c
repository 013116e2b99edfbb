/* An exception without a handler before the warm point: a triple fault, which resets a PC. */
#include "guest.h"

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    (void)command_line, (void)ram_bytes;
    for (;;)
        __asm__ volatile("ud2");
}
