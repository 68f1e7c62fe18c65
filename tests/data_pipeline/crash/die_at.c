/* Preloaded: ends the process at its n-th change of a file below a directory, half of a write done.

   arm(directory, n): from now on count; 0 counts only. counted(): how many changes there were. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[PATH_MAX];
static long fatal, count;

void arm(const char *directory, long n) { snprintf(below, sizeof below, "%s", directory); fatal = n; count = 0; }
long counted(void) { return count; }

static int inside(const char *path) { return below[0] && path && strncmp(path, below, strlen(below)) == 0; }

static int inside_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return inside(path);
}

static int now(int is_inside) { return is_inside && ++count == fatal; }

ssize_t write(int fd, const void *data, size_t n) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (below[0] && now(inside_fd(fd))) { real(fd, data, n / 2); _exit(137); }
    return real(fd, data, n);
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    static ssize_t (*real)(int, const struct iovec *, int);
    if (!real) real = dlsym(RTLD_NEXT, "writev");
    if (below[0] && now(inside_fd(fd))) _exit(137);
    return real(fd, parts, n);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pwrite64");
    if (below[0] && now(inside_fd(fd))) { real(fd, data, n / 2, at); _exit(137); }
    return real(fd, data, n, at);
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = dlsym(RTLD_NEXT, "rename");
    if (now(inside(to))) _exit(137);
    return real(from, to);
}

int unlink(const char *path) {
    static int (*real)(const char *);
    if (!real) real = dlsym(RTLD_NEXT, "unlink");
    if (now(inside(path))) _exit(137);
    return real(path);
}

int mkdir(const char *path, mode_t mode) {
    static int (*real)(const char *, mode_t);
    if (!real) real = dlsym(RTLD_NEXT, "mkdir");
    if (now(inside(path))) _exit(137);
    return real(path, mode);
}
