/* An attacker in place of the guest agent. It is loaded like a Linux kernel, has every device that Linux has, drives the socket
 * device itself, and speaks the guest protocol (docs/guest-protocol.md) well enough to be baked, until it attacks.
 *
 * Words of the command line: `at=STAGE do=ATTACK` names when and how (an event whose content begins with an attack's name does
 * the same for that event); `answer=http` or `answer=lambda` how an honest event is answered: with `fine`. Events `read N` and
 * `words N` are honest too, and read 64 KiB of the first drive N times before, or write so many kilobytes to standard error.
 *
 * STAGE: greeting, start, freeze, restore, event. ATTACK: see the table. Whatever it does, it goes on for ever, or stands still
 * afterwards. */
#include "chaos.h"
#include "virtio.h"

enum {
    HOST_CID = 2,
    CONTROL_PORT = 1024,
    STREAM = 1,
    OP_REQUEST = 1,
    OP_RESPONSE = 2,
    OP_RESET = 3,
    OP_SHUTDOWN = 4,
    OP_DATA = 5,
    OP_CREDIT_UPDATE = 6,
    OP_CREDIT_REQUEST = 7,

    SOCKET = 19,
    DRIVE = 2,
    READ_BYTES = 64 << 10,

    RECEIVE = 0,
    TRANSMIT = 1,
    PACKET_HEADER = 44,
    RECEIVE_BUFFERS = 32,
    RECEIVE_BUFFER = 4096,
    OUR_BUFFER = 256 << 10,

    FRAME_HEADER = 8,
    FRAME_MAX = 65536,
    HELLO = 0x01,
    READY = 0x02,
    SETTLED = 0x03,
    FROZEN = 0x04,
    ACKNOWLEDGE = 0x05,
    STDOUT = 0x06,
    STDERR = 0x07,
    ANSWER = 0x08,
    DONE = 0x09,
    FAILED = 0x0a,
    LOG = 0x0b,
    CONTRACT = 0x81,
    RESTORE = 0x82,
    EVENT = 0x83,
    SETTLE = 0x86,
    FREEZE = 0x87,
    EVENT_HEAD = 32,
    GENERATION_BYTES = 16,

    COM1 = 0x3f8,
    POWER = 0x604,
    RESET = 0x605,
};

struct packet {
    uint64_t source_cid, target_cid;
    uint32_t source_port, target_port, length;
    uint16_t type, operation;
    uint32_t flags, buffer, forwarded;
    uint8_t data[FRAME_MAX];
} __attribute__((packed));

static unsigned socket_window;
static uint64_t our_cid;
static uint32_t our_port = 7;
static struct virtqueue receive_queue, transmit_queue;
static uint8_t receive_buffers[RECEIVE_BUFFERS][RECEIVE_BUFFER] __attribute__((aligned(4096)));
static uint16_t received_until;
static struct packet packet;
static uint32_t sent, peer_buffer, peer_forwarded, taken;
/* Whether receive buffers are given back. */
static bool deaf;

/* What has come on the control stream and was not looked at. */
static uint8_t inbox[2 * FRAME_MAX];
static size_t waiting;

static uint8_t frame[FRAME_MAX];
static const char *options;
static uint64_t chance = 1;

static void notify(unsigned queue)
{
    __asm__ volatile("mfence" : : : "memory");
    device_write(socket_window, REG_QUEUE_NOTIFY, queue);
}

static void offer(unsigned slot)
{
    volatile uint16_t *index = &receive_queue.available.index;

    receive_queue.descriptors[slot] =
        (struct descriptor){ (uint64_t)receive_buffers[slot], RECEIVE_BUFFER, DESCRIPTOR_WRITE, 0 };
    receive_queue.available.ring[*index % QUEUE_ENTRIES] = slot;
    __asm__ volatile("" : : : "memory");
    (*index)++;
}

static _Noreturn void stand_still(void)
{
    for (;;)
        __asm__ volatile("pause");
}

static unsigned find_device(uint32_t id)
{
    for (unsigned window = 0; window < VIRTIO_WINDOWS; window++)
        if (device_read(window, REG_MAGIC) == VIRTIO_MAGIC && device_read(window, REG_DEVICE_ID) == id)
            return window;
    stand_still();
}

static void start_socket(void)
{
    socket_window = find_device(SOCKET);
    device_begin(socket_window, 0);
    memset(&receive_queue, 0, sizeof receive_queue);
    memset(&transmit_queue, 0, sizeof transmit_queue);
    received_until = 0;
    waiting = sent = taken = peer_forwarded = 0;
    device_queue(socket_window, RECEIVE, &receive_queue, QUEUE_ENTRIES);
    device_queue(socket_window, TRANSMIT, &transmit_queue, QUEUE_ENTRIES);
    device_write(socket_window, REG_STATUS, STATUS_DRIVER_OK);
    our_cid = device_read(socket_window, 0x100);
    for (unsigned slot = 0; slot < RECEIVE_BUFFERS; slot++)
        offer(slot);
    notify(RECEIVE);
}

static void take_packet(const struct packet *from)
{
    if (from->operation == OP_RESET || from->target_port != our_port)
        return;
    peer_buffer = from->buffer;
    peer_forwarded = from->forwarded;
    if (from->operation != OP_DATA || from->length > sizeof inbox - waiting)
        return;
    memcpy(inbox + waiting, from->data, from->length);
    waiting += from->length;
    taken += from->length;
}

/* Takes what the host has sent. */
static void listen(void)
{
    volatile uint16_t *index = &receive_queue.used.index;
    bool any = false;

    while (received_until != *index && !deaf) {
        unsigned slot = receive_queue.used.ring[received_until++ % QUEUE_ENTRIES].id % RECEIVE_BUFFERS;

        take_packet((const struct packet *)receive_buffers[slot]);
        offer(slot);
        any = true;
    }
    if (any)
        notify(RECEIVE);
}

/* Gives the device `count` times what `packet` holds, and waits until it has taken them. */
static void transmit(unsigned count)
{
    volatile uint16_t *used = &transmit_queue.used.index;
    uint16_t *index = &transmit_queue.available.index;

    for (unsigned slot = 0; slot < count; slot++) {
        transmit_queue.descriptors[slot] = (struct descriptor){ (uint64_t)&packet, PACKET_HEADER + packet.length, 0, 0 };
        transmit_queue.available.ring[(uint16_t)(*index + slot) % QUEUE_ENTRIES] = slot;
    }
    __asm__ volatile("" : : : "memory");
    *index += count;
    notify(TRANSMIT);
    while (*used != *index)
        listen();
}

static void address_packet(uint16_t operation, uint32_t length)
{
    packet.source_cid = our_cid;
    packet.target_cid = HOST_CID;
    packet.source_port = our_port;
    packet.target_port = CONTROL_PORT;
    packet.length = length;
    packet.type = STREAM;
    packet.operation = operation;
    packet.flags = 0;
    packet.buffer = OUR_BUFFER;
    packet.forwarded = taken;
}

static void send_packet(uint16_t operation, uint32_t length)
{
    address_packet(operation, length);
    transmit(1);
}

/* Sends bytes on the control stream, no more than the host has room for. */
static void send(const void *bytes, uint32_t count)
{
    while (peer_buffer - (sent - peer_forwarded) < count)
        listen();
    memcpy(packet.data, bytes, count);
    send_packet(OP_DATA, count);
    sent += count;
}

static void frame_header(uint8_t kind, uint32_t length)
{
    *(uint32_t *)frame = kind;
    *(uint32_t *)(frame + 4) = length;
}

static void send_frame(uint8_t kind, const void *payload, uint32_t length)
{
    frame_header(kind, length);
    memcpy(frame + FRAME_HEADER, payload, length);
    send(frame, FRAME_HEADER + length);
}

static void connect(void)
{
    send_packet(OP_REQUEST, 0);
    while (peer_buffer == 0)
        listen();
}

static void greet(void)
{
    static const uint8_t hello[] = "EMBR\1\0\4evil\4none\1";

    send_frame(HELLO, hello, sizeof hello - 1);
}

/* The next frame of the host, with its payload at `inbox + FRAME_HEADER`. `forget_frame` makes room for the one after. */
static uint8_t next_frame(uint32_t *length)
{
    for (;;) {
        listen();
        *length = *(uint32_t *)(inbox + 4);
        if (waiting >= FRAME_HEADER && waiting - FRAME_HEADER >= *length)
            return inbox[0];
    }
}

static void forget_frame(uint32_t length)
{
    size_t left = waiting - FRAME_HEADER - length;

    memcpy(inbox, inbox + FRAME_HEADER + length, left);
    waiting = left;
}

/* ---- attacks ---- */

static void fill_frame(uint8_t byte)
{
    memset(frame + FRAME_HEADER, byte, FRAME_MAX - FRAME_HEADER);
}

static _Noreturn void flood(uint8_t kind, uint32_t length)
{
    fill_frame('x');
    frame_header(kind, length);
    for (;;)
        send(frame, FRAME_HEADER + length);
}

static void garbage(void)
{
    for (;;) {
        for (unsigned at = 0; at < 4096; at += 8)
            *(uint64_t *)(frame + at) = random_next(&chance);
        send(frame, 4096);
    }
}

static void huge_frame(void)
{
    frame_header(STDOUT, 0xffffffff);
    send(frame, FRAME_HEADER);
}

static void reserved(void)
{
    frame_header(LOG, 0);
    frame[2] = 1;
    send(frame, FRAME_HEADER);
}

static void unknown_kind(void)
{
    send_frame(0x7f, "", 0);
}

static void short_payload(void)
{
    send_frame(ACKNOWLEDGE, "fifteen letters", 15);
}

static void other_generation(void)
{
    send_frame(ACKNOWLEDGE, "sixteen letters!", 16);
}

/* A frame that never becomes whole, a byte at a time. */
static void drip(void)
{
    frame_header(LOG, 60000);
    for (unsigned at = 0; at < 60000; at++)
        send(frame + at, 1);
}

static void output(void)
{
    flood(STDOUT, FRAME_MAX - FRAME_HEADER);
}

static void errors(void)
{
    flood(STDERR, FRAME_MAX - FRAME_HEADER);
}

static void log_lines(void)
{
    flood(LOG, FRAME_MAX - FRAME_HEADER);
}

static void answer(void)
{
    flood(ANSWER, FRAME_MAX - FRAME_HEADER);
}

/* Frames without content, so many in a packet that the host must hold none of them for long. */
static void crumbs(void)
{
    for (unsigned at = 0; at < 32768; at += FRAME_HEADER) {
        *(uint64_t *)(frame + at) = 0;
        frame[at] = LOG;
    }
    for (;;)
        send(frame, 32768);
}

static void endless_done(void)
{
    flood(DONE, 4);
}

static void failed(void)
{
    static uint8_t text[6 + 4096];

    memset(text, 0x1b, sizeof text);
    text[0] = 10;
    text[1] = 0;
    send_frame(FAILED, text, sizeof text);
}

/* Response heads that never end, and interim responses that are always followed by another. */
static void headers(void)
{
    send_frame(ANSWER, "HTTP/1.1 200 OK\r\n", 17);
    flood(ANSWER, 4096);
}

static void interim(void)
{
    static const char one[] = "HTTP/1.1 100 Continue\r\n\r\n";

    for (;;)
        send_frame(ANSWER, one, sizeof one - 1);
}

static void endless_body(void)
{
    send_frame(ANSWER, "HTTP/1.1 200 OK\r\n\r\n", 19);
    flood(ANSWER, FRAME_MAX - FRAME_HEADER);
}

/* More than the host has room for. */
static void overrun(void)
{
    for (;;)
        send_packet(OP_DATA, FRAME_MAX - PACKET_HEADER);
}

static void request_all(unsigned count)
{
    for (;;) {
        address_packet(OP_REQUEST, 0);
        packet.source_port = (uint32_t)random_next(&chance);
        packet.target_port = random_next(&chance) % 2 ? CONTROL_PORT : (uint32_t)random_next(&chance);
        transmit(count);
    }
}

static void connections(void)
{
    request_all(QUEUE_ENTRIES);
}

/* The same by one that takes no answers. */
static void deaf_connections(void)
{
    deaf = true;
    request_all(QUEUE_ENTRIES);
}

static void packets(void)
{
    for (;;) {
        address_packet(random_next(&chance) % 10, random_next(&chance) % 128);
        if (random_next(&chance) % 2)
            packet.source_port = (uint32_t)random_next(&chance);
        packet.flags = random_next(&chance) % 4;
        packet.buffer = (uint32_t)random_next(&chance);
        packet.forwarded = (uint32_t)random_next(&chance);
        transmit(1);
    }
}

static void hang_up(void)
{
    send_packet(OP_RESET, 0);
}

static void reopen(void)
{
    for (;;) {
        send_packet(OP_RESET, 0);
        our_port++;
        send_packet(OP_REQUEST, 0);
        send_frame(DONE, "\0\0\0\0", 4);
    }
}

/* A driver that starts anew, with an agent that greets again. */
static void greet_again(void)
{
    start_socket();
    peer_buffer = 0;
    connect();
    greet();
}

static void console(void)
{
    for (;;)
        for (const char *at = "\x1b[2J no line ends here "; *at != '\0'; at++)
            out8(COM1, *at);
}

/* Doorbells of every device, for ever, with nothing behind them. */
static void doorbells(void)
{
    for (;;)
        for (unsigned window = 0; window <= socket_window + 1; window++)
            device_write(window, REG_QUEUE_NOTIFY, 0);
}

static void power_off(void)
{
    out8(POWER, 0x34);
}

static void reset(void)
{
    out8(RESET, 6);
}

static void all_devices(void)
{
    chaos(chance, false);
}

static void all_devices_deadly(void)
{
    chaos(chance, true);
}

/* What an honest driver does: reads of the drive's first 64 KiB, one after the other. */
static void read_drive(uint32_t count)
{
    static struct virtqueue queue;
    static struct {
        uint32_t type, reserved;
        uint64_t sector;
        uint8_t status, data[READ_BYTES];
    } request;
    unsigned window = find_device(DRIVE);
    volatile uint16_t *used = &queue.used.index;

    device_begin(window, 0);
    device_queue(window, 0, &queue, QUEUE_ENTRIES);
    device_write(window, REG_STATUS, STATUS_DRIVER_OK);
    queue.descriptors[0] = (struct descriptor){ (uint64_t)&request, 16, DESCRIPTOR_NEXT, 1 };
    queue.descriptors[1] =
        (struct descriptor){ (uint64_t)request.data, READ_BYTES, DESCRIPTOR_NEXT | DESCRIPTOR_WRITE, 2 };
    queue.descriptors[2] = (struct descriptor){ (uint64_t)&request.status, 1, DESCRIPTOR_WRITE, 0 };
    for (uint32_t done = 0; done < count; done++) {
        queue.available.index++;
        __asm__ volatile("mfence" : : : "memory");
        device_write(window, REG_QUEUE_NOTIFY, 0);
        while (*used != queue.available.index)
            __asm__ volatile("pause");
    }
}

static void write_words(uint32_t count)
{
    uint8_t words[1000];

    memset(words, 'x', sizeof words);
    while (count-- > 0)
        send_frame(STDERR, words, sizeof words);
}

static const struct {
    const char *name;
    void (*attack)(void);
} ATTACKS[] = {
    { "silence", stand_still },
    { "garbage", garbage },
    { "huge-frame", huge_frame },
    { "reserved", reserved },
    { "unknown-kind", unknown_kind },
    { "short-payload", short_payload },
    { "other-generation", other_generation },
    { "drip", drip },
    { "output", output },
    { "errors", errors },
    { "log", log_lines },
    { "answer", answer },
    { "crumbs", crumbs },
    { "done", endless_done },
    { "failed", failed },
    { "headers", headers },
    { "interim", interim },
    { "body", endless_body },
    { "overrun", overrun },
    { "connections", connections },
    { "deaf", deaf_connections },
    { "packets", packets },
    { "hang-up", hang_up },
    { "reopen", reopen },
    { "greet-again", greet_again },
    { "console", console },
    { "doorbells", doorbells },
    { "power-off", power_off },
    { "reset", reset },
    { "chaos", all_devices },
    { "deadly-chaos", all_devices_deadly },
};

/* Whether `text` begins with `word`, and the word ends there. */
static bool is_word(const char *text, const char *word)
{
    while (*word != '\0')
        if (*text++ != *word++)
            return false;
    return *text == '\0' || *text == ' ' || *text == '\n';
}

/* The decimal number that `text` begins with. */
static uint64_t number(const char *text)
{
    uint64_t value = 0;

    while (*text >= '0' && *text <= '9')
        value = value * 10 + *text++ - '0';
    return value;
}

/* Attacks as `name` says, which a number may follow: the seed. */
static void attack(const char *name)
{
    for (size_t i = 0; i < sizeof ATTACKS / sizeof ATTACKS[0]; i++) {
        if (!is_word(name, ATTACKS[i].name))
            continue;
        while (*name != ' ' && *name != '\0')
            name++;
        if (*name == ' ')
            chance = number(name + 1);
        ATTACKS[i].attack();
        stand_still();
    }
}

/* What follows `key` in the command line, or nothing. */
static const char *option(const char *key)
{
    for (const char *at = options; *at != '\0'; at++) {
        const char *end = at, *rest = key;

        while (*rest != '\0' && *end == *rest)
            end++, rest++;
        if (*rest == '\0')
            return end;
    }
    return "";
}

static void at(const char *stage)
{
    if (is_word(option("at="), stage))
        attack(option("do="));
}

static void answer_event(uint32_t length)
{
    uint32_t content = length - EVENT_HEAD;
    char text[64];

    if (content > sizeof text - 1)
        content = sizeof text - 1;
    memcpy(text, inbox + FRAME_HEADER + EVENT_HEAD, content);
    text[content] = '\0';
    if (is_word(text, "read"))
        read_drive(number(text + 5));
    if (is_word(text, "words"))
        write_words(number(text + 6));
    attack(text);
    at("event");
    if (is_word(option("answer="), "http"))
        send_frame(ANSWER, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine", 42);
    else
        send_frame(is_word(option("answer="), "lambda") ? ANSWER : STDOUT, "fine", 4);
    send_frame(DONE, "\0\0\0\0", 4);
}

static void obey(uint8_t kind, uint32_t length)
{
    uint8_t memory[16] = { 0, 0, 0, 8 };

    if (kind == CONTRACT && inbox[FRAME_HEADER] == 1) {
        at("start");
        send_frame(READY, "", 0);
    } else if (kind == SETTLE) {
        send_frame(SETTLED, "", 0);
    } else if (kind == FREEZE) {
        at("freeze");
        send_frame(FROZEN, memory, sizeof memory);
    } else if (kind == RESTORE) {
        at("restore");
        send_frame(ACKNOWLEDGE, inbox + FRAME_HEADER, GENERATION_BYTES);
    } else if (kind == EVENT && length >= EVENT_HEAD) {
        answer_event(length);
    }
}

_Noreturn void guest(const char *command_line, uint64_t ram_bytes)
{
    (void)ram_bytes;
    options = command_line;
    start_socket();
    connect();
    at("greeting");
    greet();
    for (;;) {
        uint32_t length;
        uint8_t kind = next_frame(&length);

        obey(kind, length);
        forget_frame(length);
    }
}
