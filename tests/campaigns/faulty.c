/* Calls on files that fail when a campaign says so: preloaded, so that native libraries' calls fail as Python's do.
 *
 *     cc -shared -fPIC -O2 -o libfaulty.so faulty.c -ldl
 *     FAULTY_CONTROL=control LD_PRELOAD=./libfaulty.so python ...
 *
 * The control file is `struct control`, shared by every process that has it open (`campaigns/faulty.py` writes it).
 * Only calls on paths below `root` count; a descriptor's path is what /proc says.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN_READ, OPEN_WRITE, READ, WRITE, FSYNC, RENAME, MKDIR, REMOVE, CLOSE, KINDS };
static const char *const names[] = {"open to read", "open to write", "read", "write", "fsync", "rename", "mkdir",
                                    "remove", "close"};

struct control {
    int armed;        /* 0: nothing is looked at */
    int kind;         /* whose n-th call fails; -1: of all kinds */
    int error;        /* errno; 0: half of the bytes are read or written */
    int lasting;      /* bits of the kinds whose later calls fail, too */
    int lasting_error;
    int signal;       /* sent to this process before the n-th call, which then goes on */
    int traced;
    int clock_back_s; /* from the n-th call on */
    long nth;         /* from 1; 0: none */
    long fired;
    long all;
    long counted[KINDS];
    char root[512];
    char trace[512];
};
static struct control *control;

static long raw_open(const char *path, int flags) { return syscall(SYS_openat, AT_FDCWD, path, flags, 0600); }

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULTY_CONTROL");
    long file = path ? raw_open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *at = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, (int)file, 0);
    if (at != MAP_FAILED)
        control = at;
    syscall(SYS_close, file);
}

static int below_root(const char *path)
{
    size_t length = strlen(control->root);
    return length && !strncmp(path, control->root, length) && (path[length] == '/' || !path[length]);
}

static void trace(int kind, const char *path)
{
    char line[1200];
    int length = snprintf(line, sizeof line, "%s\t%s\n", names[kind], path);
    long file = raw_open(control->trace, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC);
    if (file >= 0) {
        syscall(SYS_write, file, line, length);
        syscall(SYS_close, file);
    }
}

/* 0: go on; above: fail with this errno; -1: do half of it. */
static int verdict(int kind, const char *path)
{
    if (!below_root(path))
        return 0;
    if (control->traced)
        trace(kind, path);
    long all = __atomic_add_fetch(&control->all, 1, __ATOMIC_SEQ_CST);
    long own = __atomic_add_fetch(&control->counted[kind], 1, __ATOMIC_SEQ_CST);
    if (control->fired && (control->lasting >> kind & 1)) {
        control->fired++;
        return control->lasting_error;
    }
    if (control->nth == 0 || control->nth != (control->kind < 0 ? all : control->kind == kind ? own : 0))
        return 0;
    control->fired++;
    if (control->clock_back_s)
        return 0;
    if (control->signal) {
        kill(getpid(), control->signal);
        return 0;
    }
    return control->error ? control->error : -1;
}

static int of_path(int kind, int folder, const char *path)
{
    char whole[8192];
    if (!control || !control->armed || !path)
        return 0;
    int before = errno, said;
    if (path[0] == '/') {
        said = verdict(kind, path);
    } else {
        char link[64], at[4096];
        snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
        long length = syscall(SYS_readlinkat, AT_FDCWD, link, at, sizeof at - 1);
        if (length <= 0) {
            errno = before;
            return 0;
        }
        at[length] = 0;
        snprintf(whole, sizeof whole, "%s/%s", at, path);
        said = verdict(kind, whole);
    }
    errno = before;
    return said;
}

static int of_file(int kind, int file)
{
    char link[64], at[4096];
    if (!control || !control->armed || file <= 2)
        return 0;
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, at, sizeof at - 1);
    errno = before;
    if (length <= 0)
        return 0;
    at[length] = 0;
    int said = verdict(kind, at);
    errno = before;
    return said;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL(said, value) \
    do { \
        errno = (said) > 0 ? (said) : EIO; \
        return value; \
    } while (0)

static int kind_of(int flags) { return (flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT) ? OPEN_READ : OPEN_WRITE; }

#define MODE \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }
#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(name); \
        MODE int said = of_path(kind_of(flags), AT_FDCWD, path); \
        if (said) \
            FAIL(said, -1); \
        return real(path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) \
    { \
        REAL(name); \
        MODE int said = of_path(kind_of(flags), folder, path); \
        if (said) \
            FAIL(said, -1); \
        return real(folder, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) \
    { \
        REAL(name); \
        int said = of_path(mode[0] == 'r' && !strchr(mode, '+') ? OPEN_READ : OPEN_WRITE, AT_FDCWD, path); \
        if (said) \
            FAIL(said, NULL); \
        return real(path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

DIR *opendir(const char *path)
{
    REAL(opendir);
    int said = of_path(OPEN_READ, AT_FDCWD, path);
    if (said)
        FAIL(said, NULL);
    return real(path);
}

#define HALF(said, bytes) ((said) < 0 && (bytes) > 1 ? (bytes) / 2 : (bytes))
#define MOVE(name, kind, result, data) \
    result name(int file, data bytes, size_t length) \
    { \
        REAL(name); \
        int said = of_file(kind, file); \
        if (said > 0) \
            FAIL(said, -1); \
        return real(file, bytes, HALF(said, length)); \
    }
#define MOVE_AT(name, kind, data, place) \
    ssize_t name(int file, data bytes, size_t length, place at) \
    { \
        REAL(name); \
        int said = of_file(kind, file); \
        if (said > 0) \
            FAIL(said, -1); \
        return real(file, bytes, HALF(said, length), at); \
    }
MOVE(read, READ, ssize_t, void *)
MOVE(write, WRITE, ssize_t, const void *)
MOVE_AT(pread, READ, void *, off_t)
MOVE_AT(pread64, READ, void *, off64_t)
MOVE_AT(pwrite, WRITE, const void *, off_t)
MOVE_AT(pwrite64, WRITE, const void *, off64_t)

#define MOVE_PARTS(name, kind) \
    ssize_t name(int file, const struct iovec *parts, int number) \
    { \
        REAL(name); \
        int said = of_file(kind, file); \
        if (said > 0) \
            FAIL(said, -1); \
        return real(file, parts, HALF(said, number)); \
    }
MOVE_PARTS(readv, READ)
MOVE_PARTS(writev, WRITE)

ssize_t sendfile64(int to, int from, off64_t *at, size_t length)
{
    REAL(sendfile64);
    int said = of_file(WRITE, to);
    if (said > 0)
        FAIL(said, -1);
    return real(to, from, at, HALF(said, length));
}
ssize_t sendfile(int to, int from, off_t *at, size_t length) { return sendfile64(to, from, at, length); }

ssize_t copy_file_range(int from, off64_t *at, int to, off64_t *there, size_t length, unsigned flags)
{
    REAL(copy_file_range);
    int said = of_file(WRITE, to);
    if (said > 0)
        FAIL(said, -1);
    return real(from, at, to, there, HALF(said, length), flags);
}

#define TRUNCATE(name, place) \
    int name(int file, place length) \
    { \
        REAL(name); \
        int said = of_file(WRITE, file); \
        if (said > 0) \
            FAIL(said, -1); \
        return real(file, length); \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define MAP(name, place) \
    void *name(void *where, size_t length, int protection, int flags, int file, place at) \
    { \
        REAL(name); \
        int said = file >= 0 && !(flags & MAP_ANONYMOUS) ? of_file(READ, file) : 0; \
        if (said > 0) \
            FAIL(said, MAP_FAILED); \
        return real(where, length, protection, flags, file, at); \
    }
MAP(mmap, off_t)
MAP(mmap64, off64_t)

size_t fread(void *bytes, size_t size, size_t number, FILE *file)
{
    REAL(fread);
    int said = file ? of_file(READ, fileno(file)) : 0;
    if (said > 0)
        FAIL(said, 0);
    return real(bytes, size, number, file);
}
size_t fwrite(const void *bytes, size_t size, size_t number, FILE *file)
{
    REAL(fwrite);
    int said = file ? of_file(WRITE, fileno(file)) : 0;
    if (said > 0)
        FAIL(said, 0);
    return real(bytes, size, number, file);
}
int fclose(FILE *file)
{
    REAL(fclose);
    int said = file && __fwritable(file) ? of_file(CLOSE, fileno(file)) : 0;
    int done = real(file);
    if (said > 0)
        FAIL(said, EOF);
    return done;
}
int close(int file)
{
    REAL(close);
    int said = 0;
    if (control && control->armed && file > 2) {
        int before = errno, flags = fcntl(file, F_GETFL);
        errno = before;
        if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY)
            said = of_file(CLOSE, file);
    }
    int done = real(file);
    if (said > 0)
        FAIL(said, -1);
    return done;
}

#define SYNC(name) \
    int name(int file) \
    { \
        REAL(name); \
        int said = of_file(FSYNC, file); \
        if (said) \
            FAIL(said, -1); \
        return real(file); \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *old, const char *new)
{
    REAL(rename);
    int said = of_path(RENAME, AT_FDCWD, new);
    if (said)
        FAIL(said, -1);
    return real(old, new);
}
int renameat(int from, const char *old, int to, const char *new)
{
    REAL(renameat);
    int said = of_path(RENAME, to, new);
    if (said)
        FAIL(said, -1);
    return real(from, old, to, new);
}
int link(const char *old, const char *new)
{
    REAL(link);
    int said = of_path(OPEN_WRITE, AT_FDCWD, new);
    if (said)
        FAIL(said, -1);
    return real(old, new);
}
int symlink(const char *old, const char *new)
{
    REAL(symlink);
    int said = of_path(OPEN_WRITE, AT_FDCWD, new);
    if (said)
        FAIL(said, -1);
    return real(old, new);
}
int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    int said = of_path(MKDIR, AT_FDCWD, path);
    if (said)
        FAIL(said, -1);
    return real(path, mode);
}
int mkdirat(int folder, const char *path, mode_t mode)
{
    REAL(mkdirat);
    int said = of_path(MKDIR, folder, path);
    if (said)
        FAIL(said, -1);
    return real(folder, path, mode);
}

#define REMOVES(name) \
    int name(const char *path) \
    { \
        REAL(name); \
        int said = of_path(REMOVE, AT_FDCWD, path); \
        if (said) \
            FAIL(said, -1); \
        return real(path); \
    }
REMOVES(unlink)
REMOVES(rmdir)
REMOVES(remove)
int unlinkat(int folder, const char *path, int flags)
{
    REAL(unlinkat);
    int said = of_path(REMOVE, folder, path);
    if (said)
        FAIL(said, -1);
    return real(folder, path, flags);
}

static long back_s(void)
{
    return control && control->armed && control->fired ? control->clock_back_s : 0;
}
int clock_gettime(clockid_t clock, struct timespec *now)
{
    REAL(clock_gettime);
    int done = real(clock, now);
    if (clock == CLOCK_REALTIME && !done)
        now->tv_sec -= back_s();
    return done;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    REAL(gettimeofday);
    int done = real(now, zone);
    if (!done)
        now->tv_sec -= back_s();
    return done;
}
time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
