/* Files in memory, written once, and private maps of them, which copy a page when it is written to.
 * Where the system has no such files, none can be made. */
#pragma once

#include <Python.h>
#include "threads.h"

#if defined(__linux__)
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__linux__) && defined(SYS_memfd_create)
#define PESCADOR_MAPS 1

#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 1u
#endif

/* A quarter of the maps that Linux allows a process: malloc needs some as well. */
#define PESCADOR_MOST_MAPS (65530 / 4)

/* What this process has open of ours. */
static Py_ssize_t pescador_maps, pescador_files;

/* A file is counted until here, whether its descriptor is still open or not. */
static inline void
pescador_close_file(int file, int is_open)
{
    if (is_open) {
        close(file);
    }
    pescador_add(&pescador_files, -1);
}

/* The descriptor of a new file of these bytes; -1 if there can be none. We use at most a quarter of
 * the descriptors that the process may have. */
static inline int
pescador_new_file(const char *bytes, size_t n)
{
    struct rlimit limit;
    ssize_t done;
    int file;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0
            || (rlim_t)pescador_add(&pescador_files, 0) >= limit.rlim_cur / 4) {
        return -1;
    }
    file = (int)syscall(SYS_memfd_create, "pescador", MFD_CLOEXEC);
    if (file < 0) {
        return -1;
    }
    pescador_add(&pescador_files, 1);
    /* Writing allocates the pages: to read them cannot fail later. */
    for (; n > 0; bytes += done, n -= (size_t)done) {
        done = write(file, bytes, n);
        if (done < 0 && errno == EINTR) {
            done = 0;
        }
        else if (done <= 0) {
            pescador_close_file(file, 1);
            return -1;
        }
    }
    return file;
}

/* A new private map of a file, counted in `maps` too; NULL if there can be none. */
static inline void *
pescador_new_map(int file, size_t n, Py_ssize_t *maps)
{
    void *map = MAP_FAILED;
    if (pescador_add(&pescador_maps, 1) <= PESCADOR_MOST_MAPS) {
        map = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
    }
    if (map == MAP_FAILED) {
        pescador_add(&pescador_maps, -1);
        return NULL;
    }
    pescador_add(maps, 1);
    return map;
}

static inline void
pescador_unmap(void *map, size_t n, Py_ssize_t *maps)
{
    munmap(map, n);
    pescador_add(&pescador_maps, -1);
    pescador_add(maps, -1);
}

/* Whether a map was written all over: whether it differs from its file in a quarter of 16 places. */
static inline int
pescador_is_overwritten(const char *map, size_t n, int file)
{
    char bytes[64];
    int i, changed = 0;
    for (i = 0; i < 16; i++) {
        size_t at = n / 16 * (size_t)i;
        changed += pread(file, bytes, sizeof bytes, (off_t)at) == sizeof bytes
            && memcmp(bytes, map + at, sizeof bytes) != 0;
    }
    return changed >= 4;
}

#else

#define PESCADOR_MAPS 0
#define pescador_close_file(file, is_open) ((void)(file), (void)(is_open))
#define pescador_new_file(bytes, n) (-1)
#define pescador_new_map(file, n, maps) NULL
#define pescador_unmap(map, n, maps) ((void)(map))
#define pescador_is_overwritten(map, n, file) 0

#endif
