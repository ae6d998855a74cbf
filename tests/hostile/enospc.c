/* Simulates a disk that fills: after FULL_AFTER calls that change regular files, all further ones fail with ENOSPC. Loaded
   into the program by LD_PRELOAD. With FULL_COUNT=FILE the number of such calls is written to the file at exit. Descriptors
   0 to 2 and files outside FULL_UNDER are unaffected. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;

static int full(void) {
  static long after = -1;
  if (after < 0) {
    const char *text = getenv("FULL_AFTER");
    after = text ? atol(text) : LONG_MAX;
  }
  return atomic_fetch_add(&calls, 1) >= after;
}

static int below(const char *path) {
  const char *top = getenv("FULL_UNDER");
  return top && strncmp(path, top, strlen(top)) == 0;
}

static int counts(int fd) {
  char link[64], path[PATH_MAX + 1];
  struct stat about;
  if (fd <= 2 || fstat(fd, &about) || !S_ISREG(about.st_mode)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, PATH_MAX);
  if (n < 0) return 0;
  path[n] = 0;
  return below(path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL return errno = ENOSPC, -1

ssize_t write(int fd, const void *data, size_t n) {
  REAL(write);
  if (n && counts(fd) && full()) FAIL;
  return real(fd, data, n);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
  REAL(writev);
  if (counts(fd) && full()) FAIL;
  return real(fd, parts, n);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
  REAL(pwrite64);
  if (n && counts(fd) && full()) FAIL;
  return real(fd, data, n, at);
}
int ftruncate64(int fd, off64_t n) {
  REAL(ftruncate64);
  if (n && counts(fd) && full()) FAIL;
  return real(fd, n);
}
int fallocate64(int fd, int mode, off64_t at, off64_t n) {
  REAL(fallocate64);
  if (counts(fd) && full()) FAIL;
  return real(fd, mode, at, n);
}
int fsync(int fd) {
  REAL(fsync);
  if (counts(fd) && full()) FAIL;
  return real(fd);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  if (counts(fd) && full()) FAIL;
  return real(fd);
}
int rename(const char *from, const char *to) {
  REAL(rename);
  if ((to[0] == '/' ? below(to) : 1) && full()) FAIL;
  return real(from, to);
}
int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  if ((path[0] == '/' ? below(path) : 1) && access(path, F_OK) && full()) FAIL;
  return real(path, mode);
}
int open64(const char *path, int flags, ...) {
  REAL(open64);
  mode_t mode = 0;
  if (flags & (O_CREAT | O_TMPFILE)) {
    va_list more;
    va_start(more, flags);
    mode = va_arg(more, mode_t);
    va_end(more);
  }
  if ((flags & O_CREAT) && (path[0] == '/' ? below(path) : 1) && access(path, F_OK) && full()) FAIL;
  return real(path, flags, mode);
}

__attribute__((destructor)) static void report(void) {
  const char *path = getenv("FULL_COUNT");
  FILE *file = path ? fopen(path, "w") : NULL;
  if (!file) return;
  fprintf(file, "%ld\n", (long)calls);
  fclose(file);
}
