/* The MMIO transport of virtio devices (virtio 1.2, 4.2) and split virtqueues (2.7), for guests that misuse them. */
#ifndef SMALL_GUEST_VIRTIO_H
#define SMALL_GUEST_VIRTIO_H

#include "guest.h"

enum {
    VIRTIO_WINDOW_LENGTH = 0x1000,
    VIRTIO_WINDOWS = 19,
    VIRTIO_MAGIC = 0x74726976,

    REG_MAGIC = 0x00,
    REG_DEVICE_ID = 0x08,
    REG_DEVICE_FEATURES = 0x10,
    REG_DEVICE_FEATURES_SELECT = 0x14,
    REG_DRIVER_FEATURES = 0x20,
    REG_DRIVER_FEATURES_SELECT = 0x24,
    REG_QUEUE_SELECT = 0x30,
    REG_QUEUE_SIZE_MAX = 0x34,
    REG_QUEUE_SIZE = 0x38,
    REG_QUEUE_READY = 0x44,
    REG_QUEUE_NOTIFY = 0x50,
    REG_INTERRUPT_ACK = 0x64,
    REG_STATUS = 0x70,
    REG_QUEUE_DESCRIPTORS = 0x80,
    REG_QUEUE_DRIVER = 0x90,
    REG_QUEUE_DEVICE = 0xa0,

    STATUS_DRIVER = 1 | 2,
    STATUS_FEATURES_OK = STATUS_DRIVER | 8,
    STATUS_DRIVER_OK = STATUS_FEATURES_OK | 4,

    DESCRIPTOR_NEXT = 1,
    DESCRIPTOR_WRITE = 2,
    DESCRIPTOR_INDIRECT = 4,

    QUEUE_ENTRIES = 128,
};

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

struct virtqueue {
    struct descriptor descriptors[QUEUE_ENTRIES] __attribute__((aligned(16)));
    struct {
        uint16_t flags, index;
        uint16_t ring[QUEUE_ENTRIES];
        uint16_t used_event;
    } available __attribute__((aligned(2)));
    struct {
        uint16_t flags, index;
        struct {
            uint32_t id, length;
        } ring[QUEUE_ENTRIES];
        uint16_t available_event;
    } used __attribute__((aligned(4)));
};

static inline volatile uint32_t *device_register(unsigned window, unsigned offset)
{
    uint64_t address = 0xd0000000 + (uint64_t)window * VIRTIO_WINDOW_LENGTH + offset;
    return (volatile uint32_t *)address;
}

static inline uint32_t device_read(unsigned window, unsigned offset)
{
    return *device_register(window, offset);
}

static inline void device_write(unsigned window, unsigned offset, uint32_t value)
{
    *device_register(window, offset) = value;
}

/* Resets a device and takes it to where its queues may be set up. */
static inline void device_begin(unsigned window, uint32_t features)
{
    device_write(window, REG_STATUS, 0);
    device_write(window, REG_STATUS, 1);
    device_write(window, REG_STATUS, STATUS_DRIVER);
    device_write(window, REG_DRIVER_FEATURES_SELECT, 0);
    device_write(window, REG_DRIVER_FEATURES, features);
    device_write(window, REG_DRIVER_FEATURES_SELECT, 1);
    device_write(window, REG_DRIVER_FEATURES, 1); /* VIRTIO_F_VERSION_1 */
    device_write(window, REG_STATUS, STATUS_FEATURES_OK);
}

/* Gives a device a queue of `size` entries. */
static inline void device_queue(unsigned window, unsigned number, struct virtqueue *queue, uint32_t size)
{
    device_write(window, REG_QUEUE_SELECT, number);
    device_write(window, REG_QUEUE_SIZE, size);
    device_write(window, REG_QUEUE_DESCRIPTORS, (uint32_t)(uint64_t)queue->descriptors);
    device_write(window, REG_QUEUE_DRIVER, (uint32_t)(uint64_t)&queue->available);
    device_write(window, REG_QUEUE_DEVICE, (uint32_t)(uint64_t)&queue->used);
    device_write(window, REG_QUEUE_READY, 1);
}

#endif
