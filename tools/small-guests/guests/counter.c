/* Reads the sequence port without a pause and checks that each value is the last + 1: a read that was half done when the
 * machine was frozen, and is then lost or done twice, shows at once. Any event asks for the verdict.
 *
 * Both forms are read: an IN completes when the vCPU enters the guest again, a string IN is also split by the host into
 * pieces of its own choice.
 *
 * Answer: `ok N`, N values read so far, or `lost at N: want W, got G` with exit code 1. */
#include "guest.h"

enum { SINGLE_READS = 32, STRING_READS = 8 };

static struct {
    uint32_t next;
    uint64_t reads;
    bool lost;
    uint64_t lost_at;
    uint32_t want, got;
} counter;

static void check(uint32_t value)
{
    if (value != counter.next && !counter.lost) {
        counter.lost = true;
        counter.lost_at = counter.reads;
        counter.want = counter.next;
        counter.got = value;
    }
    counter.next = value + 1;
    counter.reads++;
}

static void count(void)
{
    uint32_t values[STRING_READS];

    for (int i = 0; i < SINGLE_READS; i++)
        check(in32(PORT_SEQUENCE));
    in32_string(PORT_SEQUENCE, values, STRING_READS);
    for (int i = 0; i < STRING_READS; i++)
        check(values[i]);
}

static void answer_verdict(void)
{
    if (!counter.lost) {
        answer_text("ok ");
        answer_decimal(counter.reads);
        return;
    }
    answer_text("lost at ");
    answer_decimal(counter.lost_at);
    answer_text(": want ");
    answer_decimal(counter.want);
    answer_text(", got ");
    answer_decimal(counter.got);
}

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    (void)command_line, (void)ram_bytes;
    for (;;) {
        struct event event;

        warm();
        do
            count();
        while (event_waiting() == 0);
        read_event(&event);
        answer_verdict();
        done(counter.lost ? 1 : 0);
    }
}
