/* Memory that two processes map, and words in it that both read and write. Linux has it without a
 * name in any file system, so that no death leaves it behind; elsewhere it is not to be had. */
#ifndef PESCADOR_SHARED_H
#define PESCADOR_SHARED_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__linux__) && (defined(__GNUC__) || defined(__clang__))
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PESCADOR_HAS_SHARED 1

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* A descriptor of memory that nobody can take pages from, or -1 with errno. */
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

/* Addresses for the first `size` bytes, pages or none behind them, or NULL with errno. */
static inline char *
pescador_shared_map(int fd, size_t size)
{
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return base == MAP_FAILED ? NULL : (char *)base;
}

static inline void
pescador_shared_unmap(char *base, size_t size)
{
    (void)munmap(base, size);
}

/* Get pages for these bytes now, so that a lack of memory is an error and not a signal later; with
 * a base, map them there, too. Return 0 or the error. */
static inline int
pescador_shared_reserve(int fd, char *base, size_t start, size_t size)
{
    while (fallocate(fd, 0, (off_t)start, (off_t)size) != 0) {
        if (errno != EINTR) {
            return errno;
        }
    }
    if (base != NULL) {
        /* One call instead of a fault for each page. Where it is not known they fault. */
        (void)madvise(base + start, size, MADV_POPULATE_WRITE);
    }
    return 0;
}

static inline size_t
pescador_page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Give the pages of these bytes back to the system; whole pages inside them only. */
static inline void
pescador_shared_drop(char *base, size_t start, size_t stop)
{
    size_t page = pescador_page_size();
    start = (start + page - 1) / page * page;
    stop = stop / page * page;
    if (start < stop) {
        (void)madvise(base + start, stop - start, MADV_REMOVE);
    }
}

static inline void
pescador_shared_close(int fd)
{
    (void)close(fd);
}

/* Memory of this process alone, or NULL. */
static inline char *
pescador_private_map(size_t size)
{
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return base == MAP_FAILED ? NULL : (char *)base;
}

/* Put zeros of this process alone, or with `gone` nothing that can be read, where shared memory is
 * mapped. */
static inline void
pescador_private_cover(char *base, size_t size, int gone)
{
    (void)mmap(base, size, gone ? PROT_NONE : PROT_READ | PROT_WRITE,
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

#else

#define PESCADOR_HAS_SHARED 0

static inline int
pescador_shared_create(void)
{
    errno = ENOSYS;
    return -1;
}

static inline char *
pescador_shared_map(int fd, size_t size)
{
    (void)fd;
    (void)size;
    errno = ENOSYS;
    return NULL;
}

static inline void
pescador_shared_unmap(char *base, size_t size)
{
    (void)base;
    (void)size;
}

static inline int
pescador_shared_reserve(int fd, char *base, size_t start, size_t size)
{
    (void)fd;
    (void)base;
    (void)start;
    (void)size;
    return ENOSYS;
}

static inline void
pescador_shared_drop(char *base, size_t start, size_t stop)
{
    (void)base;
    (void)start;
    (void)stop;
}

static inline void
pescador_shared_close(int fd)
{
    (void)fd;
}

static inline char *
pescador_private_map(size_t size)
{
    (void)size;
    return NULL;
}

static inline void
pescador_private_cover(char *base, size_t size, int gone)
{
    (void)base;
    (void)size;
    (void)gone;
}

static inline void
pescador_private_move(char *from, size_t size, char *to)
{
    (void)from;
    (void)size;
    (void)to;
}

static inline size_t
pescador_page_size(void)
{
    return 4096;
}

/* Never reached: there is no shared memory to read. */
static inline uint64_t
pescador_load(const uint64_t *word)
{
    return *word;
}

static inline void
pescador_store(uint64_t *word, uint64_t value)
{
    *word = value;
}

static inline uint64_t
pescador_exchange(uint64_t *word, uint64_t value)
{
    uint64_t old = *word;
    *word = value;
    return old;
}

static inline void
pescador_lock(char *flag)
{
    (void)flag;
}

static inline void
pescador_unlock(char *flag)
{
    (void)flag;
}

#endif

/* The place of the highest bit that is set; the word is not 0. */
static inline int
pescador_log2(uint64_t word)
{
#if defined(__GNUC__) || defined(__clang__)
    return 63 - __builtin_clzll(word);
#else
    int place = 0;
    while (word >>= 1) {
        place++;
    }
    return place;
#endif
}

#endif
