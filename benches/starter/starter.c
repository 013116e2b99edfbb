/* Starts programs in turn and times them from outside.
 *
 *   cc -O2 -static -o starter starter.c
 *   starter OUT SAMPLES PAUSE_US LABEL [NAME=VALUE...] PROGRAM [ARGUMENT...] [-- LABEL ...]...
 *
 * A round starts every program once, so that a drift of the machine's speed meets all alike; before each start there is a
 * random pause below PAUSE_US, because samples that follow each other at once fall into step with the scheduler's ticks.
 * OUT gets a line of JSON per start:
 *
 *   {"label", "first_byte_us", "first_byte_unix_us", "end_us", "timing", "start_us", "answer"}
 *
 * Everything counts from CLOCK_MONOTONIC just before the program is spawned: `first_byte_us` to the first byte of its
 * standard output, `end_us` to when its output is closed and it has been waited for. `first_byte_unix_us` is the wall clock at
 * the first byte. `timing` is the last line of its standard error that is a JSON object (`ember run --timing=json`; what the
 * function prints comes before it), else null; `start_us` is how long after the spawn the clock in there began.
 * `answer` is the beginning of its output. A program that fails, or says nothing, ends the whole with its standard error.
 *
 * A dot for each start goes to standard error. A program's descendants that outlive it are waited for before the next pause (`ember run` leaves the end of its machine to
 * such a one). Words NAME=VALUE in front of the program are added to its environment, as env(1) would, without being one more program.
 *
 * It is small and static, so that spawning costs what it costs a small program: no copied page tables, no relocations. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../common/json.h"
#include "../common/program.h"

enum {
    COMMANDS_MAX = 8,
    ANSWER_MAX = 512,
    ERRORS_MAX = 256 << 10, /* with the time of every one of 100 events */
};

struct sample {
    uint64_t begin, first_byte, end; /* CLOCK_MONOTONIC, ns */
    uint64_t first_byte_unix;        /* CLOCK_REALTIME, ns */
    char answer[ANSWER_MAX + 1], errors[ERRORS_MAX + 1];
};

static void pause_below(uint64_t us)
{
    if (us > 0)
        nanosleep(&(struct timespec){ .tv_nsec = (long)random_below(us * 1000) }, NULL);
}

static size_t read_some(int from, char *to, size_t room)
{
    ssize_t got;

    while ((got = read(from, to, room)) < 0)
        if (errno != EINTR)
            die("read from the program");
    return (size_t)got;
}

/* To the end of the stream; what does not fit is dropped. */
static void read_rest(int from, char *text, size_t used, size_t max)
{
    char dropped[4096];

    for (size_t got = 1; got > 0;) {
        got = used < max ? read_some(from, text + used, max - used) : read_some(from, dropped, sizeof dropped);
        used += used < max ? got : 0;
    }
    text[used] = 0;
}

static void open_pipe(int ends[2])
{
    /* Only what is put in place of standard output and error survives the exec. */
    if (pipe2(ends, O_CLOEXEC) < 0)
        die("make a pipe");
}

/* A pipe that holds all that is kept of standard error: it is read after the end, and no program may wait for that. */
static void open_large_pipe(int ends[2])
{
    open_pipe(ends);
    if (fcntl(ends[1], F_SETPIPE_SZ, ERRORS_MAX) < 0)
        die("enlarge a pipe");
}

/* Adds the words NAME=VALUE in front of the program to the environment, or takes them out again; tells where the program is. */
static char **set_environment(char **words, int add)
{
    for (char *value; (value = strchr(*words, '=')) != NULL; words++) {
        *value = 0;
        if ((add ? setenv(*words, value + 1, 1) : unsetenv(*words)) < 0)
            die("set the environment");
        *value = '=';
    }
    return words;
}

static pid_t spawn(char **words, int output, int errors)
{
    extern char **environ;
    char **command = set_environment(words, 1);
    posix_spawn_file_actions_t actions;
    pid_t child;

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, output, 1);
    posix_spawn_file_actions_adddup2(&actions, errors, 2);
    errno = posix_spawn(&child, command[0], &actions, NULL, command, environ);
    if (errno != 0)
        die(command[0]);
    posix_spawn_file_actions_destroy(&actions);
    set_environment(words, 0);
    return child;
}

/* What a program leaves behind ends in its own time, after its answer: on one CPU that would be the next one's time. */
static void wait_for_descendants(void)
{
    while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
        ;
}

static void measure(char **command, struct sample *sample)
{
    int output[2], errors[2], status;
    size_t first;
    pid_t child;

    open_pipe(output);
    open_large_pipe(errors);
    sample->begin = clock_ns(CLOCK_MONOTONIC);
    child = spawn(command, output[1], errors[1]);
    close(output[1]);
    close(errors[1]);
    first = read_some(output[0], sample->answer, ANSWER_MAX);
    sample->first_byte = clock_ns(CLOCK_MONOTONIC);
    sample->first_byte_unix = clock_ns(CLOCK_REALTIME);
    if (first > 0)
        read_rest(output[0], sample->answer, first, ANSWER_MAX);
    if (waitpid(child, &status, 0) != child)
        die("wait for the program");
    sample->end = clock_ns(CLOCK_MONOTONIC);
    wait_for_descendants();
    /* Less than the pipe holds, so nobody waited for this to be read. */
    read_rest(errors[0], sample->errors, 0, ERRORS_MAX);
    close(output[0]);
    close(errors[0]);
    if (status != 0 || first == 0) {
        fprintf(stderr, "starter: %s ended with status %#x and %zu bytes of output\n%s", command[0], status, first, sample->errors);
        exit(1);
    }
}

/* The last line that begins as a JSON object does. */
static const char *last_object(const char *text)
{
    const char *found = NULL;

    for (const char *line = text; line; line = strchr(line, '\n'), line += line ? 1 : 0)
        if (*line == '{')
            found = line;
    return found;
}

/* How long after `begin` the program's own clock started, by the field that `ember run --timing=json` has for this. */
static void print_timing(FILE *out, const struct sample *sample)
{
    static const char field[] = "\"start_monotonic_ns\":";
    const char *timing = last_object(sample->errors);
    const char *start = timing ? strstr(timing, field) : NULL;

    if (!start) {
        fputs("\"timing\":null,", out);
        return;
    }
    fprintf(out, "\"start_us\":%.3f,", (double)(int64_t)(strtoull(start + strlen(field), NULL, 10) - sample->begin) / 1000);
    fprintf(out, "\"timing\":%.*s,", (int)strcspn(timing, "\n"), timing);
}

static void print_sample(FILE *out, const char *label, const struct sample *sample)
{
    fputs("{\"label\":", out);
    print_string(out, label);
    fprintf(out, ",\"first_byte_us\":%.3f", (double)(sample->first_byte - sample->begin) / 1000);
    fprintf(out, ",\"first_byte_unix_us\":%.3f", (double)sample->first_byte_unix / 1000);
    fprintf(out, ",\"end_us\":%.3f,", (double)(sample->end - sample->begin) / 1000);
    print_timing(out, sample);
    fputs("\"answer\":", out);
    print_string(out, sample->answer);
    fputs("}\n", out);
}

/* Splits the words at each `--`; a command begins with its label. */
static int split(char **words, char **commands[COMMANDS_MAX])
{
    int count = 0;

    for (char **begin = words; *begin; begin = words) {
        if (count == COMMANDS_MAX) {
            fprintf(stderr, "starter: more than %d programs\n", COMMANDS_MAX);
            exit(2);
        }
        commands[count++] = begin;
        while (*words && strcmp(*words, "--") != 0)
            words++;
        if (*words)
            *words++ = NULL;
        if (!begin[0] || !begin[1]) {
            fputs("starter: a program needs a label and a name\n", stderr);
            exit(2);
        }
    }
    return count;
}

int main(int count, char **arguments)
{
    static struct sample sample;
    char **commands[COMMANDS_MAX];
    FILE *out;
    int programs;

    if (count < 6) {
        fputs("usage: starter OUT SAMPLES PAUSE_US LABEL [NAME=VALUE...] PROGRAM [ARGUMENT...] [-- LABEL ...]...\n", stderr);
        return 2;
    }
    if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
        die("take over what the programs leave behind");
    programs = split(arguments + 4, commands);
    out = fopen(arguments[1], "we");
    if (!out)
        die(arguments[1]);
    for (long round = strtol(arguments[2], NULL, 10); round > 0; round--) {
        for (int i = 0; i < programs; i++) {
            pause_below(strtoull(arguments[3], NULL, 10));
            measure(commands[i] + 1, &sample);
            print_sample(out, commands[i][0], &sample);
            /* Whoever watches sees that it goes on. */
            fputc('.', stderr);
        }
    }
    fputc('\n', stderr);
    if (fclose(out) != 0)
        die("write the samples");
    return 0;
}
