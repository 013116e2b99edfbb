/* Holds a value of its own in every vector, mask and x87 register and in their control registers while it is warm, and
 * checks them afterwards: whatever a snapshot leaves out shows.
 *
 * As wide as the processor offers: AVX-512, else AVX, else SSE. Every event is answered with `ok avx512` (`ok avx`,
 * `ok sse`), or `lost zmm17` (a register's name) with exit code 1. */
#include "guest.h"

/* The same layout is written down in hold.S. */
struct registers {
    uint8_t vector[32][64];
    uint64_t mask[8];
    uint64_t x87[8]; /* as integers: FILD and FISTP lose nothing */
    uint32_t mxcsr;
    uint16_t x87_control;
};

/* Loads everything from `want`, announces the warm point, stores everything to `got`. */
void hold_sse(const struct registers *want, struct registers *got);
void hold_avx(const struct registers *want, struct registers *got);
void hold_avx512(const struct registers *want, struct registers *got);

static const struct width {
    const char *name;
    const char *vector_name;
    int vectors, vector_bytes, masks;
    void (*hold)(const struct registers *want, struct registers *got);
} sse = { "sse", "xmm", 16, 16, 0, hold_sse },
  avx = { "avx", "ymm", 16, 32, 0, hold_avx },
  avx512 = { "avx512", "zmm", 32, 64, 8, hold_avx512 };

struct cpuid {
    uint32_t eax, ebx, ecx, edx;
};

static struct cpuid cpuid(uint32_t leaf)
{
    struct cpuid result;

    __asm__("cpuid"
            : "=a"(result.eax), "=b"(result.ebx), "=c"(result.ecx), "=d"(result.edx)
            : "a"(leaf), "c"(0));
    return result;
}

static uint32_t xcr0(void)
{
    uint32_t low, high;

    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Intel SDM volume 1, 14.3 and 15.2: what the processor has counts only once XCR0 enables it. */
static const struct width *widest(void)
{
    const uint32_t OSXSAVE = 1u << 27, AVX = 1u << 28;
    const uint32_t AVX512F = 1u << 16, AVX512BW = 1u << 30;
    const uint32_t XCR0_AVX = 0x06, XCR0_AVX512 = 0xe6;
    uint32_t basic = cpuid(1).ecx;
    uint32_t extended = cpuid(0).eax >= 7 ? cpuid(7).ebx : 0;

    if (!(basic & OSXSAVE) || !(basic & AVX) || (xcr0() & XCR0_AVX) != XCR0_AVX)
        return &sse;
    if (!(extended & AVX512F) || !(extended & AVX512BW) || (xcr0() & XCR0_AVX512) != XCR0_AVX512)
        return &avx;
    return &avx512;
}

static void choose_values(struct registers *want)
{
    for (int i = 0; i < 32; i++)
        for (int byte = 0; byte < 64; byte++)
            want->vector[i][byte] = 7 * i + 3 * byte + 1;
    for (int i = 0; i < 8; i++) {
        want->mask[i] = 0x0123456789abcdef * (i + 1);
        want->x87[i] = 0x1122334455667788 + i;
    }
    want->mxcsr = 0x3f80;       /* all exceptions masked, round down: not what a reset leaves */
    want->x87_control = 0x077f; /* the same; 64-bit precision, without which FILD would round */
}

static bool equal(const void *a, const void *b, int bytes)
{
    for (int i = 0; i < bytes; i++)
        if (((const uint8_t *)a)[i] != ((const uint8_t *)b)[i])
            return false;
    return true;
}

static bool answer_lost(const char *name, int number)
{
    answer_text("lost ");
    answer_text(name);
    if (number >= 0)
        answer_decimal(number);
    return false;
}

static bool answer_verdict(const struct width *width, const struct registers *want, const struct registers *got)
{
    for (int i = 0; i < width->vectors; i++)
        if (!equal(want->vector[i], got->vector[i], width->vector_bytes))
            return answer_lost(width->vector_name, i);
    for (int i = 0; i < width->masks; i++)
        if (want->mask[i] != got->mask[i])
            return answer_lost("k", i);
    for (int i = 0; i < 8; i++)
        if (want->x87[i] != got->x87[i])
            return answer_lost("st", i);
    if (want->mxcsr != got->mxcsr)
        return answer_lost("mxcsr", -1);
    if (want->x87_control != got->x87_control)
        return answer_lost("x87 control word", -1);
    answer_text("ok ");
    answer_text(width->name);
    return true;
}

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    static struct registers want, got;
    const struct width *width = widest();

    (void)command_line, (void)ram_bytes;
    choose_values(&want);
    for (;;) {
        struct event event;

        memset(&got, 0, sizeof got);
        width->hold(&want, &got);
        read_event(&event);
        done(answer_verdict(width, &want, &got) ? 0 : 1);
    }
}
