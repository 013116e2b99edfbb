/* What the small guests share: the port interface (docs/port-interface.md) and a little text. */
#ifndef SMALL_GUEST_H
#define SMALL_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PORT_BYTES = 0xe0,    /* 8 bits: next byte of the event; a byte of the answer */
    PORT_CONTROL = 0xe4,  /* 32 bits: bytes of the event that wait; a command */
    PORT_SEQUENCE = 0xe8, /* 32 bits: each read gives the last value + 1 */
};

enum {
    COMMAND_WARM = 1,
    COMMAND_DONE = 0x100, /* + exit code, 0 to 255 */
    COMMAND_DONE_0 = 2,   /* the same as 0x100 */
};

void *memcpy(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);

/* Every guest's own entry. `ram_bytes` is the machine's RAM, which begins at address 0. */
_Noreturn void guest(const char *command_line, uint64_t ram_bytes);

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint16_t in16(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out16(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

/* String forms: one instruction, `count` elements. */
static inline void in8_string(uint16_t port, void *to, size_t count)
{
    __asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"(port) : "memory");
}

static inline void in32_string(uint16_t port, uint32_t *to, size_t count)
{
    __asm__ volatile("rep insl" : "+D"(to), "+c"(count) : "d"(port) : "memory");
}

static inline void out8_string(uint16_t port, const void *from, size_t count)
{
    __asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(port) : "memory");
}

/* Announces that the guest is ready for an event; the machine stands still in here until the event is there. */
static inline void warm(void)
{
    out32(PORT_CONTROL, COMMAND_WARM);
}

/* Ends the answer. */
static inline void done(uint8_t exit_code)
{
    out32(PORT_CONTROL, COMMAND_DONE + exit_code);
}

/* Bytes of the event that have not been read. */
static inline uint32_t event_waiting(void)
{
    return in32(PORT_CONTROL);
}

/* An event as text, cut off after EVENT_TEXT_MAX bytes. */
enum { EVENT_TEXT_MAX = 255 };
struct event {
    char text[EVENT_TEXT_MAX + 1];
    const char *rest; /* what next_word and next_number have not taken */
};

/* Reads a whole event. */
void read_event(struct event *event);

/* Whether the next word of the event is `word`; only then it is taken. */
bool next_word(struct event *event, const char *word);

/* Takes a number (decimal, or hexadecimal after 0x); false when there is none. */
bool next_number(struct event *event, uint64_t *value);

/* Parts of an answer. */
void answer_text(const char *text);
void answer_decimal(uint64_t value);
void answer_hex(uint64_t value);

/* RAM that nothing else uses: from the end of the guest's image to the end of the RAM below the hole at 3 GiB. */
struct arena {
    uint8_t *start;
    uint64_t bytes;
};
struct arena arena(uint64_t ram_bytes);

#endif
