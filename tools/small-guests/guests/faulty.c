/* Gets warm like any other guest, then fails the way the event says:
 *
 *   exit N   answers `exiting`, exit code N (0 to 255)
 *   spin     never answers
 *   stall    answers `half` and then never ends the answer
 *   flood    answers for ever
 *   halt     HLT, which is privileged: a triple fault
 *   fault    an exception without a handler: a triple fault
 *   wait     announces its warm point again instead of answering
 *
 * Anything else: `bad event`, exit code 2. */
#include "guest.h"

static _Noreturn void spin(void)
{
    for (;;)
        __asm__ volatile("pause");
}

static void fail(struct event *event)
{
    uint64_t code = 2;

    if (next_word(event, "exit") && next_number(event, &code)) {
        answer_text("exiting");
        done(code);
    } else if (next_word(event, "spin")) {
        spin();
    } else if (next_word(event, "stall")) {
        answer_text("half");
        spin();
    } else if (next_word(event, "flood")) {
        for (;;)
            answer_text("and on and on ");
    } else if (next_word(event, "halt")) {
        __asm__ volatile("hlt");
    } else if (next_word(event, "fault")) {
        __asm__ volatile("ud2");
    } else if (!next_word(event, "wait")) {
        answer_text("bad event");
        done(2);
    }
}

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    (void)command_line, (void)ram_bytes;
    for (;;) {
        struct event event;

        warm();
        read_event(&event);
        fail(&event);
    }
}
