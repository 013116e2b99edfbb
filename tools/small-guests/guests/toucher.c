/* Touches pages in a chosen pattern: the cost of a first touch, for benches.
 *
 *   fill                        gives every page a content of its own; sent before the freeze, it makes all pages part of
 *                               the bundle
 *   read FIRST COUNT STEP       loads one word of COUNT pages: FIRST, FIRST + STEP, ... modulo the number of pages
 *   write FIRST COUNT STEP      adds 1 to one word of each of them
 *   scatter SEED COUNT          comes to COUNT pages in runs of 1 to 8 at places that SEED alone decides, and adds 1 to a word of
 *                               each page of every second run
 *   pages                       answers the number of pages there are, decimal
 *
 * `read` and `write` may follow one another in one event. STEP 1 is dense; an odd STEP of about 0.6 of the number of pages jumps about and comes to every page once. All but `fill` and
 * `pages` answer the sum of the words they loaded, 0x..., which on a fresh clone depends only on what is asked.
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

/* xorshift64*; SEED must not be 0. */
static uint64_t next_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1d >> 32;
}

static uint64_t scatter(uint64_t seed, uint64_t count)
{
    uint64_t total = 0;

    for (bool write = false; count > 0; write = !write) {
        uint64_t length = 1 + next_random(&seed) % 8;
        struct pattern run = { next_random(&seed) % pages, length < count ? length : count, 1 };

        total += touch(run, write);
        count -= run.count;
    }
    return total;
}

/* Every `read` and `write` of an event; false when there is none. */
static bool touch_all(struct event *event, uint64_t *total)
{
    struct pattern pattern;
    bool some = false;

    *total = 0;
    for (;; some = true) {
        bool write = next_word(event, "write");

        if (!(write || next_word(event, "read")) || !next_pattern(event, &pattern))
            return some;
        *total += touch(pattern, write);
    }
}

static bool obey(struct event *event)
{
    uint64_t seed, count, total;

    if (next_word(event, "fill")) {
        fill();
        answer_text("ok");
    } else if (touch_all(event, &total)) {
        answer_hex(total);
    } else if (next_word(event, "scatter") && next_number(event, &seed) && next_number(event, &count)) {
        answer_hex(scatter(seed, count));
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
