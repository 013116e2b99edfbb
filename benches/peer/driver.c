/* Drives a Firecracker and times it from outside.
 *
 *   cc -O2 -static -o driver driver.c
 *   driver make DIR EVENT FIRECRACKER                              boots, warms up with the event, takes a snapshot
 *   driver (restore|load|cold) DIR EVENT FIRECRACKER OUT SAMPLES PAUSE_US
 *
 * DIR holds vm.json (the machine, with a vsock at v.sock) and gets `snapshot` and `memory`; all paths in it are relative
 * to it. The guest is guest.c. OUT gets a line of JSON per start, everything in microseconds of CLOCK_MONOTONIC from just before
 * the process is spawned:
 *
 *   {"label", "first_byte_us", "end_us", "phases_us": [[NAME, US]...], "second_us", "answer"}
 *
 * `first_byte_us`: the first byte of the answer to EVENT. `end_us`: the end of that answer. `second_us`: from the connection
 * for a second event to its first byte, in the same machine.
 *
 * A restore is a fresh process, PUT /snapshot/load with `resume_vm` over its API socket, a connection to v.sock, the event.
 * `load` is the first part of it, up to where the guest might run: without `resume_vm`, because on one CPU a guest that runs keeps
 * the answer from coming; there is no event, and `first_byte_us` is the answer of PUT /snapshot/load. A cold start is a fresh process without API and with a configuration file, the quickest way there is, until the guest tells
 * that it listens. Connection and event are one write, nothing is polled for while the guest works, and nothing is logged:
 * where there was a choice, it was made in Firecracker's favour.
 *
 * A process is killed and waited for, with all that the kernel must undo, before the next random pause.
 *
 * It is small and static, so that spawning costs what it costs a small program: no copied page tables, no relocations. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/json.h"
#include "../common/program.h"

enum {
    ANSWER_MAX = 512,
    EVENT_MAX = 4096,
    PORT_EVENTS = 5000, /* as in guest.c */
    WARM_UPS = 2, /* of two events each: twice as many as a bundle gets */
    LIMIT_S = 120, /* for one start: a guest that never answers ends the whole */
};

/* In the directory that main enters. */
#define API "api.sock"
#define VSOCK "v.sock"
#define READY VSOCK "_5001" /* where a guest's connection to PORT_READY ends */

#define LOAD_REQUEST(RESUME) \
    "{\"snapshot_path\":\"snapshot\",\"resume_vm\":" RESUME "," \
    "\"mem_backend\":{\"backend_path\":\"memory\",\"backend_type\":\"File\"}}"
static const char create_request[] = "{\"snapshot_type\":\"Full\",\"snapshot_path\":\"snapshot\",\"mem_file_path\":\"memory\"}";

struct sample {
    uint64_t begin, api, guest, first_byte, end, second_begin, second; /* CLOCK_MONOTONIC, ns */
    char answer[ANSWER_MAX + 1];
};

static const char *firecracker;
static char connect_and_event[EVENT_MAX];

static void sleep_us(uint64_t us)
{
    nanosleep(&(struct timespec){ .tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000 * 1000) }, NULL);
}

static int unix_socket(void)
{
    int made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (made < 0)
        die("make a socket");
    return made;
}

static struct sockaddr_un address_of(const char *name)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    strncpy(address.sun_path, name, sizeof address.sun_path - 1);
    return address;
}

/* A name appears with bind; until listen, a moment later, nobody is there. */
static int connect_to(const char *name)
{
    const struct sockaddr_un address = address_of(name);
    int connection = unix_socket();

    while (connect(connection, (const struct sockaddr *)&address, sizeof address) < 0) {
        if (errno != ECONNREFUSED)
            die(name);
        sleep_us(10);
    }
    return connection;
}

static int listen_at(const char *name)
{
    const struct sockaddr_un address = address_of(name);
    int listener = unix_socket();

    unlink(name);
    if (bind(listener, (const struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 8) < 0)
        die(name);
    return listener;
}

static void send_all(int to, const char *bytes, size_t len)
{
    if (write(to, bytes, len) != (ssize_t)len)
        die("write a request");
}

/* Made before the process, so that no time passes between the name's appearance and our looking. */
static int watch_directory(void)
{
    int watch = inotify_init1(IN_CLOEXEC);

    if (watch < 0 || inotify_add_watch(watch, ".", IN_CREATE) < 0)
        die("watch the directory");
    return watch;
}

static void wait_for_name(int watch, const char *name)
{
    char events[4096] __attribute__((aligned(8)));

    for (;;) {
        ssize_t len = read(watch, events, sizeof events);

        if (len <= 0)
            die("wait for a socket");
        for (ssize_t at = 0; at < len;) {
            const struct inotify_event *event = (const struct inotify_event *)(events + at);

            if (event->len > 0 && strcmp(event->name, name) == 0)
                return;
            at += (ssize_t)(sizeof *event + event->len);
        }
    }
}

static pid_t spawn(char *const *arguments)
{
    extern char **environ;
    posix_spawn_file_actions_t actions;
    const char *log = getenv("DRIVER_LOG");
    pid_t child;

    unlink(API);
    unlink(VSOCK);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, log ? log : "/dev/null", O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    errno = posix_spawn(&child, firecracker, &actions, NULL, arguments, environ);
    if (errno != 0)
        die(firecracker);
    posix_spawn_file_actions_destroy(&actions);
    return child;
}

static pid_t spawn_with_api(const char *config)
{
    char *const arguments[] = { "firecracker", "--level", "Error", "--api-sock", API,
                                config ? "--config-file" : NULL, (char *)config, NULL };

    return spawn(arguments);
}

static pid_t spawn_without_api(const char *config)
{
    char *const arguments[] = { "firecracker", "--level", "Error", "--no-api", "--config-file", (char *)config, NULL };

    return spawn(arguments);
}

static void end(pid_t child)
{
    kill(child, SIGKILL);
    if (waitpid(child, NULL, 0) != child)
        die("wait for firecracker");
    alarm(0);
}

/* One request; the answer is to be 204 No Content. */
static void request(int api, const char *method, const char *path, const char *body)
{
    char text[1024];
    size_t used = 0;
    int len = snprintf(text, sizeof text,
                       "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                       method, path, strlen(body), body);

    send_all(api, text, (size_t)len);
    do {
        ssize_t got = read(api, text + used, sizeof text - 1 - used);

        if (got <= 0)
            die(path);
        used += (size_t)got;
        text[used] = 0;
    } while (!strstr(text, "\r\n\r\n"));
    if (strncmp(text, "HTTP/1.1 204", 12) != 0) {
        fprintf(stderr, "driver: %s %s: %s\n", method, path, text);
        exit(1);
    }
}

/* Sends the event over a fresh connection and returns when the first byte of its answer was there. Firecracker's own word, "OK
 * PORT", comes first. */
static uint64_t first_byte_of_answer(int *connection, char *answer, size_t *used)
{
    static char text[ANSWER_MAX];
    char *line = NULL;
    size_t len = 0;
    uint64_t seen;

    *connection = connect_to(VSOCK);
    send_all(*connection, connect_and_event, strlen(connect_and_event));
    do {
        ssize_t got = read(*connection, text + len, sizeof text - len);

        if (got <= 0)
            die("get an answer");
        len += (size_t)got;
        line = line ? line : memchr(text, '\n', len);
    } while (!line || line + 1 == text + len);
    seen = clock_ns(CLOCK_MONOTONIC);
    *used = (size_t)(text + len - (line + 1));
    memcpy(answer, line + 1, *used);
    return seen;
}

static void read_rest(int connection, char *answer, size_t used)
{
    ssize_t got;

    while (used < ANSWER_MAX && (got = read(connection, answer + used, ANSWER_MAX - used)) > 0)
        used += (size_t)got;
    answer[used] = 0;
    close(connection);
}

static void two_events(struct sample *sample)
{
    char dropped[ANSWER_MAX + 1];
    int connection;
    size_t used;

    sample->first_byte = first_byte_of_answer(&connection, sample->answer, &used);
    read_rest(connection, sample->answer, used);
    sample->end = clock_ns(CLOCK_MONOTONIC);
    sample->second_begin = sample->end;
    sample->second = first_byte_of_answer(&connection, dropped, &used);
    read_rest(connection, dropped, used);
}

static void restore(struct sample *sample, int resume)
{
    int watch = watch_directory(), api;
    pid_t child;

    alarm(LIMIT_S);
    sample->begin = clock_ns(CLOCK_MONOTONIC);
    child = spawn_with_api(NULL);
    wait_for_name(watch, API);
    api = connect_to(API);
    sample->api = clock_ns(CLOCK_MONOTONIC);
    request(api, "PUT", "/snapshot/load", resume ? LOAD_REQUEST("true") : LOAD_REQUEST("false"));
    sample->guest = sample->first_byte = sample->end = clock_ns(CLOCK_MONOTONIC);
    if (resume)
        two_events(sample);
    close(api);
    close(watch);
    end(child);
}

static void wait_until_ready(int ready)
{
    int knock = accept4(ready, NULL, NULL, SOCK_CLOEXEC);

    if (knock < 0)
        die("hear of the guest");
    close(knock);
}

static void cold(struct sample *sample)
{
    int ready = listen_at(READY);
    pid_t child;

    alarm(LIMIT_S);
    sample->begin = clock_ns(CLOCK_MONOTONIC);
    child = spawn_without_api("vm.json");
    wait_until_ready(ready);
    sample->guest = clock_ns(CLOCK_MONOTONIC);
    two_events(sample);
    close(ready);
    end(child);
}

static void make(void)
{
    int ready = listen_at(READY), watch = watch_directory(), api;
    struct sample sample;
    pid_t child;

    alarm(LIMIT_S);
    child = spawn_with_api("vm.json");
    wait_for_name(watch, API);
    wait_until_ready(ready);
    for (int i = 0; i < WARM_UPS; i++)
        two_events(&sample);
    /* What follows an answer shall be over. */
    sleep_us(500000);
    api = connect_to(API);
    request(api, "PATCH", "/vm", "{\"state\":\"Paused\"}");
    request(api, "PUT", "/snapshot/create", create_request);
    end(child);
}

static double us(uint64_t from, uint64_t to)
{
    return (double)(to - from) / 1000;
}

static void print_phases(FILE *out, const struct sample *sample)
{
    if (sample->api)
        fprintf(out, "[[\"process start, API socket\",%.3f],[\"snapshot load\",%.3f],", us(sample->begin, sample->api),
                us(sample->api, sample->guest));
    else
        fprintf(out, "[[\"process start to guest ready\",%.3f],", us(sample->begin, sample->guest));
    fprintf(out, "[\"connection, event, first answer byte\",%.3f]]", us(sample->guest, sample->first_byte));
}

static void print_sample(FILE *out, const char *label, const struct sample *sample)
{
    fprintf(out, "{\"label\":\"%s\",\"first_byte_us\":%.3f,\"end_us\":%.3f,\"phases_us\":", label,
            us(sample->begin, sample->first_byte), us(sample->begin, sample->end));
    print_phases(out, sample);
    fprintf(out, ",\"second_us\":%.3f,\"answer\":", us(sample->second_begin, sample->second));
    print_string(out, sample->answer);
    fputs("}\n", out);
}

static void measure(const char *label, FILE *out, long samples, uint64_t pause_us)
{
    for (; samples > 0; samples--) {
        struct sample sample = { 0 };

        sleep_us(random_below(pause_us));
        if (strcmp(label, "cold") == 0)
            cold(&sample);
        else
            restore(&sample, strcmp(label, "restore") == 0);
        print_sample(out, label, &sample);
    }
    if (fclose(out) != 0)
        die("write the samples");
}

int main(int count, char **arguments)
{
    const char *mode = count > 1 ? arguments[1] : "";
    FILE *out = NULL;

    if (count != (strcmp(mode, "make") == 0 ? 5 : 8)) {
        fputs("usage: driver make DIR EVENT FIRECRACKER\n"
              "       driver (restore|load|cold) DIR EVENT FIRECRACKER OUT SAMPLES PAUSE_US\n", stderr);
        return 2;
    }
    snprintf(connect_and_event, sizeof connect_and_event, "CONNECT %d\n%s\n", PORT_EVENTS, arguments[3]);
    firecracker = arguments[4];
    if (count == 8 && !(out = fopen(arguments[5], "we")))
        die(arguments[5]);
    if (chdir(arguments[2]) < 0)
        die(arguments[2]);
    /* Waiting for a socket's owner must not take 50 us longer than it takes. */
    prctl(PR_SET_TIMERSLACK, 1);
    if (out)
        measure(mode, out, strtol(arguments[6], NULL, 10), strtoull(arguments[7], NULL, 10));
    else
        make();
    return 0;
}
