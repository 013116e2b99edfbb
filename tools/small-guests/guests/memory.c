/* Reads and writes its RAM as the event says, so that tests can see which clone sees which bytes.
 *
 *   write OFFSET VALUE   stores 64 bits at OFFSET          answers `ok`
 *   read OFFSET          loads them                        answers 0x...
 *   fill VALUE           stores VALUE in every 64-bit word answers `ok`
 *   sum                  adds all 64-bit words, modulo 2^64 answers 0x...
 *   size                 bytes there are                   answers a decimal number
 *
 * OFFSET counts bytes from the end of the guest's image and is a multiple of 8. Anything else: `bad event`, exit code 2. */
#include "guest.h"

static struct arena ram;

static bool next_place(struct event *event, volatile uint64_t **place)
{
    uint64_t offset;

    if (!next_number(event, &offset) || offset % 8 != 0 || offset >= ram.bytes)
        return false;
    *place = (volatile uint64_t *)(ram.start + offset);
    return true;
}

static void fill(uint64_t value)
{
    for (uint64_t at = 0; at < ram.bytes; at += 8)
        *(volatile uint64_t *)(ram.start + at) = value;
}

static uint64_t sum(void)
{
    uint64_t total = 0;

    for (uint64_t at = 0; at < ram.bytes; at += 8)
        total += *(volatile uint64_t *)(ram.start + at);
    return total;
}

static bool obey(struct event *event)
{
    volatile uint64_t *place;
    uint64_t value;

    if (next_word(event, "write") && next_place(event, &place) && next_number(event, &value)) {
        *place = value;
        answer_text("ok");
    } else if (next_word(event, "read") && next_place(event, &place)) {
        answer_hex(*place);
    } else if (next_word(event, "fill") && next_number(event, &value)) {
        fill(value);
        answer_text("ok");
    } else if (next_word(event, "sum")) {
        answer_hex(sum());
    } else if (next_word(event, "size")) {
        answer_decimal(ram.bytes);
    } else {
        answer_text("bad event");
        return false;
    }
    return true;
}

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    (void)command_line;
    ram = arena(ram_bytes);
    for (;;) {
        struct event event;

        warm();
        read_event(&event);
        done(obey(&event) ? 0 : 2);
    }
}
