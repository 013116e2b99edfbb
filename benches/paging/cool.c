/* Takes a file out of the page cache and makes sure that it is gone.
 *
 *   cc -O2 -static -o cool cool.c
 *   cool FILE
 *
 * It fails where a page is still there: on a tmpfs the file is nowhere else, and a page that somebody has mapped stays. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../common/program.h"

enum { TRIES = 100 };

static size_t resident(void *start, size_t length, unsigned char *pages)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), count = 0;

    if (mincore(start, length, pages) != 0)
        die("ask for what is in the page cache");
    for (size_t i = 0; i < (length + page - 1) / page; i++)
        count += pages[i] & 1;
    return count;
}

int main(int argc, char **argv)
{
    struct timespec pause = { 0, 10 * 1000 * 1000 };
    struct stat status;
    size_t left = 0;

    if (argc != 2) {
        fprintf(stderr, "usage: cool FILE\n");
        return 2;
    }
    int file = open(argv[1], O_RDONLY | O_CLOEXEC);

    if (file < 0 || fstat(file, &status) != 0)
        die("open the file");
    size_t length = (size_t)status.st_size;
    void *start = mmap(NULL, length, PROT_READ, MAP_SHARED, file, 0);
    unsigned char *pages = malloc(length / 4096 + 1);

    if (start == MAP_FAILED || pages == NULL)
        die("map the file");
    /* Dirty pages cannot be dropped, and a machine that has just ended may still hold some. */
    for (int i = 0; i < TRIES; i++) {
        if (fsync(file) != 0 || posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) != 0)
            die("drop the file");
        left = resident(start, length, pages);
        if (left == 0)
            return 0;
        nanosleep(&pause, NULL);
    }
    fprintf(stderr, "cool: %zu pages of %s stay in the page cache\n", left, argv[1]);
    return 1;
}
