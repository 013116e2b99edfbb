/* Halts before it is warm. HLT is privileged and a small guest is not: it ends in a triple fault. */
#include "guest.h"

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    (void)command_line, (void)ram_bytes;
    for (;;)
        __asm__ volatile("hlt");
}
