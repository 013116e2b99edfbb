/* Never gets warm: what a host does about a guest that is never ready. */
#include "guest.h"

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    (void)command_line, (void)ram_bytes;
    for (;;)
        __asm__ volatile("pause");
}
