/* Preloaded: ends the process at its n-th change of a file below a directory, half of a write done.

   arm(directory, n): from now on count; 0 counts only. changes(): one line for each so far, "what path".
   What lies below logs/ does not count, nor what changes nothing. Nothing is flushed to the disk: the
   machine stays up, only the process dies. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[PATH_MAX], *listed;
static size_t used, room;
static long fatal, count;

#define REAL(type, name, ...)                            \
    static type (*real)(__VA_ARGS__);                    \
    if (!real) real = dlsym(RTLD_NEXT, name)

void arm(const char *directory, long n) {
    snprintf(below, sizeof below, "%s", directory);
    fatal = n;
    count = 0;
    used = 0;
}

const char *changes(void) { return listed && used ? listed : ""; }

static int inside(const char *path) {
    size_t n = strlen(below);
    return n && path && strncmp(path, below, n) == 0 && !strstr(path + n, "/logs/");
}

/* Whether the process is to die here; notes what it was about to do. */
static int now(const char *what, const char *path) {
    if (!inside(path)) return 0;
    if (fatal == 0) {
        size_t more = strlen(what) + strlen(path) + 3;
        if (used + more > room) listed = realloc(listed, room = 2 * (used + more));
        used += sprintf(listed + used, "%s %s\n", what, path);
    }
    return ++count == fatal;
}

static const char *path_of(int fd) {
    static __thread char link[64], path[PATH_MAX];
    if (!below[0]) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return NULL;
    path[n] = 0;
    return path;
}

static const char *path_at(int fd, const char *path) {
    static __thread char whole[2 * PATH_MAX];
    if (path[0] == '/' || fd == AT_FDCWD) return path;
    const char *folder = path_of(fd);
    if (!folder) return NULL;
    snprintf(whole, sizeof whole, "%s/%s", folder, path);
    return whole;
}

static int is_there(const char *path) {
    struct stat found;
    return path && below[0] && lstat(path, &found) == 0;
}

ssize_t write(int fd, const void *data, size_t n) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (now("write", path_of(fd))) { real(fd, data, n / 2); _exit(137); }
    return real(fd, data, n);
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (now("write", path_of(fd))) _exit(137);
    return real(fd, parts, n);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    if (now("write", path_of(fd))) { real(fd, data, n / 2, at); _exit(137); }
    return real(fd, data, n, at);
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t n) {
    REAL(ssize_t, "sendfile64", int, int, off64_t *, size_t);
    if (now("write", path_of(to))) { real(to, from, at, n / 2); _exit(137); }
    return real(to, from, at, n);
}

int ftruncate64(int fd, off64_t n) {
    REAL(int, "ftruncate64", int, off64_t);
    if (now("truncate", path_of(fd))) _exit(137);
    return real(fd, n);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (now("rename", to)) _exit(137);
    return real(from, to);
}

int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    if (now("link", to)) _exit(137);
    return real(from, to);
}

int unlink(const char *path) {
    REAL(int, "unlink", const char *);
    if (is_there(path) && now("unlink", path)) _exit(137);
    return real(path);
}

int unlinkat(int fd, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    if (now("unlink", path_at(fd, path))) _exit(137);
    return real(fd, path, flags);
}

int rmdir(const char *path) {
    REAL(int, "rmdir", const char *);
    if (is_there(path) && now("unlink", path)) _exit(137);
    return real(path);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    if (!is_there(path) && now("mkdir", path)) _exit(137);
    return real(path, mode);
}

int fsync(int fd) { return fcntl(fd, F_GETFD) < 0 ? -1 : 0; }
int fdatasync(int fd) { return fsync(fd); }
