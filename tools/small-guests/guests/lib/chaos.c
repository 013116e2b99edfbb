#include "chaos.h"
#include "virtio.h"

enum {
    QUEUES = 4,
    /* Steps between two sane set-ups of a device: without them it would soon be broken and never looked at again. */
    STEPS = 64,
    SCRATCH_BYTES = 64 << 10,
    VMGENID = 0xff000,
    VMGENID_BYTES = 16,
};

static struct virtqueue queues[QUEUES];
static uint8_t scratch[SCRATCH_BYTES];

static const uint64_t ADDRESSES[] = {
    0, 0x1000, 0xfffff, 0x7fffffff, 0xbffffff8, 0xc0000000, 0xd0000000, 0xfee00000,
    0xffffffff, 0x100000000, 0x7fffffffffffffff, 0xffffffffffffff00,
};
static const uint32_t LENGTHS[] = { 0, 1, 16, 43, 44, 45, 512, 513, 4096, 65580, 0x7fffffff, 0xffffffff };

uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static uint32_t below(uint64_t *state, uint32_t bound)
{
    return (uint32_t)(random_next(state) % bound);
}

static uint64_t some_address(uint64_t *state)
{
    if (below(state, 4) == 0)
        return ADDRESSES[below(state, sizeof ADDRESSES / sizeof ADDRESSES[0])] + below(state, 16);
    return (uint64_t)scratch + below(state, SCRATCH_BYTES);
}

static uint32_t some_length(uint64_t *state)
{
    if (below(state, 2) == 0)
        return LENGTHS[below(state, sizeof LENGTHS / sizeof LENGTHS[0])];
    return 1 + below(state, 4096);
}

static void write_ports(uint64_t *state, bool deadly)
{
    static const uint16_t bases[] = { 0x3f8, 0x604, 0x64, 0xe0, 0xec, 0x60, 0x80, 0xcf8, 0x5fe };
    uint16_t port = bases[below(state, sizeof bases / sizeof bases[0])] + below(state, 12);
    uint32_t value = (uint32_t)random_next(state);

    /* Power off, reset, the controller's reset, and the port device's commands. */
    if (!deadly && ((port >= 0x604 && port < 0x606) || port == 0x64 || port == PORT_CONTROL || port == PORT_BYTES))
        return;
    switch (below(state, 6)) {
    case 0: out8(port, value); break;
    case 1: out16(port, value); break;
    case 2: out32(port, value); break;
    case 3: in8(port); break;
    case 4: in16(port); break;
    default: in32(port); break;
    }
}

/* A register or what lies beside it, in any width. */
static void write_register(uint64_t *state, unsigned window)
{
    uint64_t address = (uint64_t)device_register(window, below(state, 0x120));
    uint64_t value = below(state, 2) ? random_next(state) : below(state, 4);

    if (below(state, 4) != 0)
        address &= ~3ull;
    switch (below(state, 6)) {
    case 0: *(volatile uint8_t *)address = value; break;
    case 1: *(volatile uint16_t *)address = value; break;
    case 2: *(volatile uint64_t *)address = value; break;
    case 3: (void)*(volatile uint64_t *)address; break;
    default: *(volatile uint32_t *)address = value; break;
    }
}

/* A driver's set-up, right but for what chance spoils; features that were not offered among it. */
static void set_up(uint64_t *state, unsigned window)
{
    uint32_t features = below(state, 4) ? device_read(window, REG_DEVICE_FEATURES) : 0;
    uint32_t size = 8u << below(state, 5);

    device_write(window, REG_DEVICE_FEATURES_SELECT, 0);
    device_begin(window, features);
    for (unsigned number = 0; number < QUEUES; number++)
        device_queue(window, number, &queues[number], number == 2 ? 8 : size);
    device_write(window, REG_STATUS, STATUS_DRIVER_OK);
}

/* A request as a driver makes it, or nearly: a header that is read, data, a byte that is written. */
static void fill_request(uint64_t *state, struct virtqueue *queue, unsigned slot)
{
    struct descriptor *first = &queue->descriptors[slot];

    for (unsigned part = 0; part < 3; part++) {
        bool last = part == 2;

        first[part].address = (uint64_t)scratch + below(state, SCRATCH_BYTES - 8192);
        first[part].length = part == 0 ? 16 + 28 * below(state, 2) : last ? 1 : 512u << below(state, 4);
        first[part].flags = (last ? 0 : DESCRIPTOR_NEXT) | (part > 0 && below(state, 2) ? DESCRIPTOR_WRITE : 0);
        first[part].next = slot + part + 1;
    }
    if (below(state, 2) == 0)
        *(volatile uint64_t *)first->address = below(state, 12);
}

static void spoil_descriptor(uint64_t *state, struct virtqueue *queue)
{
    struct descriptor *one = &queue->descriptors[below(state, QUEUE_ENTRIES)];

    one->address = some_address(state);
    one->length = some_length(state);
    one->flags = below(state, 8);
    one->next = below(state, 4) ? below(state, QUEUE_ENTRIES) : (uint16_t)random_next(state);
}

/* Rewrites rings that a device has in use, before and after it is told. */
static void use_rings(uint64_t *state, unsigned window)
{
    unsigned number = below(state, QUEUES);
    struct virtqueue *queue = &queues[number];
    unsigned slot = below(state, QUEUE_ENTRIES - 3);

    fill_request(state, queue, slot);
    queue->available.ring[queue->available.index % QUEUE_ENTRIES] = slot;
    if (below(state, 8) == 0)
        spoil_descriptor(state, queue);
    __asm__ volatile("" : : : "memory");
    queue->available.index += below(state, 32) ? 1 : (uint16_t)random_next(state);
    device_write(window, REG_QUEUE_NOTIFY, number);
    if (below(state, 4) == 0)
        queue->available.ring[below(state, QUEUE_ENTRIES)] = (uint16_t)random_next(state);
    if (below(state, 8) == 0)
        queue->used.index = (uint16_t)random_next(state);
}

static void step(uint64_t *state, unsigned window, bool deadly)
{
    switch (below(state, 8)) {
    case 0: write_ports(state, deadly); break;
    case 1:
    case 2: write_register(state, window); break;
    case 3: spoil_descriptor(state, &queues[below(state, QUEUES)]); break;
    case 4: ((volatile uint8_t *)VMGENID)[below(state, VMGENID_BYTES)] = (uint8_t)random_next(state); break;
    default: use_rings(state, window); break;
    }
}

_Noreturn void chaos(uint64_t seed, bool deadly)
{
    uint64_t state = seed;

    for (;;) {
        /* Most are the first few: the others hold no device. */
        unsigned window = below(&state, below(&state, 8) ? 4 : VIRTIO_WINDOWS);

        set_up(&state, window);
        for (unsigned count = 0; count < STEPS; count++)
            step(&state, window, deadly);
    }
}
