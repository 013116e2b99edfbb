/* PID 1 of a guest under another monitor: what Ember's agent does for a function, with nothing of Ember's protocol.
 *
 *   cc -O2 -static -o guest guest.c
 *
 * It takes the agent's place in the initramfs that `ember bake` made: loads the same modules, lays the same kind of root over the
 * same image, starts the function that the kernel command line names in FUNCTION, and serves one event per vsock connection.
 *
 *   FUNCTION=echo    a waiting /bin/cat per event, as Ember's `exec` interface with `resident`; served here
 *   FUNCTION=python  /server.py of the initramfs, run by the root's interpreter in the directory of the second drive
 *
 * An event is a line, its answer lasts until the connection ends: a monitor may know no half-closed connections. Once it
 * listens on PORT_EVENTS the guest connects to PORT_READY of the host, so that nobody has to ask. No acknowledgement, no
 * entropy, no clock, no log lines: less than Ember's agent does, in favour of the other. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

enum {
    PORT_EVENTS = 5000, /* server.py and driver.c have the same numbers */
    PORT_READY = 5001,
    BUFFER = 64 << 10,
    SERVER_MAX = 64 << 10,
};

/* The host sees a reset. */
static void die(const char *what)
{
    fprintf(stderr, "guest: cannot %s: %s\n", what, strerror(errno));
    sync();
    reboot(RB_AUTOBOOT);
    for (;;)
        pause();
}

static void mount_at(const char *what, const char *at, const char *kind, unsigned long flags, const char *options)
{
    mkdir(at, 0755);
    if (mount(what, at, kind, flags, options) < 0)
        die(at);
}

/* Without a serial port the kernel gives PID 1 no standard output. */
static void open_standard_files(void)
{
    int file;

    do
        file = open("/dev/null", O_RDWR);
    while (file >= 0 && file <= 2);
    if (file < 0)
        die("open /dev/null");
    close(file);
}

static int is_module(const struct dirent *entry)
{
    return strstr(entry->d_name, ".ko") != NULL;
}

/* In the order of their names, as the agent does. */
static void load_modules(void)
{
    struct dirent **names;
    int count = scandir("/modules", &names, is_module, alphasort);

    if (count < 0 || chdir("/modules") < 0)
        die("list the modules");
    for (int i = 0; i < count; i++) {
        int module = open(names[i]->d_name, O_RDONLY | O_CLOEXEC);

        if (module < 0 || (syscall(SYS_finit_module, module, "", 0) < 0 && errno != EEXIST))
            die(names[i]->d_name);
        close(module);
        unlink(names[i]->d_name);
    }
}

static void wait_for(const char *path)
{
    for (int tries = 0; access(path, F_OK) < 0; tries++) {
        if (tries == 10000)
            die(path);
        nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
    }
}

/* The read-only drive under a layer of memory. */
static void enter_root(void)
{
    wait_for("/dev/vda");
    mount_at("/dev/vda", "/lower", "ext4", MS_RDONLY, "");
    mount_at("tmpfs", "/layer", "tmpfs", 0, "mode=0755");
    mkdir("/layer/upper", 0755);
    mkdir("/layer/work", 0755);
    mount_at("overlay", "/new", "overlay", 0, "lowerdir=/lower,upperdir=/layer/upper,workdir=/layer/work");
    mount_at("/proc", "/new/proc", NULL, MS_MOVE, NULL);
    mount_at("/sys", "/new/sys", NULL, MS_MOVE, NULL);
    mount_at("/dev", "/new/dev", NULL, MS_MOVE, NULL);
    mount_at("tmpfs", "/new/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    mount_at("tmpfs", "/new/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
    if (chdir("/new") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
        die("enter the root");
}

static char *read_server(void)
{
    static char text[SERVER_MAX + 1];
    int file = open("/server.py", O_RDONLY | O_CLOEXEC);
    ssize_t len = file < 0 ? -1 : read(file, text, SERVER_MAX);

    if (len <= 0)
        die("read /server.py");
    close(file);
    return text;
}

static void run_python(char *server)
{
    char *const arguments[] = { "/usr/bin/python3", "-c", server, NULL };
    char *const environment[] = { "PATH=/usr/bin:/bin", "LANG=C.UTF-8", NULL };

    wait_for("/dev/vdb");
    mkdir("/mnt/function", 0755);
    mount_at("/dev/vdb", "/mnt/function", "ext4", MS_RDONLY, "");
    if (chdir("/mnt/function") < 0)
        die("enter /mnt/function");
    execve(arguments[0], arguments, environment);
    die(arguments[0]);
}

static int vsock(void)
{
    int socket_of_ours = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (socket_of_ours < 0)
        die("make a vsock");
    return socket_of_ours;
}

static int listen_for_events(void)
{
    const struct sockaddr_vm here = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT_EVENTS };
    int listener = vsock();

    if (bind(listener, (const struct sockaddr *)&here, sizeof here) < 0 || listen(listener, 8) < 0)
        die("listen");
    return listener;
}

static void tell_ready(void)
{
    const struct sockaddr_vm host = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = PORT_READY };
    int knock = vsock();

    if (connect(knock, (const struct sockaddr *)&host, sizeof host) < 0)
        die("reach the host");
    close(knock);
}

/* The waiting process of the next event. */
struct cat {
    pid_t pid;
    int input, output;
};

static struct cat start_cat(void)
{
    int input[2], output[2];
    struct cat cat;

    if (pipe2(input, O_CLOEXEC) < 0 || pipe2(output, O_CLOEXEC) < 0)
        die("make a pipe");
    cat.pid = fork();
    if (cat.pid < 0)
        die("fork");
    if (cat.pid == 0) {
        dup2(input[0], 0);
        dup2(output[1], 1);
        execl("/bin/cat", "/bin/cat", NULL);
        _exit(127);
    }
    close(input[0]);
    close(output[1]);
    cat.input = input[1];
    cat.output = output[0];
    return cat;
}

static void write_all(int to, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t written = write(to, bytes, len);

        /* The host may have gone, and another may come. */
        if (written < 0)
            return;
        bytes += written;
        len -= (size_t)written;
    }
}

static size_t read_line(int from, char *line, size_t room)
{
    size_t used = 0;

    while (used < room && (used == 0 || line[used - 1] != '\n')) {
        ssize_t got = read(from, line + used, room - used);

        if (got <= 0)
            break;
        used += (size_t)got;
    }
    return used;
}

static void serve(int connection, const struct cat *cat)
{
    static char bytes[BUFFER];
    ssize_t got;

    write_all(cat->input, bytes, read_line(connection, bytes, sizeof bytes));
    close(cat->input);
    while ((got = read(cat->output, bytes, sizeof bytes)) > 0)
        write_all(connection, bytes, (size_t)got);
    close(cat->output);
    close(connection);
    waitpid(cat->pid, NULL, 0);
}

static int accept_next(int listener)
{
    int connection;

    /* A connection that a restore reset before it was taken is nobody's. */
    do
        connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    while (connection < 0);
    return connection;
}

static void run_echo(void)
{
    int listener = listen_for_events();
    struct cat cat = start_cat();

    tell_ready();
    for (;;) {
        serve(accept_next(listener), &cat);
        cat = start_cat();
    }
}

int main(void)
{
    const char *function = getenv("FUNCTION");
    char *server;

    mount_at("devtmpfs", "/dev", "devtmpfs", 0, "mode=0755");
    open_standard_files();
    mount_at("proc", "/proc", "proc", 0, "");
    mount_at("sysfs", "/sys", "sysfs", 0, "");
    load_modules();
    server = read_server();
    enter_root();
    if (function && strcmp(function, "python") == 0)
        run_python(server);
    run_echo();
}
