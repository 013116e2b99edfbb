#include "guest.h"

/* gcc calls these for loops and structures even in a freestanding program. `rep movsb` and `rep stosb` are native at
 * every privilege level. */
void *memcpy(void *to, const void *from, size_t count)
{
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(count) : : "memory");
    return to;
}

void *memset(void *to, int value, size_t count)
{
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(count) : "a"(value) : "memory");
    return to;
}

void read_event(struct event *event)
{
    uint32_t waiting = event_waiting();
    uint32_t kept = waiting < EVENT_TEXT_MAX ? waiting : EVENT_TEXT_MAX;

    in8_string(PORT_BYTES, event->text, kept);
    event->text[kept] = '\0';
    event->rest = event->text;
    for (uint32_t left = waiting - kept; left > 0; left--)
        in8(PORT_BYTES);
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static const char *skip_spaces(const char *at)
{
    while (is_space(*at))
        at++;
    return at;
}

bool next_word(struct event *event, const char *word)
{
    const char *at = skip_spaces(event->rest);

    while (*word != '\0')
        if (*at++ != *word++)
            return false;
    if (*at != '\0' && !is_space(*at))
        return false;
    event->rest = at;
    return true;
}

static int digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return 16;
}

bool next_number(struct event *event, uint64_t *value)
{
    const char *at = skip_spaces(event->rest);
    int base = 10;

    if (at[0] == '0' && at[1] == 'x') {
        base = 16;
        at += 2;
    }
    if (digit(*at) >= base)
        return false;
    *value = 0;
    while (digit(*at) < base)
        *value = *value * base + digit(*at++);
    event->rest = at;
    return true;
}

void answer_text(const char *text)
{
    size_t length = 0;

    while (text[length] != '\0')
        length++;
    out8_string(PORT_BYTES, text, length);
}

static void answer_number(uint64_t value, unsigned base)
{
    char text[20]; /* 2^64 has 20 decimal digits */
    size_t at = sizeof text;

    do {
        text[--at] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value > 0);
    out8_string(PORT_BYTES, text + at, sizeof text - at);
}

void answer_decimal(uint64_t value)
{
    answer_number(value, 10);
}

void answer_hex(uint64_t value)
{
    answer_text("0x");
    answer_number(value, 16);
}

struct arena arena(uint64_t ram_bytes)
{
    extern uint8_t image_end[]; /* set by the linker script */
    const uint64_t hole = 0xc0000000;
    uint64_t end = ram_bytes < hole ? ram_bytes : hole;

    return (struct arena){ image_end, end - (uint64_t)image_end };
}
