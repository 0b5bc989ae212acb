/* Loaded before the C library (LD_PRELOAD): a full disk and a wall clock that jumps, for a process and its children.

   FAULT_FILE     writes to files whose path contains it fail with ENOSPC ...
   FAULT_BYTES    ... beyond so many bytes of this process's (none: 0)
   FAULT_PROGRAM  only in processes whose command line contains it (none: all)
   FAULT_CLOCK    wall clocks jump by so many seconds, ahead and back again, every FAULT_PERIOD seconds
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static atomic_long written;

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

static int of_this_program(void)
{
    static int known = -1;
    const char *wanted = getenv("FAULT_PROGRAM");
    if (known >= 0)
        return known;
    if (!wanted)
        return known = 1;
    char line[8192];
    int fd = open("/proc/self/cmdline", O_RDONLY);
    ssize_t n = fd < 0 ? 0 : read(fd, line, sizeof line - 1);
    if (fd >= 0)
        close(fd);
    for (ssize_t i = 0; i < n; i++)
        if (!line[i])
            line[i] = ' ';
    line[n > 0 ? n : 0] = 0;
    return known = strstr(line, wanted) != NULL;
}

/* Bytes of n that find room in the file of a descriptor. */
static size_t room(int fd, size_t n)
{
    const char *file = getenv("FAULT_FILE"), *bytes = getenv("FAULT_BYTES");
    char link[64], path[4096];
    if (!file || !of_this_program())
        return n;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return n;
    path[length] = 0;
    if (path[0] != '/' || !strstr(path, file))
        return n;
    long left = (bytes ? atol(bytes) : 0) - atomic_fetch_add(&written, (long)n);
    return left <= 0 ? 0 : (size_t)left < n ? (size_t)left : n;
}

#define FULL(n, given) ((n) > 0 && (given) == 0)

ssize_t write(int fd, const void *data, size_t n)
{
    ssize_t (*real)(int, const void *, size_t) = next("write");
    size_t given = room(fd, n);
    if (FULL(n, given)) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, data, given);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    ssize_t (*real)(int, const struct iovec *, int) = next("writev");
    size_t n = 0;
    for (int i = 0; i < count; i++)
        n += parts[i].iov_len;
    if (room(fd, n) < n) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, parts, count);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off_t where)
{
    ssize_t (*real)(int, const void *, size_t, off_t) = next("pwrite64");
    size_t given = room(fd, n);
    if (FULL(n, given)) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, data, given, where);
}

static int allocate(const char *name, int fd, off_t start, off_t n)
{
    int (*real)(int, off_t, off_t) = next(name);
    return room(fd, (size_t)n) < (size_t)n ? ENOSPC : real(fd, start, n);
}

int posix_fallocate(int fd, off_t start, off_t n) { return allocate("posix_fallocate", fd, start, n); }
int posix_fallocate64(int fd, off_t start, off_t n) { return allocate("posix_fallocate64", fd, start, n); }

static ssize_t copied(const char *name, int out, int in, off_t *offset, size_t n)
{
    ssize_t (*real)(int, int, off_t *, size_t) = next(name);
    if (room(out, n) == 0) {
        errno = ENOSPC;
        return -1;
    }
    return real(out, in, offset, n);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t n) { return copied("sendfile", out, in, offset, n); }
ssize_t sendfile64(int out, int in, off_t *offset, size_t n) { return copied("sendfile64", out, in, offset, n); }

static long jump(void)
{
    const char *seconds = getenv("FAULT_CLOCK"), *period = getenv("FAULT_PERIOD");
    int (*real)(clockid_t, struct timespec *) = next("clock_gettime");
    struct timespec now;
    if (!seconds)
        return 0;
    real(CLOCK_MONOTONIC, &now);
    long phase = now.tv_sec / (period ? atol(period) : 1) % 3;
    return phase == 1 ? atol(seconds) : phase == 2 ? -atol(seconds) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int (*real)(clockid_t, struct timespec *) = next("clock_gettime");
    int result = real(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += jump();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int (*real)(struct timeval *, void *) = next("gettimeofday");
    int result = real(now, zone);
    if (result == 0)
        now->tv_sec += jump();
    return result;
}

time_t time(time_t *where)
{
    time_t (*real)(time_t *) = next("time");
    time_t now = real(NULL) + jump();
    if (where)
        *where = now;
    return now;
}
