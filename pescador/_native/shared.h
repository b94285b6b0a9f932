/* Memory without a name that two processes map, and words in it that both read and write. Linux. */
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* A descriptor of new memory, which nobody can make shorter; -1 with errno. */
static inline int
pescador_shared_create(void)
{
    int fd = memfd_create("pescador", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) {
        fd = memfd_create("pescador", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    }
    if (fd >= 0) {
        (void)fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
    }
    return fd;
}

/* Map the first `size` bytes; pages need not be there yet. NULL with errno. */
static inline char *
pescador_shared_map(int fd, size_t size)
{
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return base == MAP_FAILED ? NULL : (char *)base;
}

/* Allocate the pages of these bytes, so that a lack of memory is an error now and not a signal
 * later. Return 0 or the error. */
static inline int
pescador_shared_reserve(int fd, char *base, size_t start, size_t size)
{
    while (fallocate(fd, 0, (off_t)start, (off_t)size) != 0) {
        if (errno != EINTR) {
            return errno;
        }
    }
    /* One call instead of a fault for each page. Older kernels refuse it, and fault. */
    (void)madvise(base + start, size, MADV_POPULATE_WRITE);
    return 0;
}

/* Free the pages that lie between two places. */
static inline void
pescador_shared_drop(char *base, size_t start, size_t stop)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    start = (start + page - 1) / page * page;
    stop = stop / page * page;
    if (start < stop) {
        (void)madvise(base + start, stop - start, MADV_REMOVE);
    }
}

/* Memory of this process alone, or NULL. */
static inline char *
pescador_private_map(size_t size)
{
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return base == MAP_FAILED ? NULL : (char *)base;
}

/* Replace a mapping by zeros of this process alone, or by addresses that cannot be accessed. */
static inline void
pescador_private_cover(char *base, size_t size, int accessible)
{
    (void)mmap(base, size, accessible ? PROT_READ | PROT_WRITE : PROT_NONE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

/* Move private memory to an address, in the place of what is mapped there. */
static inline void
pescador_private_move(char *from, size_t size, char *to)
{
    (void)mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
}

#define pescador_load(word) __atomic_load_n((word), __ATOMIC_SEQ_CST)
#define pescador_store(word, value) __atomic_store_n((word), (value), __ATOMIC_SEQ_CST)
#define pescador_exchange(word, value) __atomic_exchange_n((word), (value), __ATOMIC_SEQ_CST)

static inline void
pescador_lock(char *flag)
{
    while (__atomic_test_and_set(flag, __ATOMIC_ACQUIRE)) {
    }
}

static inline void
pescador_unlock(char *flag)
{
    __atomic_clear(flag, __ATOMIC_RELEASE);
}
