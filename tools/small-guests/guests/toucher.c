/* Touches pages in a chosen pattern: the cost of a first touch, for benches.
 *
 *   fill                        gives every page a content of its own; sent before the freeze, it makes all pages part of
 *                               the bundle
 *   read FIRST COUNT STEP       loads one word of COUNT pages: FIRST, FIRST + STEP, ... modulo the number of pages
 *   write FIRST COUNT STEP      adds 1 to one word of each of them
 *   pages                       answers the number of pages there are, decimal
 *
 * STEP 1 is dense; an odd STEP of about 0.6 of the number of pages jumps about and comes to every page once. `read` and
 * `write` answer the sum of the words they loaded, 0x..., which on a fresh clone depends only on what is asked.
 * Anything else: `bad event`, exit code 2. */
#include "guest.h"

enum { PAGE = 4096 };

static struct arena ram;
static uint64_t pages;

static volatile uint64_t *word_of(uint64_t page)
{
    return (volatile uint64_t *)(ram.start + page % pages * PAGE);
}

static void fill(void)
{
    for (uint64_t page = 0; page < pages; page++)
        *word_of(page) = (page + 1) * 0x9e3779b97f4a7c15;
}

struct pattern {
    uint64_t first, count, step;
};

static bool next_pattern(struct event *event, struct pattern *pattern)
{
    return next_number(event, &pattern->first) && next_number(event, &pattern->count)
        && next_number(event, &pattern->step);
}

static uint64_t touch(struct pattern pattern, bool write)
{
    uint64_t total = 0;

    for (uint64_t i = 0, page = pattern.first; i < pattern.count; i++, page += pattern.step) {
        volatile uint64_t *word = word_of(page);
        uint64_t value = *word;

        total += value;
        if (write)
            *word = value + 1;
    }
    return total;
}

static bool obey(struct event *event)
{
    struct pattern pattern;

    if (next_word(event, "fill")) {
        fill();
        answer_text("ok");
    } else if (next_word(event, "read") && next_pattern(event, &pattern)) {
        answer_hex(touch(pattern, false));
    } else if (next_word(event, "write") && next_pattern(event, &pattern)) {
        answer_hex(touch(pattern, true));
    } else if (next_word(event, "pages")) {
        answer_decimal(pages);
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
    pages = ram.bytes / PAGE;
    for (;;) {
        struct event event;

        warm();
        read_event(&event);
        done(obey(&event) ? 0 : 2);
    }
}
