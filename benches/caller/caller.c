/* Calls functions of `ember serve` and times them at its own end of the socket.
 *
 *   cc -O2 -static -pthread -o caller caller.c
 *   caller SOCKET FUNCTION single COUNT READY    one call after the other, each when READY shells wait
 *   caller SOCKET FUNCTION burst N ROUNDS READY  N calls at once, ROUNDS times, each round when READY shells wait
 *   caller SOCKET FUNCTION loop SECONDS THREADS  calls without a pause; one line with their rate
 *   caller SOCKET FUNCTION calls COUNT THREADS   so many of them
 *   caller SOCKET FUNCTION keep COUNT FIRST      one clone that is kept of each of the functions FUNCTION-FIRST to FUNCTION-(FIRST + COUNT - 1)
 *                                                (register them with reuse 2: a second call of one of them would get its kept clone)
 *
 * The event is "hello", or $CALLER_EVENT; before each single call come 5 ms, or $CALLER_PAUSE_US.
 * A line of JSON per call goes to standard output: {"label", "us"} and, of single calls, what the shell told: {"restore_us",
 * "first_exit_us", "first_answer_us"} from when the daemon sent its job. A burst ends with {"label": "wall", "us"}.
 * Each call has a connection of its own, made before the clock starts. A call that is not answered ends the whole. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../common/program.h"

enum { ANSWER_MAX = 8192, CALLS_MAX = 1024 };

static const char *socket_path, *function, *event = "hello";
static useconds_t pause_us = 5000;

static int reach(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        die("connect");
    return fd;
}

/* Sends a request and reads the answer to the end of the connection. */
static void ask(int fd, const char *request, char answer[ANSWER_MAX + 1])
{
    size_t length = strlen(request), got = 0;
    ssize_t n;

    if (write(fd, request, length) != (ssize_t)length)
        die("send");
    while ((n = read(fd, answer + got, ANSWER_MAX - got)) > 0)
        got += (size_t)n;
    if (n < 0)
        die("receive");
    /* The lengths of frames have zeros in them. */
    for (size_t i = 0; i < got; i++)
        if (!answer[i])
            answer[i] = ' ';
    answer[got] = 0;
    close(fd);
}

static double number(const char *answer, const char *name)
{
    const char *at = strstr(answer, name);

    return at ? strtod(at + strlen(name), NULL) : -1;
}

static void await_shells(double wanted)
{
    char answer[ANSWER_MAX + 1];

    do {
        usleep(2000);
        ask(reach(), "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", answer);
    } while (number(answer, "\"shells_ready\":") < wanted);
}

static void call_of(const char *name, int fd, const char *more, char answer[ANSWER_MAX + 1])
{
    char request[1024];
    int length = snprintf(request, sizeof request,
                          "POST /functions/%s/invoke HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%sContent-Length: %zu\r\n\r\n%s",
                          name, more, strlen(event), event);

    if (length < 0 || (size_t)length >= sizeof request) {
        fprintf(stderr, "caller: the event is too long\n");
        exit(1);
    }
    ask(fd, request, answer);
    if (strncmp(answer, "HTTP/1.1 200", 12)) {
        fprintf(stderr, "caller: %s\n", answer);
        exit(1);
    }
}

static void call(int fd, const char *more, char answer[ANSWER_MAX + 1])
{
    call_of(function, fd, more, answer);
}

static void single(int count, int ready)
{
    static const char frames[] = "Accept: application/vnd.ember.frames\r\n";
    char answer[ANSWER_MAX + 1];

    for (int i = 0; i < count; i++) {
        await_shells(ready);
        usleep(pause_us);
        int fd = reach();
        uint64_t begin = clock_ns(CLOCK_MONOTONIC);
        call(fd, frames, answer);
        double us = (double)(clock_ns(CLOCK_MONOTONIC) - begin) / 1000;
        printf("{\"label\":\"single\",\"us\":%.1f,\"restore_us\":%.1f,\"first_exit_us\":%.1f,\"first_answer_us\":%.1f}\n", us,
               number(answer, "\"restore_us\":"), number(answer, "\"first_exit_us\":"),
               number(answer, "\"first_answer_us\":"));
    }
}

struct caller {
    pthread_t thread;
    pthread_barrier_t *start;
    int fd;
    /* Of a loop: when it ends, or after how many calls. */
    uint64_t end_at, most, count;
    double us;
};

static void *one(void *argument)
{
    struct caller *caller = argument;
    char answer[ANSWER_MAX + 1];

    pthread_barrier_wait(caller->start);
    uint64_t begin = clock_ns(CLOCK_MONOTONIC);
    call(caller->fd, "", answer);
    caller->us = (double)(clock_ns(CLOCK_MONOTONIC) - begin) / 1000;
    return NULL;
}

static void *many(void *argument)
{
    struct caller *caller = argument;
    char answer[ANSWER_MAX + 1];

    while (caller->most ? caller->count < caller->most : clock_ns(CLOCK_MONOTONIC) < caller->end_at) {
        call(reach(), "", answer);
        caller->count++;
    }
    return NULL;
}

static void start(struct caller *caller, void *(*run)(void *))
{
    if ((errno = pthread_create(&caller->thread, NULL, run, caller)))
        die("start a thread");
}

static void burst(int n, int rounds, int ready)
{
    static struct caller callers[CALLS_MAX];
    pthread_barrier_t barrier;

    pthread_barrier_init(&barrier, NULL, (unsigned)n + 1);
    for (int round = 0; round < rounds; round++) {
        await_shells(ready);
        for (int i = 0; i < n; i++) {
            callers[i] = (struct caller){ .start = &barrier, .fd = reach() };
            start(&callers[i], one);
        }
        pthread_barrier_wait(&barrier);
        uint64_t begin = clock_ns(CLOCK_MONOTONIC);
        for (int i = 0; i < n; i++)
            pthread_join(callers[i].thread, NULL);
        double wall = (double)(clock_ns(CLOCK_MONOTONIC) - begin) / 1000;
        for (int i = 0; i < n; i++)
            printf("{\"label\":\"burst\",\"us\":%.1f}\n", callers[i].us);
        printf("{\"label\":\"wall\",\"us\":%.1f}\n", wall);
    }
}

/* So many seconds, or so many calls of all together. */
static void loop(int seconds, int calls, int threads)
{
    static struct caller callers[CALLS_MAX];
    uint64_t begin = clock_ns(CLOCK_MONOTONIC), end_at = begin + (uint64_t)seconds * 1000000000, count = 0;

    for (int i = 0; i < threads; i++) {
        callers[i] = (struct caller){ .end_at = end_at, .most = (uint64_t)(calls / threads) };
        start(&callers[i], many);
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(callers[i].thread, NULL);
        count += callers[i].count;
    }
    printf("{\"label\":\"per_s\",\"us\":%.2f}\n", (double)count * 1e9 / (double)(clock_ns(CLOCK_MONOTONIC) - begin));
}

static void keep(int count, int from)
{
    char answer[ANSWER_MAX + 1], name[64];

    for (int i = from; i < from + count; i++) {
        snprintf(name, sizeof name, "%s-%d", function, i);
        call_of(name, reach(), "", answer);
    }
}

int main(int argc, char **argv)
{
    int first = argc > 4 ? atoi(argv[4]) : 0, second = argc > 5 ? atoi(argv[5]) : 0;

    if (argc < 5 || first < 1 || first > 1000000) {
        fprintf(stderr, "usage: caller SOCKET FUNCTION single|burst|loop|calls|keep N ...\n");
        return 2;
    }
    socket_path = argv[1];
    function = argv[2];
    if (getenv("CALLER_EVENT"))
        event = getenv("CALLER_EVENT");
    if (getenv("CALLER_PAUSE_US"))
        pause_us = (useconds_t)atoi(getenv("CALLER_PAUSE_US"));
    if (!strcmp(argv[3], "single"))
        single(first, second);
    else if (!strcmp(argv[3], "burst") && first <= CALLS_MAX)
        burst(first, second, argc > 6 ? atoi(argv[6]) : 0);
    else if (!strcmp(argv[3], "loop") && second <= CALLS_MAX)
        loop(first, 0, second);
    else if (!strcmp(argv[3], "calls") && second >= 1 && second <= CALLS_MAX && first >= second)
        loop(0, first, second);
    else if (!strcmp(argv[3], "keep"))
        keep(first, second);
    return 0;
}
